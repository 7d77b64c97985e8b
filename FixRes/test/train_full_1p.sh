#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_one_device "FixRes, phase 1 of 3: train a ResNet-50 on ImageNet at 224 pixels with one device, 120 epochs."
training batch_size=64 train_epochs=120 workers="$(at_most_cores 9)" opt_level=O1 learning_rate=0.02 image_size=224
train acc "$@"

#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_listed_devices "FixRes, phase 1 of 3: train a ResNet-50 on ImageNet at 224 pixels with eight devices of one machine, 120 epochs."
training batch_size=512 train_epochs=120 workers="$(at_most_cores 72)" opt_level=O1 learning_rate=0.02 image_size=224
train acc "$@"

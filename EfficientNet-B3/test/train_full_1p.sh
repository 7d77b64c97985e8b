#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_one_device "Train EfficientNet-B3 on ImageNet with one device: 100 epochs."
defaults batch_size=128 train_epochs=100 workers="$(at_most_cores 24)" opt_level=O2
train acc 1npu_full "$@"

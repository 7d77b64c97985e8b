#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_one_device "Train ResNet50 on ImageNet with one device: 90 epochs."
defaults batch_size=512 train_epochs=90 workers="$(at_most_cores 64)" opt_level=O2
train ResNet50_for_PyTorch acc one_card "$@"

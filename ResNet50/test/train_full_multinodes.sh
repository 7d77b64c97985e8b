#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_machines "Train ResNet50 on ImageNet on several machines: 90 epochs."
defaults batch_size=4096 train_epochs=90 workers="$(at_most_cores 128)" opt_level=O2 seed=49
train ResNet50_ID0095_for_PyTorch acc eight_cards "$@"

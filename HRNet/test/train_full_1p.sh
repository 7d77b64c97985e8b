#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_one_device "Train HRNet-W18 on ImageNet with one device: 100 epochs."
defaults batch_size=256 train_epochs=100 workers="$(at_most_cores 64)" opt_level=O2
train acc "$@"

#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_machines "Train EfficientNet-B3 on ImageNet on several machines: 100 epochs."
defaults batch_size=512 train_epochs=100 workers="$(at_most_cores 192)" opt_level=O2
train acc 8npu_full "$@"

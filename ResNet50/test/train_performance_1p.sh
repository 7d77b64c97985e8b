#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_one_device "Measure ResNet50's training speed on one device: 1 epoch of at most 1001 steps."
defaults batch_size=512 train_epochs=1 workers="$(at_most_cores 64)" opt_level=O2 max_steps=1001
train ResNet50_ID0095_for_PyTorch perf one_card "$@"

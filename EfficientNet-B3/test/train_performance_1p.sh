#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_one_device "Measure EfficientNet-B3's training speed on one device: 1 epoch of at most 1001 steps."
defaults batch_size=128 train_epochs=1 max_steps=1001 workers="$(at_most_cores 24)" opt_level=O2
train perf 1npu_perf "$@"

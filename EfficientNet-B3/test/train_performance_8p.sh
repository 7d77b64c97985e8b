#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_listed_devices "Measure EfficientNet-B3's training speed on eight devices of one machine: 1 epoch of at most 1001 steps."
defaults batch_size=512 train_epochs=1 max_steps=1001 workers="$(at_most_cores 192)" opt_level=O2
train perf 8npu_perf "$@"

#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_machines "Measure the training speed of HRNet-W18 on several machines: 1 epoch of at most 200 steps."
defaults batch_size=256 train_epochs=1 workers="$(at_most_cores 128)" opt_level=O2 max_steps=200
train perf "$@"

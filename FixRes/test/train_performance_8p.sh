#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_listed_devices "Measure FixRes' training speed (phase 1, at 224 pixels) with eight devices: 1 epoch of at most 1000 steps."
training batch_size=512 train_epochs=1 workers="$(at_most_cores 72)" opt_level=O1 learning_rate=0.02 image_size=224 max_steps=1000
train perf "$@"

#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_one_device "Measure GENet's training speed on one device: 2 epochs of at most 200 steps."
training batch_size=128 train_epochs=2 max_steps=200 workers="$(at_most_cores 2)"
train perf "$@"

#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_listed_devices "Measure GENet's training speed on eight devices of one machine: 2 epochs."
training batch_size=1024 train_epochs=2 workers="$(at_most_cores 8)"
train perf "$@"

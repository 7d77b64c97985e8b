#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_machines "Measure GENet's training speed on several machines: 2 epochs."
training batch_size=1024 train_epochs=2 workers="$(at_most_cores 8)"
train perf "$@"

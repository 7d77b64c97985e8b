#!/usr/bin/env bash
# shellcheck source=GENet/test/model.sh
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

about "Measure GENet's training speed on eight devices of one machine: 2 epochs."
on_listed_devices
training
defaults batch_size=1024 train_epochs=2 workers="$(at_most_cores 8)"
parse "$@"
demo_data_unless_given cifar10
train perf

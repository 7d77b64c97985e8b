#!/usr/bin/env bash
# shellcheck source=GENet/test/model.sh
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

about "Train GENet on CIFAR-10 with eight devices of one machine: 300 epochs."
on_listed_devices
training
defaults batch_size=1024 train_epochs=300 workers="$(at_most_cores 8)"
parse "$@"
require data_path
train acc

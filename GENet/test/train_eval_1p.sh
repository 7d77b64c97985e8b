#!/usr/bin/env bash
# shellcheck source=GENet/test/model.sh
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

about "Evaluate GENet weights on CIFAR-10's test set with one device."
on_one_device
evaluation_options
defaults batch_size=128 workers="$(at_most_cores 2)" opt_level=O2
parse "$@"
require data_path
evaluate

#!/usr/bin/env bash
# shellcheck source=GENet/test/model.sh
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

about "Evaluate GENet weights on CIFAR-10's test set with eight devices."
on_listed_devices
evaluation_options
defaults batch_size=1024 workers="$(at_most_cores 8)" opt_level=O2
parse "$@"
require data_path
evaluate

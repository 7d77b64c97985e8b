#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_listed_devices "Evaluate HRNet weights on the validation set of ImageNet with eight devices of one machine."
evaluation batch_size=256 workers="$(at_most_cores 128)" opt_level=O0
evaluate "$@"

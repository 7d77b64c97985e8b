#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_one_device "Evaluate HRNet weights on the validation set of ImageNet with one device."
evaluation batch_size=256 workers="$(at_most_cores 64)" opt_level=O0
evaluate "$@"

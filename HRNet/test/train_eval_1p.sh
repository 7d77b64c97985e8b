#!/usr/bin/env bash
# shellcheck source=HRNet/test/model.sh
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_one_device "Evaluate HRNet weights on the validation set of ImageNet with one device."
evaluation batch_size=256 workers="$(at_most_cores 64)" opt_level=O0
evaluate "$@"

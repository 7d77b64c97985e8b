#!/usr/bin/env bash
# shellcheck source=ResNet50/test/model.sh
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

about "Evaluate ResNet50 weights on ImageNet's validation set with one device."
on_one_device
evaluation
defaults batch_size=512 workers="$(at_most_cores 64)" opt_level=O2
parse "$@"
require data_path
evaluate

#!/usr/bin/env bash
# shellcheck source=ResNet50/test/model.sh
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_one_device "Evaluate ResNet50 weights on ImageNet's validation set with one device."
evaluating batch_size=512 workers="$(at_most_cores 64)" opt_level=O2
evaluate "$@"

#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_one_device "Evaluate ResNet50 weights on ImageNet's validation set with one device."
evaluating batch_size=512 workers="$(at_most_cores 64)" opt_level=O2
evaluate "$@"

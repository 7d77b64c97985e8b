#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_listed_devices "Evaluate ResNet50 weights on ImageNet's validation set with eight devices."
evaluating batch_size=4096 workers="$(at_most_cores 128)" opt_level=O2
evaluate "$@"

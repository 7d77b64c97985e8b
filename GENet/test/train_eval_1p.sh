#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_one_device "Evaluate GENet weights on CIFAR-10's test set with one device."
evaluation batch_size=128 workers="$(at_most_cores 2)" opt_level=O2
evaluate "$@"

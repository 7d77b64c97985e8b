#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_listed_devices "Evaluate GENet weights on CIFAR-10's test set with eight devices."
evaluation batch_size=1024 workers="$(at_most_cores 8)" opt_level=O2
evaluate "$@"

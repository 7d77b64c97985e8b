#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_listed_devices "Evaluate EfficientNet-B3 weights on ImageNet's validation set with eight devices."
evaluation batch_size=200 workers="$(at_most_cores 192)" opt_level=O2
evaluate 8npu_full "$@"

#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_one_device "Evaluate EfficientNet-B3 weights on ImageNet's validation set with one device."
evaluation batch_size=200 workers="$(at_most_cores 24)" opt_level=O2
evaluate 1npu_full "$@"

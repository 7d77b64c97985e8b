#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"
on_one_device "Evaluate MobileNetV2 weights on ImageNet's validation set with one device."
evaluate "$@"

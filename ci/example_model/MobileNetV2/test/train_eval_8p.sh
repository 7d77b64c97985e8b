#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"
on_listed_devices "Evaluate MobileNetV2 weights on ImageNet's validation set with eight devices."
evaluate "$@"

#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"
on_listed_devices "Train MobileNetV2 on ImageNet with eight devices of one machine: 300 epochs."
train acc "$@"

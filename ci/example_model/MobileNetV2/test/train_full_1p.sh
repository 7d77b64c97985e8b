#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"
on_one_device "Train MobileNetV2 on ImageNet with one device: 300 epochs."
train acc "$@"

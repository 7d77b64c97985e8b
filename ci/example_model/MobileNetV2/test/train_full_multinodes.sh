#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"
on_machines "Train MobileNetV2 on ImageNet on several machines: 300 epochs."
train acc "$@"

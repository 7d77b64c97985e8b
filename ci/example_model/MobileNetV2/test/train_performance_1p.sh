#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"
on_one_device "Measure MobileNetV2's training speed on one device: 1 epoch of at most 1001 steps."
train perf "$@"

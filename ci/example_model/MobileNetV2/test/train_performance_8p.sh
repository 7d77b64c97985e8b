#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"
on_listed_devices "Measure MobileNetV2's training speed on eight devices of one machine: 1 epoch of at most 1001 steps."
train perf "$@"

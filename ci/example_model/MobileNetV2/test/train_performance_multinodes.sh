#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"
on_machines "Measure MobileNetV2's training speed on several machines: 1 epoch of at most 1001 steps."
train perf "$@"

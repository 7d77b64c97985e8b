#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_one_device "FixRes, phase 3 of 3: evaluate weights on ImageNet's validation set at 384 pixels with one device."
evaluating batch_size=64 workers="$(at_most_cores 9)" opt_level=O0 image_size=384
evaluate "$@"

#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_listed_devices "FixRes, phase 3 of 3: evaluate weights on ImageNet's validation set at 384 pixels with eight devices."
evaluating batch_size=512 workers="$(at_most_cores 72)" opt_level=O0 image_size=384
evaluate "$@"

#!/usr/bin/env bash
# shellcheck source=FixRes/test/phases.sh
source "$(dirname "${BASH_SOURCE[0]}")/phases.sh"

about "FixRes, phase 1 of 3: train a ResNet-50 on ImageNet at 224 pixels with one device, 120 epochs."
training_options
defaults batch_size=64 train_epochs=120 workers="$(at_most_cores 9)" opt_level=O1 learning_rate=0.02 image_size=224
parse "$@"
require data_path
on_one_card

run_case FixRes_for_PyTorch acc train \
    python3 -u main_resnet50_scratch.py "${flags[@]}" "${training_flags[@]}" ${pth_path:+"--pth-path=$pth_path"}

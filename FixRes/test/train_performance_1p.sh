#!/usr/bin/env bash
# shellcheck source=FixRes/test/phases.sh
source "$(dirname "${BASH_SOURCE[0]}")/phases.sh"

about "Measure FixRes' training speed (phase 1: ResNet-50 at 224 pixels) with one device: 1 epoch of at most 1000 steps."
training_options
defaults batch_size=64 train_epochs=1 workers="$(at_most_cores 9)" opt_level=O1 learning_rate=0.02 image_size=224 max_steps=1000
parse "$@"
demo_data_unless_given imagenet
on_one_card

run_case FixRes_for_PyTorch perf train \
    python3 -u main_resnet50_scratch.py "${flags[@]}" "${training_flags[@]}" ${pth_path:+"--pth-path=$pth_path"}

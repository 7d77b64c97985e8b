#!/usr/bin/env bash
# shellcheck source=FixRes/test/phases.sh
source "$(dirname "${BASH_SOURCE[0]}")/phases.sh"

about "FixRes, phase 3 of 3: evaluate weights on ImageNet's validation set at 384 pixels with eight devices of one machine."
case_example="--data_path=/data/imagenet --pth_path=test/output/0/finetune"
option architecture ResNet50 "ResNet50|PNASNet|IGAM_Resnext101_32x48d|EfficientNet" "the network"
defaults batch_size=512 train_epochs=1 workers="$(at_most_cores 72)" opt_level=O0 image_size=384
parse "$@"
require data_path
weights_of_an_earlier_phase eval
on_eight_cards

run_case FixRes_for_PyTorch eval eval \
    python3 -u main_evaluate_imnet.py "${flags[@]}" --architecture="$architecture" --weight-path="$pth_path"

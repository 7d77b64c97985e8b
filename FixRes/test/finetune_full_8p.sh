#!/usr/bin/env bash
# shellcheck source=FixRes/test/phases.sh
source "$(dirname "${BASH_SOURCE[0]}")/phases.sh"

about "FixRes, phase 2 of 3: adapt the classifier and the last BatchNorm to 384 pixels with eight devices of one machine, 60 epochs."
case_example="--data_path=/data/imagenet --pth_path=test/output/0"
finetuning_options
defaults batch_size=512 train_epochs=60 workers="$(at_most_cores 72)" opt_level=O1 learning_rate=0.001 image_size=384
parse "$@"
require data_path
weights_of_an_earlier_phase finetune
on_eight_cards

run_case FixRes_for_PyTorch acc finetune \
    python3 -u main_finetune.py "${flags[@]}" "${training_flags[@]}" --architecture="$architecture" --resnet-weight-path="$pth_path" \
    --transforms="$transforms" --lr-scaling="$lr_scaling"

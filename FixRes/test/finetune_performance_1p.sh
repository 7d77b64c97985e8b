#!/usr/bin/env bash
# shellcheck source=FixRes/test/phases.sh
source "$(dirname "${BASH_SOURCE[0]}")/phases.sh"

about "Measure the speed of FixRes' fine-tuning (phase 2, at 384 pixels) with one device: 1 epoch of at most 1000 steps."
case_example="--data_path=/data/imagenet --pth_path=test/output/0"
finetuning_options
defaults batch_size=64 train_epochs=1 workers="$(at_most_cores 9)" opt_level=O1 learning_rate=0.001 image_size=384 max_steps=1000
parse "$@"
demo_data_unless_given imagenet
weights_of_an_earlier_phase finetune
on_one_card

run_case FixRes_for_PyTorch perf finetune \
    python3 -u main_finetune.py "${flags[@]}" "${training_flags[@]}" --architecture="$architecture" --resnet-weight-path="$pth_path" \
    --transforms="$transforms" --lr-scaling="$lr_scaling"

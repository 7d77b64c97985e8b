#!/usr/bin/env bash
# shellcheck source=GENet/test/options.sh
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"

about "Train GENet on CIFAR-10 with one device: 300 epochs."
epoch_step="" test_batch_size=""
defaults batch_size=128 train_epochs=300 workers="$(at_most_cores 2)" opt_level=O2
option epoch_step "[60,120,160,200]" text "epochs at which the learning rate falls to a fifth"
option test_batch_size 128 positive "images per evaluation step of one rank"
parse "$@"
require data_path

run_case GENET acc train \
    python3 -u train.py --DataPath="$data_path" --dataset="$dataset" --device="$device" --device_list="$device_id" \
    --depth="$depth" --width="$width" --extent="$extent" --extra_params="$extra_params" --mlp="$mlp" --seed="$seed" \
    --batch_size="$batch_size" --test_batch_size="$test_batch_size" --workers="$workers" \
    --amp --opt_level="$opt_level" --loss_scale=32 --no_epochs="$train_epochs" --epoch_step="$epoch_step" \
    ${learning_rate:+"--learning_rate=$learning_rate"} ${pth_path:+"--pth_path=$pth_path"} ${max_steps:+"--max_steps=$max_steps"} \
    ${image_size:+"--image_size=$image_size"} --output_path="$output_path" ${resume_from:+"--resume=$resume_from"} \
    --checkpoint_steps="$checkpoint_steps"

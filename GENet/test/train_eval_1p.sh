#!/usr/bin/env bash
# shellcheck source=GENet/test/options.sh
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"

about "Evaluate GENet weights on CIFAR-10's test set with one device."
case_example="--data_path=/data/cifar --pth_path=model_best.pth.tar"
defaults batch_size=128 train_epochs=1 workers="$(at_most_cores 2)" opt_level=O2
parse "$@"
require data_path
require pth_path

run_case GENET eval eval \
    python3 -u train.py --DataPath="$data_path" --dataset="$dataset" --eval --pth_path="$pth_path" \
    --device="$device" --device_list="$device_id" \
    --depth="$depth" --width="$width" --extent="$extent" --extra_params="$extra_params" --mlp="$mlp" --seed="$seed" \
    --test_batch_size="$((batch_size / case_ranks))" --workers="$workers" \
    --amp --opt_level="$opt_level" --loss_scale=32 \
    ${max_steps:+"--max_steps=$max_steps"} ${image_size:+"--image_size=$image_size"} --output_path="$output_path"

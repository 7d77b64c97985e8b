#!/usr/bin/env bash
# shellcheck source=common/test.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../common/test.sh"

about "Measure ResNet50's training speed on eight devices of one machine: 3 epochs."
arch=""
defaults batch_size=4096 train_epochs=3 workers="$(at_most_cores 128)" opt_level=O2 seed=49
option arch resnet50 text "the network"
parse "$@"
one_rank_per_listed_device
demo_data_unless_given imagenet

run_case ResNet50_ID0095_for_PyTorch perf train \
    python3 -u main.py --data="$data_path" --device="$device" --device-list="$device_list" --multiprocessing-distributed \
    --arch="$arch" --batch-size="$batch_size" --epochs="$train_epochs" --workers="$workers" \
    --lr-schedule=cosine --warmup=8 --label-smoothing=0.1 --smoothing-form=off-class --no-decay=bn \
    --opt-level="$opt_level" --static-loss-scale=1024 ${learning_rate:+"--lr=$learning_rate"} ${pth_path:+"--pth-path=$pth_path"} \
    ${max_steps:+"--max-steps=$max_steps"} ${image_size:+"--image-size=$image_size"} ${skip_bad_images:+--skip-bad-images} \
    ${seed:+"--seed=$seed"} --save-ckpt-path="$output_path" --workspace="$output_path" --raport-file=metrics.jsonl ${resume_from:+"--resume=$resume_from"} \
    --checkpoint-steps="$checkpoint_steps"

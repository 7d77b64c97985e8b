#!/usr/bin/env bash
# shellcheck source=common/test.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../common/test.sh"

about "Measure ResNet50's training speed on one device: 1 epoch of at most 1001 steps."
arch=""
defaults batch_size=512 train_epochs=1 workers="$(at_most_cores 64)" opt_level=O2 max_steps=1001
option arch resnet50 text "the network"
parse "$@"
demo_data_unless_given imagenet

run_case ResNet50_ID0095_for_PyTorch perf train \
    python3 -u main.py --data="$data_path" --device="$device" --npu="$device_id" \
    --arch="$arch" --batch-size="$batch_size" --epochs="$train_epochs" --workers="$workers" \
    --lr-schedule=cosine --warmup=5 --label-smoothing=0.1 --no-decay=bias --zero-init-residual --normal-fc \
    --opt-level="$opt_level" --static-loss-scale=1024 ${learning_rate:+"--lr=$learning_rate"} ${pth_path:+"--pth-path=$pth_path"} \
    ${max_steps:+"--max-steps=$max_steps"} ${image_size:+"--image-size=$image_size"} ${skip_bad_images:+--skip-bad-images} \
    ${seed:+"--seed=$seed"} --save-ckpt-path="$output_path" --workspace="$output_path" --raport-file=metrics.jsonl ${resume_from:+"--resume=$resume_from"} \
    --checkpoint-steps="$checkpoint_steps"

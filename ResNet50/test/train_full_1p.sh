#!/usr/bin/env bash
# shellcheck source=common/test.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../common/test.sh"

about "Train ResNet50 on ImageNet with one device: 90 epochs."
arch=""
defaults batch_size=512 train_epochs=90 workers="$(at_most_cores 64)" opt_level=O2
option arch resnet50 text "the network"
parse "$@"
require data_path

run_case ResNet50_for_PyTorch acc train \
    python3 -u main.py --data="$data_path" --device="$device" --npu="$device_id" \
    --arch="$arch" --batch-size="$batch_size" --epochs="$train_epochs" --workers="$workers" \
    --lr-schedule=cosine --warmup=5 --label-smoothing=0.1 --no-decay=bias --zero-init-residual --normal-fc \
    --opt-level="$opt_level" --static-loss-scale=1024 ${learning_rate:+"--lr=$learning_rate"} ${pth_path:+"--pth-path=$pth_path"} \
    ${max_steps:+"--max-steps=$max_steps"} ${image_size:+"--image-size=$image_size"} ${skip_bad_images:+--skip-bad-images} \
    ${seed:+"--seed=$seed"} --save-ckpt-path="$output_path" --workspace="$output_path" --raport-file=metrics.jsonl ${resume_from:+"--resume=$resume_from"} \
    --checkpoint-steps="$checkpoint_steps"

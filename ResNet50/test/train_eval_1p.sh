#!/usr/bin/env bash
# shellcheck source=common/test.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../common/test.sh"

about "Evaluate ResNet50 weights on ImageNet's validation set with one device."
case_example="--data_path=/data/imagenet --pth_path=model_best.pth.tar"
arch="" num_classes=""
defaults batch_size=512 train_epochs=1 workers="$(at_most_cores 64)" opt_level=O2
option arch resnet50 text "the network"
option num_classes 1000 positive "outputs of the network"
option checkpoint "" text "same as pth_path"
parse "$@"
pth_path=${pth_path:-$checkpoint}
require data_path
require pth_path

run_case ResNet50_for_PyTorch eval eval \
    python3 -u main.py --data="$data_path" --device="$device" --npu="$device_id" --evaluate --pth-path="$pth_path" \
    --arch="$arch" --num-classes="$num_classes" --batch-size="$batch_size" --workers="$workers" --opt-level="$opt_level" \
    --label-smoothing=0.1 ${max_steps:+"--max-steps=$max_steps"} ${image_size:+"--image-size=$image_size"} \
    ${skip_bad_images:+--skip-bad-images} --workspace="$output_path" --raport-file=metrics.jsonl

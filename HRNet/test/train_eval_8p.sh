#!/usr/bin/env bash
# shellcheck source=common/test.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../common/test.sh"

about "Evaluate HRNet weights on the validation set of ImageNet with eight devices of one machine."
case_example="--data_path=/data/imagenet --pth_path=model_best.pth.tar"
cfg="" num_classes="" batch_per_rank=1
defaults batch_size=256 workers="$(at_most_cores 128)" opt_level=O0
option cfg experiments/cls_hrnet_w18_sgd_lr5e-2_wd1e-4_bs32_x100.yaml text "the network: a YAML file of experiments/"
option num_classes 1000 positive "outputs of the network"
parse "$@"
[[ ! -f $cfg ]] || cfg=$(absolute "$cfg") # a relative path is of the folder one stands in, or of the model's
require data_path
require pth_path
one_rank_per_listed_device

run_case HRNet_ID1780_for_PyTorch eval eval \
    python3 -u tools/valid.py "$data_path" --cfg="$cfg" --device="$device" --device-list="$device_list" --testModel="$pth_path" \
    --bs="$batch_size" --nproc="$workers" --opt-level="$opt_level" ${max_steps:+"--max-steps=$max_steps"} \
    ${skip_bad_images:+--skip-bad-images} --output-path="$output_path" \
    MODEL.NUM_CLASSES "$num_classes" ${image_size:+MODEL.IMAGE_SIZE "[$image_size, $image_size]"}

#!/usr/bin/env bash
# shellcheck source=common/test.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../common/test.sh"

about "Measure the training speed of HRNet-W18 on eight devices of one machine: 1 epoch of at most 200 steps."
cfg="" num_classes="" batch_per_rank=1
defaults batch_size=256 train_epochs=1 workers="$(at_most_cores 128)" opt_level=O2 max_steps=200
option cfg experiments/cls_hrnet_w18_sgd_lr5e-2_wd1e-4_bs32_x100.yaml text "the network: a YAML file of experiments/"
option learning_rate 0.1 number "learning rate of one rank; the number of ranks multiplies it"
option num_classes 1000 positive "outputs of the network"
parse "$@"
[[ ! -f $cfg ]] || cfg=$(absolute "$cfg") # a relative path is of the folder one stands in, or of the model's
one_rank_per_listed_device
demo_data_unless_given imagenet

run_case HRNet_ID1780_for_PyTorch perf train \
    python3 -u tools/train.py "$data_path" --cfg="$cfg" --device="$device" --device-list="$device_list" \
    --bs="$batch_size" --train-epochs="$train_epochs" --nproc="$workers" --lr="$learning_rate" --opt-level="$opt_level" \
    ${pth_path:+"--pretrained=$pth_path"} ${max_steps:+"--stop-step=$max_steps"} ${skip_bad_images:+--skip-bad-images} \
    --output-path="$output_path" ${seed:+"--seed=$seed"} ${resume_from:+"--resume=$resume_from"} \
    --checkpoint-steps="$checkpoint_steps" \
    TRAIN.RESUME False LOG_DIR "" PRINT_FREQ 100 MODEL.NUM_CLASSES "$num_classes" \
    ${image_size:+MODEL.IMAGE_SIZE "[$image_size, $image_size]"}

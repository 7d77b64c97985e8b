#!/usr/bin/env bash
# shellcheck source=common/test.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../common/test.sh"

about "Train EfficientNet-B3 on ImageNet with one device: 100 epochs."
defaults batch_size=128 train_epochs=100 workers="$(at_most_cores 24)" opt_level=O2
parse "$@"
require data_path
# The rate goes with the batch, and has a point: the configuration takes no integer for it.
learning_rate=$(awk "BEGIN { printf \"%.8f\", ${learning_rate:-0.2 * $batch_size / 128} }")
auto_resume=$([[ -n $resume ]] && echo True || echo False)

run_case EfficientNet-B3 acc train \
    python3 -u tools/train_net.py --cfg=configs/dds_baselines/effnet/EN-B3_dds_1npu_full.yaml --data-path="$data_path" \
    --device="$device" --device-id="$device_id" ${skip_bad_images:+--skip-bad-images} \
    OUT_DIR "$output_path" NUM_GPUS "$case_ranks" OPTIM.MAX_EPOCH "$train_epochs" OPTIM.BASE_LR "$learning_rate" \
    TRAIN.BATCH_SIZE "$batch_size" TEST.BATCH_SIZE 200 TRAIN.OPT_LEVEL "$opt_level" \
    DATA_LOADER.NUM_WORKERS $(((workers + case_ranks - 1) / case_ranks)) PREC_TIME.NUM_ITER 0 \
    ${max_steps:+TRAIN.MAX_STEPS "$max_steps"} ${image_size:+TRAIN.IM_SIZE "$image_size" TEST.IM_SIZE $((image_size * 8 / 7))} \
    ${pth_path:+TRAIN.WEIGHTS "$pth_path"} TRAIN.AUTO_RESUME "$auto_resume" TRAIN.SAVE_STEPS "$checkpoint_steps"

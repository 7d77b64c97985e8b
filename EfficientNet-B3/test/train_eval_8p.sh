#!/usr/bin/env bash
# shellcheck source=common/test.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../common/test.sh"

about "Evaluate EfficientNet-B3 weights on ImageNet's validation set with eight devices."
case_example="--data_path=/data/imagenet --pth_path=result/model.pyth"
defaults batch_size=200 workers="$(at_most_cores 192)" opt_level=O2
parse "$@"
require data_path
require pth_path
one_rank_per_listed_device

run_case EfficientNet-B3 eval eval \
    python3 -u tools/test_net.py --cfg=configs/dds_baselines/effnet/EN-B3_dds_8npu_full.yaml --data-path="$data_path" \
    --device="$device" --device-list="$device_list" ${skip_bad_images:+--skip-bad-images} \
    TEST.WEIGHTS "$pth_path" OUT_DIR "$output_path" NUM_GPUS "$case_ranks" TRAIN.BATCH_SIZE "$batch_size" TEST.BATCH_SIZE "$batch_size" \
    ${max_steps:+TEST.MAX_STEPS "$max_steps"} DATA_LOADER.NUM_WORKERS $(((workers + case_ranks - 1) / case_ranks)) TRAIN.OPT_LEVEL "$opt_level" \
    ${image_size:+TRAIN.IM_SIZE "$image_size" TEST.IM_SIZE $((image_size * 8 / 7))}

# shellcheck shell=bash disable=SC2034
# What the scripts of this model share: the flags and KEY VALUE pairs of its tools that options become. Flags come before pairs.
source "$(dirname "${BASH_SOURCE[0]}")/../../common/test.sh"

option seed "" 0..4294967295 "of everything random (empty: the configuration's, 1)"
option max_steps "" positive "end each training epoch, or the evaluation, after this many steps"
option num_classes 1000 positive "outputs of the network"
test_image_size="" workers_per_rank="" num_classes=""

# forward_common: what training and evaluation both take.
forward_common() {
    if [[ $case_devices == one ]]; then forward device_id; else forward device_list; fi
    forward nnodes node_rank --addr=master_addr master_port
    forward data_path device deterministic allow_tf32 skip_bad_images decoder amp_dtype
    [[ -z $image_size ]] || test_image_size=$((image_size * 8 / 7))
    workers_per_rank=$(share workers)
    forward "OUT_DIR =output_path" "NUM_GPUS =case_ranks" "TRAIN.BATCH_SIZE =batch_size" "TRAIN.OPT_LEVEL =opt_level" \
        "DATA_LOADER.NUM_WORKERS =workers_per_rank" "TRAIN.IM_SIZE =image_size" "TEST.IM_SIZE =test_image_size" \
        "MODEL.NUM_CLASSES =num_classes"
}

train() { # SUFFIX RECIPE OPTION…
    parse_case "$1" imagenet "${@:3}"
    # The rate goes with the batch, and has a point: the configuration takes no integer for it.
    learning_rate=$(awk -v rate="$learning_rate" -v batch="$batch_size" \
        'BEGIN { rate = sprintf("%.17g", rate == "" ? 0.2 * batch / 128 : rate); print rate (rate ~ /[.e]/ ? "" : ".0") }')
    local start=WEIGHTS
    [[ -z $new_classifier ]] || start=PRETRAINED # leaves the classifier out
    forward resume shuffle_shards compile dummy profile_steps
    forward_common
    forward "OPTIM.MAX_EPOCH =train_epochs" "OPTIM.BASE_LR =learning_rate" "TRAIN.ACCUMULATE =accumulate" \
        "TRAIN.MAX_STEPS =max_steps" "TRAIN.$start =pth_path" "RNG_SEED =seed" "TRAIN.SAVE_STEPS =checkpoint_steps" \
        "TRAIN.KEEP_CHECKPOINTS =keep_checkpoints"
    local test_batch=$(($([[ $case_devices == one ]] && echo 200 || echo 25) * case_ranks))
    run_case EfficientNet-B3 "$1" train python3 -u tools/train_net.py --cfg="configs/dds_baselines/effnet/EN-B3_dds_$2.yaml" \
        "${flags[@]}" TEST.BATCH_SIZE "$test_batch" PREC_TIME.NUM_ITER 0 TRAIN.AUTO_RESUME False
}

evaluate() { # RECIPE OPTION…
    parse_case eval imagenet "${@:2}"
    require pth_path
    forward use_ema
    forward_common
    forward "TEST.WEIGHTS =pth_path" "TEST.BATCH_SIZE =batch_size" "TEST.MAX_STEPS =max_steps"
    run_case EfficientNet-B3 eval eval python3 -u tools/test_net.py --cfg="configs/dds_baselines/effnet/EN-B3_dds_$1.yaml" \
        "${flags[@]}"
}

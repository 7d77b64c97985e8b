# shellcheck shell=bash disable=SC2034
# What the scripts of this model share: its options, and the words of tools/train.py and tools/valid.py that they become.
source "$(dirname "${BASH_SOURCE[0]}")/../../common/test.sh"

cfg="" num_classes="" batch_per_rank=1
option cfg experiments/cls_hrnet_w18_sgd_lr5e-2_wd1e-4_bs32_x100.yaml text "the network: a YAML file of experiments/"
option learning_rate 0.1 number "learning rate of one rank; the number of ranks and accumulate multiply it"
option accumulate "" positive "batches of each rank that make one update (empty: 1)"
option num_classes 1000 positive "outputs of the network"

# run_program SUFFIX KIND PROGRAM SETTING…: with the flags that training and evaluation share.
run_program() {
    [[ ! -f $cfg ]] || cfg=$(absolute "$cfg") # a relative path is of the folder one stands in, or of the model's
    [[ -z $image_size ]] || set -- "$@" MODEL.IMAGE_SIZE "[$image_size, $image_size]"
    if [[ $case_devices == one ]]; then forward device_id; else forward device_list; fi
    forward nnodes node_rank --addr=master_addr master_port
    forward --bs=batch_size --nproc=workers cfg device opt_level amp_dtype deterministic allow_tf32 skip_bad_images decoder \
        output_path
    run_case HRNet_ID1780_for_PyTorch "$1" "$2" python3 -u "$3" "$data_path" "${flags[@]}" \
        MODEL.NUM_CLASSES "$num_classes" "${@:4}"
}

train() { # SUFFIX OPTION…
    parse_case "$1" imagenet "${@:2}"
    forward --lr=learning_rate --pretrained=pth_path --stop-step=max_steps train_epochs new_classifier seed accumulate resume \
        checkpoint_steps keep_checkpoints shuffle_shards compile dummy profile_steps
    run_program "$1" train tools/train.py TRAIN.RESUME False LOG_DIR "" PRINT_FREQ 100
}

evaluate() { # OPTION…
    parse_case eval imagenet "$@"
    require pth_path
    forward --testModel=pth_path max_steps use_ema
    run_program eval eval tools/valid.py
}

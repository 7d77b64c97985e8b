# shellcheck shell=bash disable=SC2034
# What the scripts of this model share: its options, and the flags of train.py that they become.
source "$(dirname "${BASH_SOURCE[0]}")/../../common/test.sh"

case_example="--data_path=/data/cifar"
dataset="" depth="" width="" extent="" extra_params="" mlp="" epoch_step="" test_batch_size=""
without_options skip_bad_images decoder shuffle_shards # the files hold pixels, not compressed images: a batch file is good or not
option dataset cifar10 "cifar10|cifar100" "the data set"
option depth 16 positive "layers of the wide residual network, 6n + 4"
option width 8 positive "its widening factor"
option extent 0 "0|2|4|8" "pixels that one gathered value stands for; 0: the whole map"
option extra_params false "true|false|True|False" "gather with depthwise convolutions (GE-theta)"
option mlp false "true|false|True|False" "1x1 convolutions in the excite branch (with extra_params GE-theta-plus)"

training() { # NAME=DEFAULT…
    option epoch_step "[60,120,160,200]" text "epochs at which the learning rate falls to a fifth"
    option test_batch_size 128 positive "images per evaluation step of one rank"
    defaults opt_level=O2 seed=49 "$@"
}

train() { # SUFFIX OPTION…
    parse_case "$1" cifar10 "${@:2}"
    forward --no_epochs=train_epochs --pretrained=new_classifier batch_size epoch_step learning_rate seed accumulate resume \
        checkpoint_steps keep_checkpoints compile dummy profile_steps
    run train "$1"
}

evaluate() { # OPTION…
    local test_batch_size
    parse_case eval cifar10 "$@"
    test_batch_size=$(share "$batch_size")
    require pth_path
    forward use_ema
    run eval eval --eval
}

run() { # KIND SUFFIX FLAG…
    if [[ $case_devices == one ]]; then forward --device_list=device_id
    else forward device_list && flags+=(--multiprocessing_distributed); fi
    forward --world_size=nnodes --rank=node_rank --addr=master_addr master_port
    forward --DataPath=data_path dataset device depth width extent extra_params mlp test_batch_size workers opt_level amp_dtype \
        pth_path max_steps image_size deterministic allow_tf32 output_path
    run_case GENET "$2" "$1" python3 -u train.py "${flags[@]}" --amp --loss_scale=32 "${@:3}"
}

# shellcheck shell=bash disable=SC2034
# What the scripts of this model share: its options, the flags of train.py that they become, and the recipe.
source "$(dirname "${BASH_SOURCE[0]}")/../../common/test.sh"

num_classes="" model_ema=""
option num_classes 1000 positive "outputs of the network"
defaults batch_size=256 train_epochs=300 workers="$(at_most_cores 64)" opt_level=O2

train() { # SUFFIX OPTION…
    option model_ema "" switch "also average the weights over the updates; the better network counts"
    [[ $1 == acc ]] || defaults train_epochs=1 max_steps=1001
    parse_case "$1" imagenet "${@:2}"
    run "$1" train
}

evaluate() { # OPTION…
    evaluation batch_size=256
    parse_case eval imagenet "$@"
    require pth_path
    run eval eval --test-only
}

run() { # SUFFIX KIND FLAG…
    [[ $case_devices == listed ]] || device_list=$device_id
    forward --addr=master_addr --epochs=train_epochs --lr=learning_rate --weights=pth_path --output-dir=output_path \
        data_path device device_list nnodes node_rank master_port num_classes image_size batch_size workers opt_level amp_dtype seed \
        resume accumulate max_steps deterministic allow_tf32 skip_bad_images decoder new_classifier model_ema use_ema compile dummy \
        profile_steps checkpoint_steps keep_checkpoints shuffle_shards
    run_case MobileNetV2_for_PyTorch "$1" "$2" python3 -u train.py "${flags[@]}" "${@:3}"
}

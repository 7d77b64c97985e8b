# shellcheck shell=bash disable=SC2034
# What the scripts of this model share: its options, the flags of main.py that they become, and the two recipes.
source "$(dirname "${BASH_SOURCE[0]}")/../../common/test.sh"

arch="" num_classes="" checkpoint=""
option arch resnet50 text "the network"
option num_classes 1000 positive "outputs of the network"
one_card=(--lr-schedule=cosine --warmup=5 --label-smoothing=0.1 --no-decay=bias --zero-init-residual --normal-fc)
eight_cards=(--lr-schedule=cosine --warmup=8 --label-smoothing=0.1 --smoothing-form=off-class --no-decay=bn)

# forward_common: what training and evaluation both take.
forward_common() {
    if [[ $case_devices == one ]]; then forward --npu=device_id
    else forward device_list && flags+=(--multiprocessing-distributed); fi
    forward --world-size=nnodes --rank=node_rank --addr=master_addr master_port
    forward --data=data_path --workspace=output_path device arch num_classes image_size batch_size workers opt_level amp_dtype \
        pth_path max_steps deterministic allow_tf32 skip_bad_images decoder
}

train() { # NETWORK SUFFIX RECIPE OPTION…
    local -n recipe=$3
    parse_case "$2" imagenet "${@:4}"
    forward_common
    forward --epochs=train_epochs --lr=learning_rate --save-ckpt-path=output_path new_classifier seed accumulate resume \
        checkpoint_steps keep_checkpoints shuffle_shards compile dummy profile_steps
    run_case "$1" "$2" train python3 -u main.py "${flags[@]}" --static-loss-scale=1024 --raport-file=metrics.jsonl "${recipe[@]}"
}

# Evaluations have one more option.
evaluating() { # NAME=DEFAULT…
    evaluation "$@"
    option checkpoint "" text "same as pth_path"
}

evaluate() { # OPTION…
    parse_case eval imagenet "$@"
    pth_path=${pth_path:-$checkpoint}
    require pth_path
    forward_common
    forward use_ema
    run_case ResNet50_for_PyTorch eval eval python3 -u main.py "${flags[@]}" --evaluate --label-smoothing=0.1 \
        --raport-file=metrics.jsonl
}

# shellcheck shell=bash disable=SC2034
# What the scripts of this model share: its options, the flags of main.py that they become, and the two recipes.
source "$(dirname "${BASH_SOURCE[0]}")/../../common/test.sh"

arch="" num_classes="" checkpoint=""
option arch resnet50 text "the network"
option num_classes 1000 positive "outputs of the network"
one_card=(--lr-schedule=cosine --warmup=5 --label-smoothing=0.1 --no-decay=bias --zero-init-residual --normal-fc)
eight_cards=(--lr-schedule=cosine --warmup=8 --label-smoothing=0.1 --smoothing-form=off-class --no-decay=bn)

forward_devices() {
    if [[ $case_devices == one ]]; then forward --npu=device_id
    else forward --device-list=device_list && flags+=(--multiprocessing-distributed); fi
    forward --world-size=nnodes --rank=node_rank --addr=master_addr --master-port=master_port
}

train() { # NETWORK SUFFIX RECIPE OPTION…
    local -n recipe=$3
    parse_case "$2" imagenet "${@:4}"
    forward_devices
    forward --data=data_path --device=device --arch=arch --num-classes=num_classes --batch-size=batch_size --epochs=train_epochs \
        --workers=workers --opt-level=opt_level --lr=learning_rate --pth-path=pth_path --new-classifier=new_classifier \
        --max-steps=max_steps --image-size=image_size \
        --deterministic=deterministic --allow-tf32=allow_tf32 --skip-bad-images=skip_bad_images --seed=seed --amp-dtype=amp_dtype \
        --decoder=decoder --shuffle-shards=shuffle_shards --compile=compile --dummy=dummy --profile-steps=profile_steps \
        --accumulate=accumulate --save-ckpt-path=output_path --workspace=output_path --resume=resume \
        --checkpoint-steps=checkpoint_steps --keep-checkpoints=keep_checkpoints
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
    forward_devices
    forward --data=data_path --device=device --pth-path=pth_path --arch=arch --num-classes=num_classes --batch-size=batch_size \
        --workers=workers --opt-level=opt_level --max-steps=max_steps --image-size=image_size --skip-bad-images=skip_bad_images \
        --decoder=decoder --deterministic=deterministic --allow-tf32=allow_tf32 --amp-dtype=amp_dtype --use-ema=use_ema \
        --workspace=output_path
    run_case ResNet50_for_PyTorch eval eval python3 -u main.py "${flags[@]}" --evaluate --label-smoothing=0.1 \
        --raport-file=metrics.jsonl
}

# shellcheck shell=bash disable=SC2034
# What the scripts of this model share: its options, the flags of its three programs that they become, weights of an earlier phase.
source "$(dirname "${BASH_SOURCE[0]}")/../../common/test.sh"

num_classes="" eval_freq="" architecture="" transforms="" lr_scaling="" resize=""
option num_classes 1000 positive "outputs of the network"
option resize height "height|short-side" "what evaluation's resize sets; height: as upstream"

training() { # NAME=DEFAULT…
    option seed 0 0..4294967295 "of the first weights, the order and the augmentation"
    option eval_freq 10 positive "epochs between evaluations; the last epoch is always evaluated"
    defaults "$@"
}

finetuning() { # NAME=DEFAULT…
    training "$@"
    any_architecture
    option transforms v1 "v1|v2" "training images: as in evaluation (v1), or with upstream's mild augmentation (v2)"
    option lr_scaling global-batch "global-batch|none" "whether the rate grows with the global batch; none: as in the Ascend port"
    case_example="--data_path=/data/imagenet --pth_path=test/output/0"
}

evaluating() { # NAME=DEFAULT…
    evaluation "$@"
    any_architecture
    case_example="--data_path=/data/imagenet --pth_path=test/output/0/finetune"
}

any_architecture() { option architecture ResNet50 "ResNet50|PNASNet|IGAM_Resnext101_32x48d|EfficientNet" "the network"; }

train() { # SUFFIX OPTION…
    parse_case "$1" imagenet "${@:2}"
    forward_training
    forward pth_path
    run_case FixRes_for_PyTorch "$1" train python3 -u main_resnet50_scratch.py "${flags[@]}"
}

finetune() { # SUFFIX OPTION…
    parse_case "$1" imagenet "${@:2}"
    weights_of_an_earlier_phase finetune
    forward_training
    forward --resnet-weight-path=pth_path architecture transforms lr_scaling
    run_case FixRes_for_PyTorch "$1" finetune python3 -u main_finetune.py "${flags[@]}"
}

evaluate() { # OPTION…
    parse_case eval imagenet "$@"
    weights_of_an_earlier_phase eval
    forward_common
    forward --weight-path=pth_path architecture use_ema
    run_case FixRes_for_PyTorch eval eval python3 -u main_evaluate_imnet.py "${flags[@]}"
}

# weights_of_an_earlier_phase NAME: --pth_path is required. Where it lies in the output path, this phase writes to NAME/ in there,
# so that a new run does not set the weights aside with the results of an earlier one.
weights_of_an_earlier_phase() {
    require pth_path
    local folder=$pth_path
    [[ -d $folder ]] || folder=$(dirname "$folder")
    [[ $folder -ef $output_path ]] || return 0
    output_path=$output_path/$1
}

forward_training() {
    forward_common
    flags+=(--checkpoint-file="$output_path/checkpoint.pth.tar")
    forward --epochs=train_epochs learning_rate eval_freq new_classifier seed accumulate resume checkpoint_steps keep_checkpoints \
        shuffle_shards compile dummy profile_steps
}

# The programs count the images, and the processes, of one card, the training process among them.
forward_common() {
    flags+=(--num-tasks="$case_ranks")
    if [[ $case_devices == one ]]; then forward --local-rank=device_id; else forward device_list; fi
    forward nnodes node_rank --addr=master_addr master_port
    flags+=(--batch="$((batch_size / case_ranks))" --workers="$(($(share "$workers") + 1))")
    flags+=(--metrics-file="$output_path/metrics.jsonl")
    forward --imnet-path=data_path --input-size=image_size device num_classes resize opt_level amp_dtype max_steps deterministic \
        allow_tf32 skip_bad_images decoder
}

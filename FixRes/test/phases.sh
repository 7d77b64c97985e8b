# shellcheck shell=bash disable=SC2034
# What FixRes' scripts share: the options and flags of all phases, and weights that come from an earlier phase.
# shellcheck source=common/test.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../common/test.sh"

num_classes="" eval_freq="" architecture="" transforms="" lr_scaling="" resize=""
option num_classes 1000 positive "outputs of the network"
option resize height "height|short-side" "what evaluation's resize sets; height: as upstream"
option seed 0 natural "of the first weights, the order and the augmentation"

training_options() {
    option eval_freq 10 positive "epochs between evaluations; the last epoch is always evaluated"
}

finetuning_options() {
    training_options
    option architecture ResNet50 "ResNet50|PNASNet|IGAM_Resnext101_32x48d|EfficientNet" "the network"
    option transforms v1 "v1|v2" "training images: as in evaluation (v1), or with upstream's mild augmentation (v2)"
    option lr_scaling global-batch "global-batch|none" "whether the learning rate grows with the global batch; none: as in the Ascend port"
}

# weights_of_an_earlier_phase NAME: --pth_path is required. Where it lies in the output path, this phase writes to NAME/ in there,
# so that a new run does not set the weights aside with the results of an earlier one.
weights_of_an_earlier_phase() {
    require pth_path
    local folder=$pth_path
    [[ -d $folder ]] || folder=$(dirname "$folder")
    if [[ $folder -ef $output_path ]]; then
        output_path=$output_path/$1
        resume_from=""
        [[ -z $resume || ! -f $output_path/checkpoint.pth.tar ]] || resume_from=$output_path/checkpoint.pth.tar
    fi
}

on_one_card() {
    cards=(--num-tasks=1 --local-rank="$device_id")
    share_among_cards
}

on_eight_cards() {
    one_rank_per_listed_device
    cards=(--num-tasks="$case_ranks" --device-list="$device_list")
    share_among_cards
}

# Set `flags`, the flags of every phase, and `training_flags`, those of the two that train.
share_among_cards() {
    ((batch_size % case_ranks == 0)) || fail "--batch_size=$batch_size cannot be divided among $case_ranks ranks; take a multiple of $case_ranks"
    flags=("${cards[@]}" --imnet-path="$data_path" --device="$device" --batch="$((batch_size / case_ranks))"
        --workers="$(((workers + case_ranks - 1) / case_ranks + 1))" --input-size="$image_size" --num-classes="$num_classes"
        --resize="$resize" --opt-level="$opt_level" ${max_steps:+"--max-steps=$max_steps"} ${skip_bad_images:+--skip-bad-images}
        --seed="$seed" --metrics-file="$output_path/metrics.jsonl")
    training_flags=(--learning-rate="$learning_rate" --epochs="$train_epochs" --eval-freq="$eval_freq"
        --checkpoint-file="$output_path/checkpoint.pth.tar" --checkpoint-steps="$checkpoint_steps" ${resume_from:+"--resume=$resume_from"})
}

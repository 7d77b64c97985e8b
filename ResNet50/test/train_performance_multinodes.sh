#!/usr/bin/env bash
# shellcheck source=common/test.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../common/test.sh"

about "Measure ResNet50's training speed on several machines: 3 epochs. Run it on each of them, with its own --node_rank."
case_example="--data_path=/data/imagenet --batch_size=8192 --nnodes=2 --node_rank=0 --local_addr=10.0.0.1 --master_addr=10.0.0.1"
arch="" nnodes="" node_rank="" local_addr="" master_addr="" master_port=""
defaults batch_size=4096 train_epochs=3 workers="$(at_most_cores 128)" opt_level=O2 seed=49
option nnodes 1 positive "number of machines"
option node_rank 0 natural "number of this machine, from 0"
option local_addr 127.0.0.1 text "address of this machine, in the network of master_addr"
option master_addr 127.0.0.1 text "address of machine 0"
option master_port 29501 positive "free port on machine 0"
option arch resnet50 text "the network"
parse "$@"
require data_path
one_rank_per_listed_device "$nnodes"
export HCCL_IF_IP=$local_addr
((node_rank == 0)) || no_report=1 # rank 0, which reports, is on machine 0

run_case ResNet50_ID0095_for_PyTorch perf train \
    python3 -u main.py --data="$data_path" --device="$device" --device-list="$device_list" --multiprocessing-distributed \
    --arch="$arch" --batch-size="$batch_size" --epochs="$train_epochs" --workers="$workers" \
    --world-size="$nnodes" --rank="$node_rank" --addr="$master_addr" --master-port="$master_port" \
    --lr-schedule=cosine --warmup=8 --label-smoothing=0.1 --smoothing-form=off-class --no-decay=bn \
    --opt-level="$opt_level" --static-loss-scale=1024 ${learning_rate:+"--lr=$learning_rate"} ${pth_path:+"--pth-path=$pth_path"} \
    ${max_steps:+"--max-steps=$max_steps"} ${image_size:+"--image-size=$image_size"} ${skip_bad_images:+--skip-bad-images} \
    ${seed:+"--seed=$seed"} --save-ckpt-path="$output_path" --workspace="$output_path" --raport-file=metrics.jsonl ${resume_from:+"--resume=$resume_from"} \
    --checkpoint-steps="$checkpoint_steps"

#!/usr/bin/env bash
# shellcheck source=ResNet50/test/model.sh
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

about "Measure ResNet50's training speed on several machines: 3 epochs. Run it on each of them, with its own --node_rank."
on_listed_devices
machines
defaults batch_size=4096 train_epochs=3 workers="$(at_most_cores 128)" opt_level=O2 seed=49
parse "$@"
require data_path
export HCCL_IF_IP=$local_addr
((node_rank == 0)) || no_report=1 # rank 0, which reports, is on machine 0
forward --world-size=nnodes --rank=node_rank --addr=master_addr --master-port=master_port
train ResNet50_ID0095_for_PyTorch perf "${eight_card_recipe[@]}"

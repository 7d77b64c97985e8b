#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_machines "Measure ResNet50's training speed on several machines: 3 epochs."
defaults batch_size=4096 train_epochs=3 workers="$(at_most_cores 128)" opt_level=O2 seed=49
train ResNet50_ID0095_for_PyTorch perf eight_cards "$@"

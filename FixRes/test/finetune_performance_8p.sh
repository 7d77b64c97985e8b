#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_listed_devices "Measure FixRes' fine-tuning speed (phase 2, at 384 pixels) with eight devices: 1 epoch of at most 1000 steps."
finetuning batch_size=512 train_epochs=1 max_steps=1000 workers="$(at_most_cores 72)" opt_level=O1 learning_rate=0.001 \
    image_size=384
finetune perf "$@"

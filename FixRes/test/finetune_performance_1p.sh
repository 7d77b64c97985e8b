#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_one_device "Measure FixRes' fine-tuning speed (phase 2, at 384 pixels) with one device: 1 epoch of at most 1000 steps."
finetuning batch_size=64 train_epochs=1 workers="$(at_most_cores 9)" opt_level=O1 learning_rate=0.001 image_size=384 max_steps=1000
finetune perf "$@"

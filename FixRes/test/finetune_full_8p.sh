#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_listed_devices "FixRes, phase 2 of 3: adapt the classifier and the last BatchNorm to 384 pixels with eight devices, 60 epochs."
finetuning batch_size=512 train_epochs=60 workers="$(at_most_cores 72)" opt_level=O1 learning_rate=0.001 image_size=384
finetune acc "$@"

#!/usr/bin/env bash
# shellcheck source=FixRes/test/model.sh
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

about "FixRes, phase 2 of 3: adapt the classifier and the last BatchNorm to 384 pixels with eight devices of one machine, 60 epochs."
on_listed_devices
finetuning
defaults batch_size=512 train_epochs=60 workers="$(at_most_cores 72)" opt_level=O1 learning_rate=0.001 image_size=384
parse "$@"
require data_path
finetune acc

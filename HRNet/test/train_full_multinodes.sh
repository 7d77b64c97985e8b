#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_machines "Train HRNet-W18 on ImageNet on several machines: 100 epochs."
defaults batch_size=256 train_epochs=100 workers="$(at_most_cores 128)" opt_level=O2
train acc "$@"

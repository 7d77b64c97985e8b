#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_one_device "Train GENet on CIFAR-10 with one device: 300 epochs."
training batch_size=128 train_epochs=300 workers="$(at_most_cores 2)"
train acc "$@"

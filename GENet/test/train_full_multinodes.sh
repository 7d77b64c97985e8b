#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/model.sh"

on_machines "Train GENet on CIFAR-10 on several machines: 300 epochs."
training batch_size=1024 train_epochs=300 workers="$(at_most_cores 8)"
train acc "$@"

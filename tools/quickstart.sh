#!/usr/bin/env bash
# From a fresh machine to a trained network: makes .venv, installs the pinned packages, writes the demo data, measures the
# training speed of ResNet50 on one device, trains it for 15 epochs (about five minutes on two CPU cores), and draws the curves.
# Options go to both runs, e.g. --device=npu.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
output=$repository/ResNet50/test/output/quickstart
small=(--image_size=48 --opt_level=O0 --batch_size=32)

case ${1:-} in -h | --help)
    sed -n '2,4s/^# //p' "$0"
    exit 0
    ;;
esac

# What is no option is said now, and not when all is installed.
for case in performance full; do
    bash "$repository/ResNet50/test/train_${case}_1p.sh" "$@" --help >/dev/null
done

step() { printf '\n== %s\n' "$1"; }

step "packages, in $repository/.venv"
bash "$repository/tools/make_venv.sh" --constraints=tools/2.13_constraints.txt \
    ResNet50/2.x_requirements.txt tools/requirements.txt
PATH=$repository/.venv/bin:$PATH

step "demo data, in $repository/demo_data"
python "$repository/tools/dataset.py" demo --what imagenet

step "speed of training on one device"
bash "$repository/ResNet50/test/train_performance_1p.sh" "${small[@]}" --max_steps=20 \
    --output_path="$output/performance" "$@"

step "a short training"
bash "$repository/ResNet50/test/train_full_1p.sh" "${small[@]}" --train_epochs=15 --seed=1 \
    --data_path="$repository/demo_data/imagenet" --output_path="$output/full" "$@"

python "$repository/tools/runs.py" curves "$output/full" --out "$output/full/curves.png"
printf 'log: %s\n' "$output/full/train_0.log"

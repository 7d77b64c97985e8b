#!/usr/bin/env bash
# From a fresh machine to a trained network: makes .venv, installs the pinned packages, writes the demo data, trains ResNet50 on
# them for 8 epochs, in O1 where the CPU computes in bfloat16, and draws the curves.
# Options go to the training, e.g. --device=npu.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
output=$repository/ResNet50/test/output/quickstart/full
train=$repository/ResNet50/test/train_full_1p.sh

case ${1:-} in -h | --help)
    sed -n '2,4s/^# //p' "$0"
    exit 0
    ;;
esac

# What is no option is said now, and not when all is installed.
bash "$train" "$@" --help >/dev/null

step() { printf '\n== %s\n' "$1"; }

echo "From packages to the result: about 3 minutes on two cores of a recent CPU, up to 13 on an older one."
step "packages, in $repository/.venv"
bash "$repository/tools/make_venv.sh" --constraints=tools/2.13_constraints.txt \
    ResNet50/2.x_requirements.txt tools/requirements.txt
PATH=$repository/.venv/bin:$PATH

step "demo data, in $repository/demo_data"
python "$repository/tools/dataset.py" demo --what imagenet

step "a short training"
# x86 and ARM name what they compute bfloat16 with; without it O1 would be slower than O0.
if grep -qsE '(avx512_|amx_|\b)bf16' /proc/cpuinfo; then opt_level=O1; else opt_level=O0; fi
bash "$train" --image_size=48 --num_classes=10 --batch_size=32 --learning_rate=0.2 --train_epochs=8 --opt_level=$opt_level --seed=1 \
    --data_path="$repository/demo_data/imagenet" --output_path="$output" "$@"

python "$repository/tools/runs.py" curves "$output" --out "$output/curves.png"
printf 'log: %s\n' "$output/train_0.log"
step "next"
printf '%q ' source "$repository/.venv/bin/activate" && echo
printf '%q ' python "$repository/tools/runs.py" page "$output" && echo "   # a page on this training"
printf '%q ' bash "$train" --data_path=/data/imagenet && echo "   # the recipe, on your ImageNet"

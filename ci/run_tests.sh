#!/usr/bin/env bash
# Set up everything and run every test: run_tests.sh [pytest arguments]. The tests of a file, in test_all_scripts.py those of a
# model, share runs and stay in one process; the longest of these groups start first.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
case ${1:-} in -h | --help)
    sed -n '2,3s/^# //p' "$0"
    exit 0
    ;;
esac
shopt -s nullglob
requirements=(*/2.x_requirements.txt tools/requirements.txt ci/requirements.txt)
bash tools/make_venv.sh --constraints=tools/2.13_constraints.txt "${requirements[@]}"
PATH=$PWD/${VENV:-.venv}/bin:$PATH

if command -v shellcheck >/dev/null; then
    shellcheck --external-sources ./*/test/*.sh common/*.sh tools/*.sh ci/*.sh ci/cluster/*.sh deploy/slurm/*.sbatch
else # ci/requirements.txt has none for this machine
    echo "run_tests.sh: no shellcheck here, the scripts are not checked; install the system's" >&2
fi
python ci/measure_style.py
# The checkpoints of tests that have passed are removed at once: together they are tens of gigabytes.
OMP_NUM_THREADS=1 exec python -m pytest -q -n 2 --dist loadfile --override-ini=tmp_path_retention_policy=failed \
    --durations=15 ci "$@"

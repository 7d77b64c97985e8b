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

bash ci/lint.sh
OMP_NUM_THREADS=1 exec python -m pytest -q -n 2 --dist loadfile --durations=15 ci "$@"

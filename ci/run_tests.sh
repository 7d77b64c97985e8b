#!/usr/bin/env bash
# Set up everything and run every test: run_tests.sh [pytest arguments]. Fast tests come first; the scripts' smoke runs, which start
# many processes each, come after them.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
case ${1:-} in -h | --help)
    sed -n '2,3s/^# //p' "$0"
    exit 0
    ;;
esac
shopt -s nullglob
requirements=(*/2.x_requirements.txt tools/requirements.txt ci/requirements.txt)
bash tools/make_venv.sh "${requirements[@]}"
PATH=$PWD/${VENV:-.venv}/bin:$PATH

shellcheck --external-sources ./*/test/*.sh common/*.sh tools/*.sh ci/*.sh
OMP_NUM_THREADS=1 exec python -m pytest -q -n 2 --dist loadfile --durations=15 ci "$@"

#!/usr/bin/env bash
# What can be said of the files without a run, of shell scripts and Python. ci/run_tests.sh begins with it.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
case ${1:-} in -h | --help)
    sed -n '2s/^# //p' "$0"
    exit 0
    ;;
esac
PATH=$PWD/${VENV:-.venv}/bin:$PATH

if command -v shellcheck >/dev/null; then
    shellcheck --external-sources ./*/test/*.sh common/*.sh tools/*.sh ci/*.sh ci/cluster/*.sh deploy/slurm/*.sbatch .ci/run
else # ci/requirements.txt has none for this machine
    echo "lint.sh: no shellcheck here, the scripts are not checked; install the system's" >&2
fi
ruff check --quiet
python ci/measure_style.py

#!/usr/bin/env bash
# What can be said of the files without a run: shell scripts, Python, containers, workflows. ci/run_tests.sh begins with it, and so
# does each commit where `pre-commit install` was called.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
case ${1:-} in -h | --help)
    sed -n '2,3s/^# //p' "$0"
    exit 0
    ;;
esac
PATH=$PWD/${VENV:-.venv}/bin:$PATH

if command -v shellcheck >/dev/null; then
    shellcheck --external-sources --source-path=SCRIPTDIR ./*/test/*.sh common/*.sh tools/*.sh ci/*.sh ci/cluster/*.sh deploy/slurm/*.sbatch .ci/run
else # ci/requirements.txt has none for this machine
    echo "lint.sh: no shellcheck here, the scripts are not checked; install the system's" >&2
fi
ruff check --quiet
hadolint docker/Dockerfile.*
check_schema() { python -m check_jsonschema --quiet --builtin-schema="vendor.$1" "${@:2}"; }
check_schema github-workflows .github/workflows/*.yml
check_schema github-issue-config .github/ISSUE_TEMPLATE/config.yml
check_schema github-issue-forms .github/ISSUE_TEMPLATE/problem.yml .gitee/ISSUE_TEMPLATE/problem.yml
python ci/measure_style.py

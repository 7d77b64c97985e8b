#!/usr/bin/env bash
# make_venv.sh [--constraints=FILE] REQUIREMENTS…: make .venv in the repository, unless it is there, and install what the files
# list, in the versions that FILE says (paths from the repository's root). VENV names another folder, PYTHON another interpreter.
# On a terminal pip shows its progress.
# Example: make_venv.sh --constraints=tools/2.13_constraints.txt ResNet50/2.x_requirements.txt tools/requirements.txt
set -euo pipefail

fail() {
    printf 'make_venv.sh: error: %s (see --help)\n' "$1" >&2
    exit 2
}

case ${1:-} in -h | --help)
    sed -n '2,5s/^# //p' "$0"
    exit 0
    ;;
esac
(($#)) || fail "no requirements file is named"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
read_files=() options=()
[[ -t 1 ]] || options=(--quiet)
for file in "$@"; do
    flag=-r
    if [[ $file == --constraints=* ]]; then
        file=${file#*=} flag=-c
    fi
    [[ -f $file ]] || fail "there is no file $file"
    options+=("$flag" "$file")
    read_files+=("$file")
done

venv=${VENV:-.venv}
[[ -x $venv/bin/python ]] || "${PYTHON:-python3}" -m venv "$venv"
stamp=$venv/installed.txt
if ! cat "${read_files[@]}" | cmp -s - "$stamp"; then
    "$venv/bin/python" -m pip install --disable-pip-version-check "${options[@]}"
    cat "${read_files[@]}" >"$stamp"
fi
"$venv/bin/python" -c 'import sys, torch; print("Python %d.%d, PyTorch %s" % (*sys.version_info[:2], torch.__version__))'

#!/usr/bin/env bash
# make_venv.sh REQUIREMENTS…: make .venv in the repository, unless it is there, and install what the files list (paths from the
# repository's root). VENV names another folder, PYTHON another interpreter.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${VENV:-.venv}
[[ -x $venv/bin/python ]] || "${PYTHON:-python3}" -m venv "$venv"

files=()
for file in "$@"; do files+=(-r "$file"); done
stamp=$venv/installed.txt
if ! cat "$@" | cmp -s - "$stamp"; then
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${files[@]}"
    cat "$@" >"$stamp"
fi
"$venv/bin/python" -c 'import sys, torch; print("Python %d.%d, PyTorch %s" % (*sys.version_info[:2], torch.__version__))'

#!/usr/bin/env bash
# Prove the ports on this machine: see --help. The Python of .venv is taken where there is one and none is active.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -z ${VIRTUAL_ENV:-} && -x $root/.venv/bin/python ]]; then PATH=$root/.venv/bin:$PATH; fi
exec python3 "$root/tools/certify.py" "$@"

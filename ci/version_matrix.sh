#!/usr/bin/env bash
# Test every supported PyTorch: version_matrix.sh [--allow-missing] [--tested=FILE]
#
# For PyTorch 1.5 and 1.8 on Python 3.7, 2.1 on Python 3.10 and 2.x on Python 3.11: an environment made from the models' own
# requirements files (.venv-1.5, .venv-1.8, .venv-2.1, .venv; kept for the next time), the golden and unit tests, smoke runs of
# every model's scripts; then each version loads the checkpoints of the others. On 2.1 the promises of the requirements files are
# tested too, which needs the package index. The table at the end has a column for each version.
#
#   --allow-missing  a Python that is not on this machine is fine; its column says so
#   --tested=FILE    what `ci/run_tests.sh --junitxml=FILE` has written just now: 2.x is not tested again
#
# PYTHON37, PYTHON310 and PYTHON311 name the interpreters; without them: python3.7 and so on, on the PATH or of pyenv.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
versions=(1.5 1.8 2.1 2.x)
results=$PWD/ci/output/versions
declare -A minor=([1.5]=3.7 [1.8]=3.7 [2.1]=3.10 [2.x]=3.11)
declare -A venv=([1.5]=.venv-1.5 [1.8]=.venv-1.8 [2.1]=.venv-2.1 [2.x]=.venv)
tests=(ci/test_{common,jpeg,loading,packed,step}.py ci/test_*_unit.py ci/test_*_data.py ci/test_requirements.py ci/test_versions.py ci/test_*_golden.py)

fail() {
    echo "version_matrix.sh: error: $1" >&2
    exit 2
}

usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

# find_python 3.7: print the path of an interpreter that runs.
find_python() {
    local named=PYTHON${1/./} candidate version
    for candidate in "${!named:-}" "python$1"; do
        if [[ -n $candidate ]] && "$candidate" -c "import ensurepip, sys; assert sys.version.startswith('$1.')" 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    command -v pyenv >/dev/null || return 1
    version=$(pyenv versions --bare | grep -E "^${1/./\\.}\.[0-9]+$" | tail -n 1) || return 1
    echo "$(pyenv prefix "$version")/bin/python"
}

# requirements_of 2.1: print what make_venv.sh is told, a word a line.
requirements_of() {
    case $1 in
        2.1) set -- --constraints=tools/2.1_constraints.txt */2.x_requirements.txt ci/version_matrix_requirements.txt ;;
        2.x) set -- --constraints=tools/2.13_constraints.txt */2.x_requirements.txt {tools,ci}/requirements.txt ;;
        *) set -- */"$1"_requirements.txt ci/version_matrix_requirements.txt ;;
    esac
    printf '%s\n' "$@"
}

# make_environment 1.8: returns 3 where there is no Python for it.
make_environment() {
    local python=${venv[$1]}/bin/python words
    [[ -x $python ]] || python=$(find_python "${minor[$1]}") || return 3
    mapfile -t words < <(requirements_of "$1")
    VENV=${venv[$1]} PYTHON=$python bash tools/make_venv.sh "${words[@]}"
}

# run_tests 1.8 NAME PYTEST-ARGUMENT…: the results are in NAME.xml, what pytest says in NAME.log.
run_tests() {
    local version=$1 name=$2
    shift 2
    PATH=$PWD/${venv[$version]}/bin:$PATH EXCHANGE=$results/exchange OMP_NUM_THREADS=1 \
        python -m pytest -q -p no:cacheprovider --junitxml="$results/$version/$name.xml" "$@" >"$results/$version/$name.log" 2>&1
}

# test_version 1.8 PYTEST-ARGUMENT…: everything but the exchange of checkpoints. `state` is what the column says if it has no
# figures.
test_version() {
    local version=$1 status=0 started=$SECONDS
    shift
    make_environment "$version" >"$results/$version/environment" 2>"$results/$version/install.log" || status=$?
    case $status in
        0) ;;
        3) echo "no Python ${minor[$version]}" >"$results/$version/state" && return ;;
        *) echo "not installed" >"$results/$version/state" && tail -n 5 "$results/$version/install.log" >&2 && return ;;
    esac
    local installed=$SECONDS
    if [[ $version == 2.x && -n $tested ]]; then
        cp "$tested" "$results/$version/tests.xml"
        run_tests "$version" trained ci/test_versions.py -k test_two_ranks || status=$?
    else
        run_tests "$version" tests "${tests[@]}" --deselect=ci/test_versions.py::test_exchange "$@" || status=$?
    fi
    echo "PyTorch $version: $((installed - started)) s to install, $((SECONDS - installed)) s to test, status $status" >&2
}

exchange() {
    [[ -e $results/$1/state ]] || run_tests "$1" exchange ci/test_versions.py -k test_exchange || true
}

# at_once FUNCTION VERSION…: run the function for these versions at the same time.
at_once() {
    local function=$1 version job
    shift
    set -m # process groups of their own, so that Ctrl-C ends them too
    for version in "$@"; do
        "$function" "$version" &
        jobs+=($!)
    done
    set +m
    for job in "${jobs[@]}"; do wait "$job"; done
    jobs=()
}

allow_missing="" tested=""
for word in "$@"; do
    case $word in
        -h | --help) usage && exit ;;
        --allow-missing) allow_missing=1 ;;
        --tested=*) tested=${word#*=} ;;
        *) fail "unknown option $word (see --help)" ;;
    esac
done
[[ -z $tested || -f $tested ]] || fail "--tested=$tested: no such file"
[[ $PWD != *\$* ]] || fail "$PWD holds a \$, and Python 3.7's distutils installs nothing into such a path; move the clone"

rm -rf "$results"
for version in "${versions[@]}"; do mkdir -p "$results/$version"; done
jobs=()
trap 'for job in "${jobs[@]}"; do kill -- "-$job" 2>/dev/null || true; done' EXIT
# Each is a single process most of the time: with three or four of them two cores are busy until the last one ends.
if [[ -n $tested ]]; then
    at_once test_version "${versions[@]}"
else
    at_once test_version 1.5 1.8 2.1
    test_version 2.x -n 2 --dist loadfile
fi
at_once exchange "${versions[@]}"
python3 ci/version_matrix.py "$results" ${allow_missing:+--allow-missing}

# shellcheck shell=bash disable=SC2034
# What every test/*.sh shares: options, --help, the NPU environment, and the hand-over to common/run.py.
#
# A model's test/model.sh sources this file and says once what its scripts share: its own options, the flags of its programs that
# options become, its recipes. A script sources model.sh and says what makes its case this case:
#
#   on_one_device "one sentence on the case"       # or on_listed_devices, on_machines
#   defaults batch_size=512 train_epochs=90 …      # gives an option its default here; without one it is unset
#   train acc … "$@"                               # model.sh's: from the options to run_case
#
# Where a model's --batch_size counts the images of one rank, its model.sh sets batch_per_rank=1.
set -euo pipefail

# Signals, from here to common/run.py, which answers them from then on. A background job of a script starts with SIGINT ignored, and
# no trap changes that.
if [[ $(trap -p INT) && ${SIGINT_WAS_IGNORED:-} != "$$" ]] && env --default-signal=INT true 2>/dev/null; then
    SIGINT_WAS_IGNORED=$$ exec env --default-signal=INT "$BASH" "$0" "$@"
fi
trap 'stop 130 interrupted' INT
trap 'stop 143 terminated' TERM
trap 'stop 129 "hung up"' HUP
has_child=""
stop() {
    trap '' INT TERM HUP
    [[ -z $has_child ]] || { kill -TERM "${!:-}" && wait "$!"; } 2>/dev/null || true
    printf '%s: %s before the start; nothing was done\n' "$(basename "$0")" "$2" >&2
    exit "$1"
}

# A descriptor that is closed would become that of a file.
[[ -e /dev/fd/0 ]] || exec </dev/null
[[ -e /dev/fd/1 ]] || exec >/dev/null
[[ -e /dev/fd/2 ]] || exec 2>/dev/null

# The common options, as the variables that `parse` sets for the scripts to use.
data_path="" device="" device_id="" device_list="" batch_size="" train_epochs="" workers="" learning_rate="" opt_level=""
precision_mode="" pth_path="" max_steps="" image_size="" output_path="" resume="" skip_bad_images="" decoder="" shuffle_shards=""
seed="" accumulate="" deterministic="" allow_tf32="" use_ema="" checkpoint_steps="" keep_checkpoints="" amp_dtype="" compile="" dummy=""
profile_steps="" new_classifier="" term_grace="" stall_timeout="" standalone="" predictions="" tensorboard=""
nnodes="" node_rank="" local_addr="" master_addr="" master_port="" # of the scripts for several machines

model_path=$(cd "$(dirname "${BASH_SOURCE[1]}")/.." && pwd)
common_path=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
case_devices=one case_ranks=1 case_machine=0 batch_per_rank=""
case_machines=1 no_report="" further_rank="" # what count_ranks finds
option_names=() flags=()
declare -A option_default=() option_check=() option_help=()

fail() {
    printf '%s: error: %s\n' "${0##*/}" "${1//[[:cntrl:]]/ }" >&2
    exit 2
}

# option NAME DEFAULT CHECK HELP. CHECK: text, LOW..HIGH (integers), natural, positive (more of them), number, list, switch or a|b|c.
option() {
    [[ -n ${option_check[$1]:-} ]] || option_names+=("$1")
    option_default[$1]=$2 option_check[$1]=$3 option_help[$1]=$4
    case $3 in natural) option_check[$1]=0..1000000000 ;; positive) option_check[$1]=1..1000000000 ;; esac
}

# without_options NAME…: options that would do nothing here.
without_options() {
    local name kept=()
    for name in "${option_names[@]}"; do [[ " $* " == *" $name "* ]] || kept+=("$name"); done
    option_names=("${kept[@]}")
    for name in "$@"; do unset "option_check[$name]"; done
}

# What a case is about, and which devices it runs on: one, or a rank on each of a list.
on_one_device() {
    case_about=$1
    without_options device_list
}
on_listed_devices() { case_about=$1 case_devices=listed; }
on_machines() {
    on_listed_devices "$1 Run it on each machine: a launcher says which one that is, or --nnodes and --node_rank."
    case_example="${case_example:---data_path=/data/imagenet} --nnodes=2 --node_rank=0 --local_addr=10.0.0.1 --master_addr=10.0.0.1"
    option nnodes "" positive "number of machines (empty: what the launcher says)"
    option node_rank "" natural "number of this machine, from 0; with nnodes"
    option local_addr "" text "address of this machine, in the network of master_addr (empty: that on the way there)"
    option master_addr "" text "address of machine 0 (empty: what the launcher says, else 127.0.0.1)"
    option master_port "" 1..65535 "free port on machine 0 (empty: what the launcher says, else 29501)"
}

# evaluation NAME=DEFAULT…: the options of an evaluation, and their defaults.
evaluation() {
    without_options train_epochs learning_rate seed accumulate checkpoint_steps keep_checkpoints resume compile dummy profile_steps \
        tensorboard new_classifier shuffle_shards
    option use_ema auto "auto|true|false" "of weights that lie beside their moving average, take the average; auto: the better one"
    case_example="${case_example:---data_path=/data/imagenet} --pth_path=model_best.pth.tar"
    defaults "$@"
}

defaults() {
    local pair
    for pair in "$@"; do option_default[${pair%%=*}]=${pair#*=}; done
}

common_options() {
    option data_path "" text "dataset root"
    option device auto "auto|npu|gpu|cuda|cpu" "where to run; auto: npu, else gpu, else cpu"
    option device_id "${ASCEND_DEVICE_ID:-0}" 0..1023 "the device of a 1p run; names the log and the output folder"
    option device_list 0,1,2,3,4,5,6,7 list "the devices of an 8p or multi-node run, one rank each"
    option batch_size "" positive "images of an update over all ranks"
    option train_epochs "" positive "epochs"
    option workers "" 0..4096 "loader processes of this machine, divided among its ranks"
    option learning_rate "" number "learning rate (empty: the recipe's)"
    option opt_level "" "O0|O1|O2" "mixed precision level; same as precision_mode"
    option precision_mode "" "O0|O1|O2|allow_mix_precision|must_keep_origin_dtype" "mixed precision; must_keep_origin_dtype is O0"
    option pth_path "" text "weights to start from, or to evaluate"
    option new_classifier "" switch "of pth_path, take all but the classifier: the weights may be of other classes"
    option seed "" 0..4294967295 "of everything random (empty: a random one)"
    option accumulate "" positive "batches that an update is computed in, one after the other (empty: 1)"
    option max_steps "" positive "end each epoch, and each evaluation, after this many steps"
    option image_size "" positive "input resolution instead of the recipe's"
    option output_path "" text "where logs, reports and weights go (empty: test/output/<device_id>)"
    option checkpoint_steps 0 natural "also write the checkpoint every so many steps; 0: after each epoch only"
    option keep_checkpoints 2 1..100 "the last checkpoints that stay: checkpoint.pth.tar, before it checkpoint.pth.tar.1, ..."
    option term_grace 25 positive "seconds from SIGTERM to the kill of a training that has not left, in a step that takes longer"
    option resume "" resume "go on with the newest checkpoint of the output path, if there is one; --resume=FILE: from this file"
    option deterministic "" switch "only algorithms that give the same bits at each call; slower on gpu and npu"
    option allow_tf32 "" switch "fp32 convolutions and matrix products may round their inputs to TF32 (gpu) or HF32 (npu)"
    option amp_dtype "" "fp16|bf16" "half precision of O1 and O2 (empty: fp16 on npu and gpu, bf16 on a cpu); bf16 has no loss scale"
    option compile "" compile "torch.compile the network (PyTorch 2; the first step takes minutes; experimental on an npu); =reduce-overhead: and replay it as CUDA graphs"
    option dummy "" switch "no data set: a batch that is made up once and stays on the device"
    option profile_steps "" range "profile the steps from A up to, not with, B: traces in the output path, a table in the log"
    option stall_timeout 600 natural "seconds after which a run ends in which nothing moves, once the first step is done; 0: never"
    option standalone "" switch "this machine trains alone, whatever a launcher or a cluster has set"
    option tensorboard "" switch "also write the records as TensorBoard's events, in tensorboard/ of the output path"
    option predictions "" switch "evaluations also write predictions.npz: what the network says of each picture, for tools/runs.py page"
    option decoder exact "exact|fast" "what decodes and resizes pictures; fast: simplejpeg, and at most 2 of 255 off"
    option shuffle_shards "" switch "packed data sets: shuffle shards, and 32 pictures at a time within; disks and NFS read that faster"
    option skip_bad_images "" switch "leave unreadable images out, and count them, instead of stopping"
}

# at_most_cores N: N, or the number of CPUs where that is smaller (more decoding processes than CPUs only cost memory).
at_most_cores() {
    local cores
    cores=$(unset OMP_NUM_THREADS && nproc)
    echo $(($1 < cores ? $1 : cores))
}

usage() {
    local name range pattern takes
    printf '%s\n\nUsage: bash test/%s [--name=value ...]\n\nOptions:\n' "$case_about" "$(basename "$0")"
    for name in "${option_names[@]}"; do
        kind_of "${option_check[$name]/%..1000000000/..}"
        case ${option_check[$name]} in *..* | number) range="; $takes" ;; *) range="" ;; esac
        printf '  --%-18s %s%s%s\n' "$name" "${option_help[$name]}" "$range" "${option_default[$name]:+ [${option_default[$name]}]}"
    done
    printf '  --%-18s %s\n\nExample:\n  bash test/%s %s\n' help "this text" "$(basename "$0")" "${case_example:---data_path=/data/imagenet}"
}

parse() {
    local word name value
    [[ -z $batch_per_rank ]] || option_help[batch_size]="images per batch of each rank"
    for name in "${option_names[@]}"; do printf -v "$name" %s "${option_default[$name]}"; done
    for word in "$@"; do
        [[ $word != --help && $word != -h ]] || { usage; exit 0; }
        name=${word%%=*} && name=${name#--} && name=${name//-/_}
        [[ $word == --[a-z]* && $name != *[^a-z0-9_]* ]] || fail "$word is no option; options have the form --name=value (see --help)"
        [[ -n ${option_check[$name]:-} ]] || fail "unknown option --$name (see --help)"
        if [[ $word == *=* ]]; then value=${word#*=}; elif [[ ${option_check[$name]} =~ ^(switch|resume|compile)$ ]]; then value=1
        else fail "--$name has no value; write --$name=..."; fi
        check_value "--$name=$value" "${option_check[$name]}" "$value"
        [[ ${option_check[$name]} != *..* ]] || value=$((10#$value)) # or Bash would read 08 as octal
        [[ ${option_check[$name]} != switch || $value != 0 ]] || value="" # off
        printf -v "$name" %s "$value"
    done
    command -v python3 >/dev/null || fail "there is no python3 on the PATH"
    check_value "ASCEND_DEVICE_ID=$device_id, in the environment," 0..1023 "$device_id"
    device_id=$((10#$device_id))
    resolve_options
}

# parse_case SUFFIX SET OPTION…: `parse`, count the ranks, and find the data: --data_path, without which a perf case of one machine takes
# the demo data SET, or with --dummy none.
parse_case() {
    if [[ $1 == perf ]]; then without_options predictions; else without_options dummy; fi
    parse "${@:3}"
    count_ranks
    [[ -z $resume || $resume == auto || -f $resume || -n $no_report ]] || # no_report: machine 0 has it
        fail "--resume=$resume is no file; --resume alone takes the newest checkpoint of the output path"
    if [[ -n $dummy ]]; then return 0
    elif [[ $1 == perf && $case_machines == 1 ]]; then demo_data_unless_given "$2"; else require data_path; fi
}

# kind_of CHECK: in `pattern` what its values match, in `takes` the words for them.
kind_of() {
    case $1 in
        *..) pattern='^[0-9]{1,18}$' takes="an integer of at least ${1%..}" ;;
        *..*) pattern='^[0-9]{1,18}$' takes="an integer from ${1%..*} to ${1#*..}" ;;
        number) pattern='^[0-9]*\.?[0-9]+([eE][-+]?[0-9]{1,2})?$' takes="a number of at least 0" ;;
        list) pattern='^[0-9]+(,[0-9]+)*$' takes="device numbers separated by commas, such as 0,1,2,3" ;;
        switch) pattern='^[01]$' takes="no value" ;;
        compile) pattern='^([01]|default|reduce-overhead)$' takes="no value, or reduce-overhead" ;;
        range) pattern='^[0-9]+:[0-9]+$' takes="two step numbers A:B, such as 10:13" ;;
        text) pattern='.' takes="a value of printable characters" ;;
        resume) pattern='.' takes="no value, or the file of a checkpoint" ;;
        *) pattern="^($1)\$" takes="one of ${1//|/, }" ;;
    esac
}

# check_value SAID CHECK VALUE
check_value() {
    local pattern takes is_right=1
    kind_of "$2"
    if [[ $3 == *[[:cntrl:]]* || ! $3 =~ $pattern ]]; then is_right=""
    elif [[ $2 == *..* ]]; then ((10#$3 >= ${2%..*} && 10#$3 <= ${2#*..})) || is_right=""; fi
    [[ -n $is_right ]] || fail "$1 is not right: it takes $takes"
}

resolve_options() {
    case_fp32=""
    case $precision_mode in
        "") ;;
        allow_mix_precision) precision_mode="" ;;
        must_keep_origin_dtype) opt_level=O0 case_fp32=fp32_ ;;
        *) opt_level=$precision_mode ;;
    esac
    [[ -z $pth_path || -e $pth_path ]] || fail "--pth_path=$pth_path does not exist"
    [[ -z $new_classifier || -n $pth_path ]] || fail "--new_classifier takes the weights of --pth_path, which is missing"
    output_path=${output_path:-$model_path/test/output/$device_id}
    case $resume in
        0) resume="" ;;
        1 | auto) resume=auto ;;
        ?*) resume=$(absolute "$resume") ;;
    esac
    case $compile in 0) compile="" ;; 1) compile=default ;; esac
    [[ -z $data_path ]] || data_path=$(absolute "$data_path")
    [[ -z $pth_path ]] || pth_path=$(absolute "$pth_path")
    output_path=$(absolute "$output_path")
}

# count_ranks: which ranks on which machines there are, by launch.py. As many on each as --device_list has entries, unless a launcher
# has started others; where it has started several on this machine, the first one writes the log.
count_ranks() {
    local listed=(one) found first started_by address port
    [[ $case_devices == one ]] || IFS=, read -r -a listed <<<"$device_list"
    [[ -z $local_addr ]] || export HCCL_IF_IP=$local_addr
    found=$(python3 "$common_path/launch.py" --devices=${#listed[@]} ${standalone:+--standalone} ${nnodes:+--nnodes="$nnodes"} \
        ${node_rank:+--node-rank="$node_rank"} ${master_addr:+--addr="$master_addr"} ${master_port:+--port="$master_port"}) || exit 2
    read -r case_ranks case_machines case_machine first started_by address port <<<"$found"
    [[ $started_by != flags ]] || node_rank=${node_rank:-$case_machine} master_addr=${master_addr:-$address} master_port=${master_port:-$port}
    [[ -z ${option_check[nnodes]:-} || -n $nnodes$standalone || $started_by != nobody ]] ||
        fail "--nnodes is missing, and no launcher says how many machines there are (see --help)"
    ((case_machine == 0)) || no_report=1 # rank 0, which reports, is on machine 0
    ((first == 0)) || further_rank=1
}

absolute() { case $1 in /*) printf %s "$1" ;; *) printf %s "$PWD/$1" ;; esac; }

require() { [[ -n ${!1} ]] || fail "--$1 is missing: ${option_help[$1]} (see --help)"; }

# share OPTION: print what is each rank's of what all ranks have together, rounded up.
share() { echo $((($1 + case_ranks - 1) / case_ranks)); }

# require_whole_batches: no image of a batch may be left over when it is divided.
require_whole_batches() {
    local parts=$((case_ranks * ${accumulate:-1}))
    [[ -n $batch_per_rank ]] || ((batch_size % parts == 0)) ||
        fail "--batch_size=$batch_size cannot be divided among $case_ranks rank(s)${accumulate:+ times --accumulate=$accumulate}; take a multiple of $parts"
}

# demo_data_unless_given SET: without --data_path, the demo data (imagenet or cifar10), made if need be, and a batch that fits it.
demo_data_unless_given() {
    [[ -z $data_path ]] || return 0
    echo "no --data_path: using the demo data set" >&2
    has_child=1 # before there is one: a signal may come at once
    python3 "$common_path/../tools/dataset.py" demo --what "$1" >&2 & # a trap does not wait for it
    wait "$!" || exit 2 # it has said why
    has_child=""
    data_path=$(cd "$common_path/../demo_data" && pwd)
    [[ $1 != imagenet ]] || data_path=$data_path/imagenet
    [[ $batch_size != "${option_default[batch_size]}" ]] || batch_size=$((batch_per_rank ? 32 : 32 * case_ranks))
}

# forward FLAG=OPTION …: append to `flags` what the options say: FLAG=VALUE, or FLAG alone for a switch; nothing for an empty one.
# A bare OPTION is the flag of its name. With a blank after the FLAG, as in "KEY =option", the value is a word of its own.
forward() {
    local pair flag name
    for pair in "$@"; do
        [[ $pair == *=* ]] || pair=--${pair//_/-}=$pair
        flag=${pair%%=*} name=${pair#*=}
        if [[ -z ${!name} ]]; then continue
        elif [[ ${option_check[$name]:-} == switch ]]; then flags+=("$flag")
        elif [[ $flag == *" " ]]; then flags+=("${flag% }" "${!name}")
        else flags+=("$flag=${!name}"); fi
    done
}

# CANN's own environment, where there is one; a caller that has set it up says so with etp_running_flag=true. What a user has set
# stays. (What torch_npu and HCCL read is in common/device.py.)
use_npu_environment() {
    local install=/usr/local/Ascend info=/etc/Ascend/ascend_cann_install.info candidate
    [[ ${etp_running_flag:-} != true ]] || return 0
    # Errors alone, and in CANN's own files.
    export ASCEND_SLOG_PRINT_TO_STDOUT=${ASCEND_SLOG_PRINT_TO_STDOUT:-0} ASCEND_GLOBAL_LOG_LEVEL=${ASCEND_GLOBAL_LOG_LEVEL:-3} \
        ASCEND_GLOBAL_EVENT_ENABLE=${ASCEND_GLOBAL_EVENT_ENABLE:-0}
    [[ ! -f $info ]] || install=$(sed -n 's/^Install_Path=//p' "$info")
    for candidate in "$install/ascend-toolkit/set_env.sh" "$install/nnae/set_env.sh"; do
        if [[ -f $candidate ]]; then
            set +u # CANN's script uses variables that it has not set
            # shellcheck disable=SC1090
            source "$candidate"
            set -u
            break
        fi
    done
}

# run_case NETWORK SUFFIX KIND python3 -u PROGRAM FLAG…: become common/run.py, in the model's directory.
run_case() {
    local network=$1 suffix=$2 kind=$3
    shift 3
    require_whole_batches
    case $device in npu | auto) use_npu_environment ;; esac
    # The programs import torch_npu themselves where an NPU is wanted: a broken one then costs a line, and not `import torch`.
    export TORCH_DEVICE_BACKEND_AUTOLOAD=${TORCH_DEVICE_BACKEND_AUTOLOAD:-0}
    cd "$model_path"
    # From a trap to run.py's handlers, signals wait; before coreutils 8.31 they end the process.
    local hold="" training=("${@:1:3}" --stall-timeout="$stall_timeout" ${standalone:+--standalone} ${predictions:+--predictions}
        ${tensorboard:+--tensorboard} "${@:4}")
    [[ -z $further_rank ]] || exec "${training[@]}"
    ! env --block-signal=INT,TERM,HUP true 2>/dev/null || hold=1
    exec ${hold:+env --block-signal=INT,TERM,HUP} python3 "$common_path/run.py" --network="$network" --batch-size="$batch_size" --ranks="$case_ranks" \
        --suffix="$case_fp32$suffix" --kind="$kind" --commit="$(git -C "$common_path" rev-parse HEAD 2>/dev/null || true)" \
        --device-id="$device_id" --output-path="$output_path" \
        --term-grace="$term_grace" ${batch_per_rank:+--batch-per-rank} ${resume:+--resume} ${no_report:+--no-report} \
        --stall-timeout="$stall_timeout" -- "${training[@]}"
}

common_options

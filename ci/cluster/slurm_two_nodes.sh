#!/usr/bin/env bash
# A real Slurm of two nodes, n1 and n2, on this one machine, from Debian's packages, to run sbatch and srun recipes against.
# Works as root in a container without systemd. Tried with Slurm 22.05.8 (Debian 12).
#   slurm_two_nodes.sh start DIR   starts it (or finds it running) and prints the line to eval: export SLURM_CONF=DIR/slurm.conf
#   slurm_two_nodes.sh stop DIR    kills its jobs, ends its daemons, waits for them; nothing to do is no error
#   slurm_two_nodes.sh status DIR  sinfo, squeue and the daemons; status 3 when it does not run
#   slurm_two_nodes.sh kill DIR n2     a node dies with all its processes; Slurm is told, who sees it after SlurmdTimeout only
#   slurm_two_nodes.sh revive DIR n2   and comes back
# Packages: apt-get update && apt-get install -y --no-install-recommends slurmd slurmctld slurm-client munge
# Each node has a host name and processes of its own (namespaces), an address of its own (127.0.1.1, 127.0.1.2; in /etc/hosts from
# start to stop), 8 pretended CPUs, 8 "gpu" and 8 "npu" that can be asked for (neither sets *_VISIBLE_DEVICES).
# Files, /tmp, shared memory and TCP ports are shared by both: a port that two nodes both listen on must differ here.
# A second cluster at once: another DIR and another SLURM_BASE_PORT (it takes 3 ports from there; default 16817).
# SLURM_KILL_WAIT: seconds from SIGTERM to SIGKILL (default 10).
set -euo pipefail
(($# >= 2)) || { sed -n '2,15s/^# \{0,1\}//p' "$0" >&2; exit 2; }
action=$1 dir=$(mkdir -p "$2" && cd "$2" && pwd) node=${3:-}
base_port=${SLURM_BASE_PORT:-16817}
export SLURM_CONF=$dir/slurm.conf
daemons=(unshare.n1 unshare.n2 slurmctld munged) # a node is what this unshare waits for

# runs PID: a zombie, which nobody reaps in a container, does not.
runs() { grep -q '^State:.[^Z]' "/proc/$1/status" 2>/dev/null; }

# pid_of NAME: the pid of that daemon, where it runs.
pid_of() {
    local pid
    pid=$(cat "$dir/$1.pid" 2>/dev/null) && [[ -n $pid && $(cat "/proc/$pid/comm" 2>/dev/null) == "${1%.n[12]}" ]] && runs "$pid" &&
        echo "$pid"
}

# wait_until SECONDS COMMAND…
wait_until() {
    local tries=$(($1 * 5))
    shift
    until "$@"; do ((tries-- > 0)) || return 1; sleep 0.2; done
}

ended() { ! runs "$1"; }
both_idle() { [[ $(sinfo -h -o '%D %T' 2>/dev/null) == "2 idle" ]]; }
needs() { command -v "$1" >/dev/null || { echo "$1 is missing: apt-get install --no-install-recommends slurmd slurmctld slurm-client munge" >&2; exit 1; }; }

give_up() {
    printf '%s\n' "$1" >&2
    for log in "$dir"/munged.log "$dir"/log/*.log; do [[ ! -f $log ]] || { echo "--- $log"; tail -n 8 "$log"; } >&2; done
    exit 1
}

write_configuration() {
    mkdir -p "$dir"/{state,spool,log}
    touch "$dir"/gpu{0..7}
    local host
    host=$(hostname -s)
    cat >"$dir/gres.conf" <<C
NodeName=n[1-2] Name=npu Count=8
NodeName=n[1-2] Name=gpu File=$dir/gpu[0-7]
C
    cat >"$SLURM_CONF" <<C
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
ReturnToService=2
SlurmctldPort=$base_port
SlurmUser=root
SlurmdUser=root
SlurmdParameters=config_overrides
SlurmctldTimeout=300
SlurmdTimeout=300
MessageTimeout=60
BatchStartTimeout=300
UnkillableStepTimeout=300
KillWait=${SLURM_KILL_WAIT:-10}
FirstJobId=$base_port
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/spool/%n.pid
SwitchType=switch/none
TaskPlugin=task/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=npu,gpu
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.%n.log
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=n1 NodeHostname=$host NodeAddr=127.0.1.1 Port=$((base_port + 1)) CPUs=8 RealMemory=4000 Gres=npu:8,gpu:8 State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.1.2 Port=$((base_port + 2)) CPUs=8 RealMemory=4000 Gres=npu:8,gpu:8 State=UNKNOWN
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
C
}

# name_nodes [NUMBER…]: have /etc/hosts name these nodes, and no others, for this cluster. Not sed -i: /etc/hosts of a
# container is a mount and can't be replaced.
name_nodes() {
    local mine="# slurm_two_nodes $dir" kept number
    exec {hosts}>>/etc/hosts
    flock "$hosts"
    kept=$(grep -vxF -e "127.0.1.1 n1 $mine" -e "127.0.1.2 n2 $mine" /etc/hosts || true)
    { printf '%s\n' "$kept"; for number in "$@"; do echo "127.0.1.$number n$number $mine"; done; } >/etc/hosts
    exec {hosts}>&-
}

# start_node NODE: as process 1 a shell, which reaps what ranks leave behind; when it is killed the kernel kills all the others.
start_node() {
    ! pid_of "unshare.$1" >/dev/null || return 0
    # shellcheck disable=SC2016
    setsid unshare --uts --pid --fork --kill-child --mount-proc bash -c 'hostname "$1" && { slurmd -D -N "$1" & wait; }' _ "$1" \
        </dev/null >/dev/null 2>&1 &
    echo $! >"$dir/unshare.$1.pid"
}

kill_node() {
    local pid
    if pid=$(pid_of "unshare.$1"); then
        # shellcheck disable=SC2046
        kill -9 $(cat "/proc/$pid/task/$pid/children") 2>/dev/null || true
        wait_until 60 ended "$pid"
    fi
    rm -f "$dir/unshare.$1.pid"
}

start() {
    local name
    for name in munged slurmctld slurmd srun unshare; do needs "$name"; done
    name_nodes 1 2
    if pid_of munged >/dev/null && pid_of slurmctld >/dev/null; then
        start_node n1
        start_node n2
    else
        stop_daemons
        rm -rf "$dir/state" "$dir/spool"
        write_configuration
        [[ -f $dir/munge.key ]] || (umask 077 && head -c 1024 /dev/urandom >"$dir/munge.key")
        munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
            --log-file="$dir/munged.log" --seed-file="$dir/munged.seed" </dev/null >/dev/null 2>&1 || give_up "munged did not start"
        slurmctld </dev/null >/dev/null 2>&1 || give_up "slurmctld did not start"
        wait_until 100 scontrol ping >/dev/null 2>&1 || give_up "slurmctld does not answer"
        start_node n1
        start_node n2
        wait_until 100 both_idle || give_up "the two nodes did not become idle: $(sinfo -h -o '%n %T %E' 2>&1)"
    fi
    echo "export SLURM_CONF=$SLURM_CONF"
}

stop_daemons() {
    local name pid
    kill_node n1
    kill_node n2
    for name in slurmctld munged; do
        if pid=$(pid_of "$name"); then
            kill "$pid" 2>/dev/null || true
            wait_until 30 ended "$pid" || kill -9 "$pid" 2>/dev/null || true # its file goes before it does
        fi
        rm -f "$dir/$name.pid"
    done
    rm -f "$dir"/munge.socket*
}

stop() {
    stop_daemons
    name_nodes
}

case $action in
    start) start ;;
    stop) stop ;;
    status)
        for name in "${daemons[@]}"; do echo "$name $(pid_of "$name" || echo down)"; done
        pid_of slurmctld >/dev/null || exit 3
        sinfo -N
        squeue ;;
    kill)
        [[ $node == n[12] ]] || { echo "which node, n1 or n2?" >&2; exit 2; }
        kill_node "$node"
        scontrol update NodeName="$node" State=DOWN Reason=died ;;
    revive) start_node "$node" ;;
    *) echo "start, stop, status, kill or revive; not $action" >&2; exit 2 ;;
esac

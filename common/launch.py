"""Which part of a training this process is: one reading of what a launcher, a cluster or flags say.

    python3 common/launch.py --devices=8        # for test/*.sh: ranks in all, machines, this machine, first local rank here, who says so, where
"""
import math
import os
import re
import signal
import sys
import zlib
from collections import namedtuple

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from common import cli, environment, ranges  # noqa: E402
from common.cli import UserError  # noqa: E402

# `local_ranks` are those that this process is (one, of a launcher that has started each) or has to start (all `local_size` of this
# machine); `rank` is that of the first of them. `started_by`: "" where nobody has.
Place = namedtuple("Place", "nnodes node_rank local_ranks local_size rank world_size address port started_by")

# What flags say, None where they do not: `devices` of this machine, ranks in all; `by_hand`: the (rank, world_size, local_rank,
# local_size) of a process that the user has started as one of them; `usual_port`, `usual_addr`: where ranks meet that
# nobody has told; `standalone`: whatever the environment says, there is no other machine.
Told = namedtuple("Told", "devices world_size nnodes node_rank addr port by_hand usual_port usual_addr standalone")
Told.__new__.__defaults__ = (None,) * len(Told._fields)

PODS = ("AscendJob", "PyTorchJob", "TrainJob", "Volcano")  # one process a pod


def read(environ, told=Told()):
    """Return the Place of this process by a mapping of environment variables and by `told`. What has started this very process goes
    before what has started that one (torchrun in srun in a pod); a launcher's number of ranks goes before that of flags.

    Raises UserError where something is missing or does not fit: signs of several machines and no way to join them above all.
    """
    for reading in (_standalone, _rank_of_torch, _rank_by_hand, _rank_of_ascend_job, _flags, _ascend_job, _kubeflow, _volcano,
                    _mpirun, _srun, _alone):
        place = reading(environ, told)
        if place:
            break
    if told.world_size not in (None, place.world_size):
        raise UserError("%d ranks are asked for, but the launcher has started %d" % (told.world_size, place.world_size))
    if len(place.local_ranks) < place.world_size and not (place.address and place.port):
        raise UserError("there are %d ranks on %d machine(s), but not MASTER_ADDR and MASTER_PORT (or --addr and --master-port): where "
                        "rank 0 is" % (place.world_size, place.nnodes))
    return place


def _number(environ, name, allowed=ranges.count, default=None):
    """Return what a variable says; where there is no `default` it has to be there."""
    if name not in environ and default is None:
        raise UserError("the environment has no %s, of which its other variables make one of several machines%s" % (name, _WAY_OUT))
    return environment.number(name, default, allowed, environ)


_WAY_OUT = "; let torchrun start the ranks, or say with --standalone that this machine trains alone"


def _starts(told, started_by, machine, size=None, master=None):
    """Return the Place of a process that starts the ranks of `machine`, (number, of how many): `size` of them, or as many as flags say."""
    node_rank, nnodes = machine
    if node_rank >= nnodes:
        raise UserError("node rank %d: with %d machine(s) it is 0 to %d" % (node_rank, nnodes, nnodes - 1))
    if told.world_size and not size and told.world_size % nnodes:
        raise UserError("%d ranks cannot be divided among %d machines" % (told.world_size, nnodes))
    if told.world_size and not size and told.devices not in (None, told.world_size // nnodes):
        raise UserError("%d ranks on %d machine(s): that needs %d here, but --device-list names %d" % (
            told.world_size, nnodes, told.world_size // nnodes, told.devices))
    size = size or told.devices or (told.world_size or nnodes) // nnodes
    address, port = master if nnodes > 1 else ("127.0.0.1", None)
    return Place(nnodes, node_rank, tuple(range(size)), size, node_rank * size, nnodes * size, told.addr or address, told.port or port,
                 started_by)


def _is_rank(started_by, number, local, master, machine=None):
    """Return the Place of a process that is one rank: `number` of all ranks, `local` on its machine, both (number, of how many)."""
    (rank, world_size), (local_rank, local_size) = number, local
    if rank >= world_size or local_rank >= local_size:
        raise UserError("rank %d of %d, local rank %d of %d: they count from 0" % (number + local))
    if not machine:  # its number is its place in the order of ranks, where nobody has said it
        machine = 0 if rank == local_rank else max(1, rank // local_size), -(-world_size // local_size)
    return Place(machine[1], machine[0], (local_rank,), local_size, rank, world_size, master[0], master[1], started_by)


# --- a reading for each launcher: a Place, or None where it has not started this process ----------------------------------

def _standalone(environ, told):
    return _starts(told, "", (0, 1)) if told.standalone else None


def _rank_of_torch(environ, told):
    by_torchrun = "TORCHELASTIC_RUN_ID" in environ
    if not by_torchrun and (not {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= set(environ) or _is_of_ascend_job(environ)):
        return None
    world_size = _number(environ, "WORLD_SIZE", ranges.size)
    rank = _number(environ, "RANK", ranges.whole(0, world_size - 1))
    local_rank = _number(environ, "LOCAL_RANK", ranges.whole(0, rank))
    # PyTorch 1.5's and 1.8's do not say how many ranks a machine has: as many as devices, if that can be, else as many as it can have.
    before, size = rank - local_rank, told.devices or 1
    if size == 1 or world_size % size or before % size or local_rank >= size:
        size = math.gcd(before, world_size)
    size = _number(environ, "LOCAL_WORLD_SIZE", ranges.whole(local_rank + 1, world_size), size)
    machine = by_torchrun and (_number(environ, "GROUP_RANK", default=before // size),
                               _number(environ, "GROUP_WORLD_SIZE", default=-(-world_size // size)))
    return _is_rank("torchrun" if by_torchrun else "torch.distributed.launch", (rank, world_size), (local_rank, size),
                    _master(environ, None), machine)


def _rank_by_hand(environ, told):
    return told.by_hand and _is_rank("flags", told.by_hand[:2], told.by_hand[2:], _master(environ, told, ("127.0.0.1", told.usual_port)))


def _flags(environ, told):
    return _on_machines(environ, told, told.node_rank) if (told.nnodes or 1) > 1 and told.node_rank is not None else None


def _on_machines(environ, told, node_rank):
    nnodes, usual = told.nnodes or 1, (told.usual_addr, told.usual_port)
    return _starts(told, "flags" if nnodes > 1 else "", (node_rank, nnodes), None, _master(environ, told, usual))


def _is_of_ascend_job(environ):
    """Whether LOCAL_RANK lists the NPUs of a pod: within it, a launcher of PyTorch has set another."""
    listed = environ.get("LOCAL_RANK", "")
    return "MINDX_TASK_ID" in environ and (listed == "" or str(listed.count(",") + 1) == environ.get("LOCAL_WORLD_SIZE", "1"))


def _rank_of_ascend_job(environ, told):
    """MindCluster's train_start.sh starts a process for each NPU, and counts nodes in the flags."""
    if not {"MINDX_TASK_ID", "DEVICE_INDEX"} <= set(environ):
        return None
    rank, world_size, size = [_number(environ, name) for name in ("DEVICE_INDEX", "WORLD_SIZE", "LOCAL_WORLD_SIZE")]
    return _is_rank("AscendJob", (rank, world_size), (rank % max(1, size), size), _master(environ, told))


def _ascend_job(environ, told):
    if "MINDX_TASK_ID" not in environ:
        return None
    if not environ.get("LOCAL_RANK"):
        raise UserError("the AscendJob gives this pod no NPU (LOCAL_RANK is empty)" + _WAY_OUT)
    size, world_size = _number(environ, "LOCAL_WORLD_SIZE", ranges.size), _number(environ, "WORLD_SIZE", ranges.size)
    if world_size % size:
        raise UserError("the AscendJob has %d NPUs, %d of them in this pod: its pods have to have equally many" % (world_size, size))
    return _starts(told, "AscendJob", (_number(environ, "RANK"), world_size // size), size, _master(environ, told))


def _kubeflow(environ, told):
    if "PET_NNODES" not in environ:
        return None
    if ":" in environ["PET_NNODES"]:
        raise UserError("PET_NNODES=%s is an elastic job, whose ranks torchrun has to start" % environ["PET_NNODES"])
    nnodes, size = _number(environ, "PET_NNODES", ranges.size), environ.get("PET_NPROC_PER_NODE", "")
    size = _number(environ, "PET_NPROC_PER_NODE", ranges.size) if size.isdecimal() else None  # or auto, cpu, gpu
    node_rank = _number(environ, "PET_NODE_RANK" if "PET_NODE_RANK" in environ or "RANK" not in environ else "RANK",
                        default=0 if nnodes == 1 else None)
    return _starts(told, "PyTorchJob" if "RANK" in environ else "TrainJob", (node_rank, nnodes), size, _master(environ, told))


def _volcano(environ, told):
    hosts = [name for name in environ if re.fullmatch("VC_.+_HOSTS", name)]
    if not hosts and "VC_TASK_INDEX" not in environ:
        return None
    if not {"RANK", "WORLD_SIZE"} <= set(environ):
        if sum(len(environ[name].split(",")) for name in hosts) > 1:
            raise UserError("this Volcano Job has several pods, but not the plug-in pytorch, which numbers them" + _WAY_OUT)
        return None
    return _starts(told, "Volcano", (_number(environ, "RANK"), _number(environ, "WORLD_SIZE", ranges.size)), None, _master(environ, told))


def _mpirun(environ, told):  # before Slurm: mpirun starts its daemons with srun, so its ranks have Slurm's variables as well
    if "OMPI_COMM_WORLD_RANK" not in environ:
        return None
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    rank, size, local_rank, local_size = [_number(environ, "OMPI_COMM_WORLD_" + name) for name in names]
    usual = ("127.0.0.1", _port_of(zlib.crc32(environ.get("PMIX_NAMESPACE", "").encode()))) if size == local_size else (None, None)
    return _is_rank("mpirun", (rank, size), (local_rank, local_size), _master(environ, told, usual))


def _srun(environ, told):
    nnodes = _number(environ, "SLURM_STEP_NUM_NODES", default=_number(environ, "SLURM_NNODES", default=1))
    if "SLURM_PROCID" not in environ or "SLURM_STEP_ID" not in environ:
        if nnodes > 1:
            raise UserError("this Slurm job has %d nodes, but srun has not started this process" % nnodes + _WAY_OUT)
        return None
    rank, node_rank, local_rank = [_number(environ, "SLURM_" + name) for name in ("PROCID", "NODEID", "LOCALID")]
    tasks = _number(environ, "SLURM_STEP_NUM_TASKS", default=_number(environ, "SLURM_NTASKS", default=1))
    job, step = _number(environ, "SLURM_JOB_ID", default=0), int(re.sub(r"\D", "", environ["SLURM_STEP_ID"]) or 0)
    first = _first_host(environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")) if nnodes > 1 else "127.0.0.1"
    master = _master(environ, told, (first, _port_of(job + 997 * step)))  # two jobs, or steps, on a node do not meet
    if tasks == nnodes:
        return _starts(told, "srun", (node_rank, nnodes), None, master)
    sizes = _tasks_of_nodes(environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE", ""))
    if node_rank >= len(sizes):
        raise UserError("SLURM_STEP_TASKS_PER_NODE says nothing of node %d" % node_rank)
    return _is_rank("srun", (rank, tasks), (local_rank, sizes[node_rank]), master, (node_rank, nnodes))


def _alone(environ, told):
    if _number(environ, "WORLD_SIZE", default=1) > 1:
        raise UserError("the environment's WORLD_SIZE is %s, but RANK and LOCAL_RANK do not say which rank this is%s"
                        % (environ["WORLD_SIZE"], _WAY_OUT))
    return _on_machines(environ, told, _number(environ, "NODE_RANK", default=0) if told.node_rank is None else told.node_rank)


# --- what they say ----------------------------------------------------------------------------------------------------

def _master(environ, told, usual=(None, None)):
    """Return (address, port) where rank 0 listens: as flags say, the environment, or as is `usual`."""
    says = environ.get("MASTER_ADDR") or environ.get("PET_MASTER_ADDR") or usual[0]
    name = "MASTER_PORT" if "MASTER_PORT" in environ else "PET_MASTER_PORT"
    port = _number(environ, name, ranges.port) if name in environ else usual[1]
    return (told.addr or says, told.port or port) if told else (says, port)


def _port_of(number):
    return 10000 + number % 20000


def _first_host(nodes):
    """Return the first name of Slurm's list, such as gpu01 of gpu[01-03,07],n2."""
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", re.match(r"(?:[^,[]|\[[^]]*\])*", nodes).group())


def _tasks_of_nodes(text):
    """Return [8, 8, 8, 4] for Slurm's 8(x3),4."""
    return [int(size) for size, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text) for _ in range(int(times or 1))]


def main():
    """Print what test/*.sh have to know."""
    parser = cli.Parser(description=__doc__)
    for name, allowed in (("devices", ranges.size), ("nnodes", ranges.size), ("node-rank", ranges.count), ("port", ranges.port)):
        parser.add_argument("--" + name, type=allowed)
    parser.add_argument("--addr")
    parser.add_argument("--standalone", action="store_true")
    place = read(os.environ, Told(usual_addr="127.0.0.1", usual_port=29501, **vars(parser.parse_args())))
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a script that was killed meanwhile does not read
    print(place.world_size, place.nnodes, place.node_rank, place.local_ranks[0], place.started_by or "nobody", place.address, place.port)


if __name__ == "__main__":
    cli.run(main)

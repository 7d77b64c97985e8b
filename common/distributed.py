"""From devices and machines, or from what a launcher says (launch.py), to one initialised process group.

One rank drives one device; torch.multiprocessing starts the ranks of a machine, unless a launcher has. A single one needs no group.
"""
import atexit
import contextlib
import functools
import inspect
import os
import re
import socket
from collections import namedtuple

import torch
import torch.distributed as dist

from common import cli, device as devices, environment, launch as launchers, meeting, spawn, watchdog
from common.cli import UserError

# What libraries say when memory is short, and when a rank that they talk to is gone.
_NO_MEMORY = re.compile("out of memory|(can.t|cannot|unable to) allocate|alloc_failed|storage size calculation overflow", re.IGNORECASE)
_LOST_RANK = re.compile("gloo/|connection (reset|closed|refused)|broken pipe|timed out|socket|RemoteError", re.IGNORECASE)

# The name of each rank's host, by its number: on rank 0, which has seen all of them come.
hosts = {}

# Sockets that reserve a port.
_keepers = []

# Before PyTorch 2.8 the last reference to a gloo group waits, with the interpreter's lock, for a thread that may want it.
_ended_groups = []


class Rank(namedtuple("Rank", "rank world_size local_rank device")):
    """One process of a training: `rank` of `world_size`, number `local_rank` on its machine, with its torch.device."""

    @property
    def is_main(self):
        """Whether this is rank 0, which prints, records and saves."""
        return self.rank == 0

    @property
    def tag(self):
        """How the Ascend ports begin a line: `[npu id: 0 ] `."""
        return "[%s id: %d ] " % (self.device.type, self.device.index or 0)

    def print(self, *lines):
        """Print the lines that are not empty, on rank 0."""
        for line in lines if self.is_main else ():
            if line:
                cli.print_line(line)


class Layout(namedtuple("Layout", "device_type indices place")):
    """Which devices take part: local rank k of this machine drives device `indices[k]`. `place`: a launch.Place."""

    @property
    def world_size(self):
        """Ranks over all machines."""
        return self.place.world_size

    def rank(self, local_rank):
        """Return the rank of a local rank that this process is or starts."""
        return self.place.rank + local_rank - self.place.local_ranks[0]


def layout(device_kind, indices, **told):
    """Check a user's choice of devices and machines and return the Layout. `told`: what else flags say, as in launch.Told.

    Raises UserError for absent devices, a launcher's environment that does not fit, an unknown address or a port that is taken.
    """
    device_type = devices.resolve(device_kind)
    place = launchers.read(os.environ, launchers.Told(devices=len(indices) or None, **told))
    size, is_rank = place.local_size, len(place.local_ranks) < place.local_size
    indices = sorted(indices)[:size] if len(indices) >= size else list(range(size))
    if is_rank and device_type != "cpu" and devices.count(device_type) == 1 and devices.are_chosen(device_type):
        indices = [0] * size  # the launcher lets each rank see its own device alone
    devices.require(device_type, [indices[local_rank] for local_rank in place.local_ranks])
    if place.world_size > 1:
        environment.check_address(place.address, 300 if place.started_by in launchers.PODS else 0)  # a pod's name may come late
    if len(place.local_ranks) > 1 and place.rank == 0:
        place = place._replace(port=reserve_port(place.port))
    return Layout(device_type, tuple(indices), place)


def reserve_port(port=None):
    """Return `port`, or any free one, after checking that this machine can listen there, whatever its address is called elsewhere. Until
    this process ends, the kernel gives it to nobody who asks for any port; who names it, as rank 0 does, can listen there."""
    keeper = socket.socket()
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        keeper.bind(("", port or 0))
    except (OSError, OverflowError) as error:
        keeper.close()
        raise UserError("cannot listen on port %s (%s); give another with --master_port"
                        % (port, getattr(error, "strerror", None) or error))
    _keepers.append(keeper)  # bound, not listening: rank 0 starts seconds later, and the port would be some connection's by then
    return keeper.getsockname()[1]


def launch(worker, args, layout):
    """Run `worker(args, rank)` on every device of the Layout `layout`; return when all ranks are done.

    Where a launcher has started this process as a rank, it runs the worker itself; so it does when there is one on this machine.
    Otherwise one process per device is spawned. When a rank fails, the others are stopped at once; so they are when nothing has
    moved for args.stall_timeout seconds. Raises what the failed rank met: UserError, TrainingStopped, Terminated,
    KeyboardInterrupt or RankFailed.
    """
    timeout, local_ranks = getattr(args, "stall_timeout", 0), layout.place.local_ranks
    if len(local_ranks) == 1:
        with watchdog.over_this_process(layout, local_ranks[0], timeout):
            _run_rank(worker, args, layout, local_ranks[0])
    else:
        spawn.run_ranks(functools.partial(_run_rank, worker, args, layout), layout, timeout)


def _run_rank(worker, args, layout, local_rank):
    device = devices.pick(layout.device_type, layout.indices[local_rank])
    deterministic = getattr(args, "deterministic", False)
    devices.set_arithmetic(device, deterministic, getattr(args, "allow_tf32", False))
    rank = Rank(layout.rank(local_rank), layout.world_size, local_rank, device)
    rank.print(deterministic and "deterministic: only algorithms that give the same bits at each call; on a GPU or an NPU they are slower")
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, environment.cpus() // len(layout.indices)))
    try:
        _work(worker, args, layout, rank)
    except (RuntimeError, MemoryError, OSError) as error:
        reason = _reason(error, rank)
        if reason is None:
            raise
        raise reason from None


def _work(worker, args, layout, rank):
    if rank.world_size == 1:
        return worker(args, rank)
    _meet(layout, rank)
    with watchdog.over_device(devices.asker(rank.device)) if rank.device.type != "cpu" else contextlib.suppress():
        worker(args, rank)
    if dist.get_backend() == "gloo":
        _ended_groups.append(dist.group.WORLD)
        atexit.register(cli.leave_at_once)  # or the process aborts now and then, over threads of the group
    dist.destroy_process_group()


def _meet(layout, rank):
    """Make the process group, and see that a collective comes through."""
    meeting.choose_interface(layout.place)
    ours = meeting.Meeting(layout.place, rank.rank)
    with ours.advised():
        dist.init_process_group(devices.BACKENDS[layout.device_type], store=ours.store(), rank=rank.rank, world_size=rank.world_size,
                                timeout=meeting.group_timeout(), **_bound_to(rank.device))
        barrier(rank)
    hosts.update(ours.hosts)


def _reason(error, rank):
    """Return in whose place an error of PyTorch or Python is told: of memory that is short or a rank that is gone; None for others."""
    text = str(error)
    if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
        size = re.search(r"allocate ([\d.]+ ?\w+)", text)
        line = "rank %d is out of memory on %s%s; a smaller --batch_size, a larger --accumulate or fewer --workers take less" % (
            rank.rank, rank.device, ", it tried to allocate " + size.group(1) if size else "")
        return UserError(line) if watchdog.mark.phase == watchdog.BEFORE else cli.TrainingStopped(line)
    if rank.world_size > 1 and isinstance(error, RuntimeError) and _LOST_RANK.search(text):
        return cli.TrainingStopped("rank %d %s (%s)" % (rank.rank, spawn.LOST_RANK, text.splitlines()[0]))
    return None


def _bound_to(device):
    """Return the option of init_process_group that binds this rank to its device, where PyTorch has it: nothing of the group, a
    barrier for one, may then touch device 0."""
    # Before torch.accelerator it is CUDA that can be bound; since then, what the plug-in has registered as accelerator.
    bindable = torch.accelerator.current_accelerator() if hasattr(torch, "accelerator") else torch.device("cuda")
    known = "device_id" in inspect.signature(dist.init_process_group).parameters
    return {"device_id": device} if known and bindable is not None and bindable.type == device.type else {}


def sum_over_ranks(values, rank):
    """Return the list of numbers `values` with each one summed over all ranks."""
    return begin_sum(values, rank)()


def begin_sum(values, rank):
    """Begin what `sum_over_ranks` does; return a function that waits for the list and returns it."""
    if rank.world_size == 1:
        return lambda: list(values)
    # An NPU has no float64; float32 still counts to 16 million exactly.
    dtype = torch.float32 if rank.device.type == "npu" else torch.float64
    tensor = torch.tensor(values, dtype=dtype, device=rank.device)
    work = dist.all_reduce(tensor, async_op=True)

    def wait():
        with watchdog.mark.within(watchdog.COLLECTIVE):
            work.wait()
            return tensor.tolist()

    return wait


def broadcast_buffers(model, rank):
    """Give every rank the buffers (running statistics) of rank 0, which are those that a checkpoint holds."""
    if rank.world_size > 1:
        with watchdog.mark.within(watchdog.COLLECTIVE):
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


def barrier(rank):
    """Wait for all ranks."""
    sum_over_ranks([0], rank)


def data_parallel(model, rank):
    """Return `model` in DistributedDataParallel where there are several ranks, else as it is.

    Each rank keeps its own running statistics while training, as in the Ascend ports: broadcasting them at each step
    costs a collective per BatchNorm and changes nothing in what rank 0 saves.
    """
    if rank.world_size == 1:
        return model
    wrapper = torch.nn.parallel.DistributedDataParallel
    known = inspect.signature(wrapper.__init__).parameters
    options = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
    if "gradient_as_bucket_view" in known:  # else each gradient is copied into what is sent, and back
        options["gradient_as_bucket_view"] = True
    return wrapper(model, device_ids=None if rank.device.type == "cpu" else [rank.device.index], **options)


def unwrapped(model):
    """Return the model inside DistributedDataParallel, or the model itself."""
    return getattr(model, "module", model)

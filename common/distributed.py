"""From upstream's flags, or from what torchrun sets, to one initialised process group.

One rank drives one device. The ranks of a machine are started by torch.multiprocessing, unless torchrun (or
torch.distributed.launch) has already done it. One rank in all needs no process group.
"""
import contextlib
import inspect
import multiprocessing.connection
import os
import signal
import socket
import sys
import time
import traceback
from collections import namedtuple

import torch
import torch.distributed as dist
import torch.multiprocessing

from common import cli, device as devices
from common.cli import UserError

# How often the ranks tell each other of a SIGTERM: a collective each step would cost as much as the logging of a loss.
_STEPS_BETWEEN_AGREEMENTS = 10


class Rank(namedtuple("Rank", "rank world_size local_rank device")):
    """One process of a training: `rank` of `world_size`, number `local_rank` on its machine, with its torch.device."""

    @property
    def is_main(self):
        return self.rank == 0


class Layout(namedtuple("Layout", "device_type indices nnodes node_rank init_method")):
    """Which devices take part: the device `indices` of this machine, and the same number on each of `nnodes` machines.

    Local rank k drives the k-th smallest index; rank = node_rank * len(indices) + k.
    """

    @property
    def world_size(self):
        return self.nnodes * len(self.indices)

    def rank(self, local_rank):
        return self.node_rank * len(self.indices) + local_rank


def layout(device_kind, indices, nnodes=1, node_rank=0, addr=None, port=None):
    """Check a user's choice of devices and machines and return the Layout.

    `addr` and `port` are where rank 0 listens; on a single machine they default to 127.0.0.1 and any free port. Under
    torchrun its environment says all that. Raises UserError for absent devices, a node rank out of range, or a port that is
    taken.
    """
    device_type = devices.resolve(device_kind)
    if _is_launched():
        return _launched_layout(device_type, indices)
    devices.require(device_type, indices)
    if not 0 <= node_rank < nnodes:
        raise UserError("node rank %d: with %d machine(s) it is 0 to %d" % (node_rank, nnodes, nnodes - 1))
    if nnodes > 1 and not (addr and port):
        raise UserError("%d machines need the address and the port of the first one (--addr, --master_port)" % nnodes)
    addr = addr or "127.0.0.1"
    if node_rank == 0 and nnodes * len(indices) > 1:
        port = _listenable(addr, port)
    return Layout(device_type, tuple(sorted(indices)), nnodes, node_rank, "tcp://%s:%s" % (addr, port))


def _is_launched():
    """Return whether torchrun or torch.distributed.launch has started this process as one rank."""
    return all(name in os.environ for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))


def _launched_layout(device_type, indices):
    world_size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))  # PyTorch 1.5's launcher does not tell
    if len(indices) != local_size:
        indices = range(local_size)
    devices.require(device_type, indices)
    return Layout(device_type, tuple(sorted(indices)), world_size // local_size, rank // local_size, "env://")


def meeting_point(addr, port, url):
    """Return (address, port) of machine 0 from the flags --addr, --master-port and --dist-url tcp://ADDRESS:PORT; what the
    first two say counts more. Either may be None. Raises UserError for another form of URL."""
    if not url:
        return addr, port
    url_addr, _, url_port = url.replace("tcp://", "").partition(":")
    if not url_port.isdigit():
        raise UserError("--dist-url %s is not of the form tcp://ADDRESS:PORT" % url)
    return addr or url_addr, port or int(url_port)


def _listenable(addr, port):
    """Return `port` (or any free one when it is None) after checking that this process can listen there."""
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((addr, port or 0))
        except (OSError, OverflowError) as error:
            raise UserError("cannot listen on %s port %s (%s); give another with --master_port, or another --addr"
                            % (addr, port, getattr(error, "strerror", None) or error))
        return probe.getsockname()[1]


def launch(worker, args, where):
    """Run `worker(args, rank)` on every device of the Layout `where`; return when all ranks are done.

    Started by torchrun, this process is one rank already and runs the worker itself; so it does when there is one rank
    in all. Otherwise one process per device is spawned. When a rank fails, the others are stopped at once. Raises what
    the failed rank met: UserError, Terminated, KeyboardInterrupt or RankFailed.
    """
    if _is_launched():
        _run_rank(worker, args, where, int(os.environ["LOCAL_RANK"]))
    elif where.world_size == 1:
        _run_rank(worker, args, where, 0)
    else:
        _spawn(worker, args, where)


def _run_rank(worker, args, where, local_rank):
    rank = Rank(where.rank(local_rank), where.world_size, local_rank, devices.pick(where.device_type, where.indices[local_rank]))
    if rank.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // len(where.indices)))
    if rank.world_size > 1:
        dist.init_process_group(devices.backend(where.device_type), init_method=where.init_method, rank=rank.rank,
                                world_size=rank.world_size)
    worker(args, rank)
    if rank.world_size > 1:
        dist.destroy_process_group()


def _spawn(worker, args, where):
    reader, writer = torch.multiprocessing.get_context("spawn").Pipe(duplex=False)
    context = torch.multiprocessing.spawn(  # kept: its semaphores go with it, and ranks are still opening them
        _spawned_rank, (worker, args, where, writer), nprocs=len(where.indices), join=False)
    processes = context.processes
    previous = signal.signal(signal.SIGTERM, lambda *_: [process.terminate() for process in processes])
    try:
        failure = _first_failure(processes, reader)
    finally:
        signal.signal(signal.SIGTERM, previous)
        for process in processes:  # all at once: each is a connection that the others would miss
            process.kill()
        for process in processes:
            process.join()
    if failure is not None:
        _raise_for(where, *failure)


def _spawned_rank(local_rank, worker, args, where, writer):
    messages = []
    try:
        status = cli.status_of(lambda: _run_rank(worker, args, where, local_rank), messages.append)
    except Exception:
        sys.stderr.write("rank %d:\n%s" % (where.rank(local_rank), traceback.format_exc()))
        status = cli.EXIT_FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    if status in (cli.EXIT_BAD_INPUT, cli.EXIT_FAILED):
        # Tell the parent and wait for it to stop every rank: were this one to end first, the others would lose their
        # connection and bury the reason under tracebacks of their own.
        writer.send((local_rank, status, messages))
        time.sleep(60)
    os._exit(status)  # do not wait for a collective library or for loader threads


def _first_failure(processes, reader):
    """Wait until all processes have ended well, or a rank has not: return its (local rank, status, messages), or None."""
    running = dict((process.sentinel, number) for number, process in enumerate(processes))
    stopping = None
    while running:
        for ready in multiprocessing.connection.wait(list(running) + [reader]):
            if ready is reader:
                return reader.recv()
            number = running.pop(ready)
            processes[number].join()
            status = processes[number].exitcode
            if status == cli.EXIT_TERMINATED:
                stopping = number, status, []  # all ranks have agreed to stop; rank 0 may still be writing
            elif status != 0:
                return number, status, []
    return stopping


def _raise_for(where, local_rank, status, messages):
    if status == cli.EXIT_BAD_INPUT:
        raise UserError(messages[0])
    if status == cli.EXIT_TERMINATED:
        raise cli.Terminated()
    if status == cli.EXIT_INTERRUPTED:
        raise KeyboardInterrupt()
    how = "ended with status %d" % status if status > 0 else "was killed by signal %d" % -status
    raise cli.RankFailed("rank %d %s; the other ranks were stopped" % (where.rank(local_rank), how))


def sum_over_ranks(values, rank):
    """Return the list of numbers `values` with each one summed over all ranks."""
    if rank.world_size == 1:
        return list(values)
    # An NPU has no float64; float32 still counts to 16 million exactly.
    dtype = torch.float32 if rank.device.type == "npu" else torch.float64
    tensor = torch.tensor(values, dtype=dtype, device=rank.device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def broadcast_int(value, rank):
    """Return rank 0's `value` (an integer below 2**31) on every rank."""
    if rank.world_size == 1:
        return value
    tensor = torch.tensor([value], dtype=torch.int32, device=rank.device)
    dist.broadcast(tensor, 0)
    return int(tensor.item())


def broadcast_buffers(model, rank):
    """Give every rank the buffers (running statistics) of rank 0, which are those that a checkpoint holds."""
    if rank.world_size > 1:
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
    new_name = "forward_sync_buffers"
    option = new_name if new_name in inspect.signature(wrapper.__init__).parameters else "broadcast_buffers"
    device_ids = None if rank.device.type == "cpu" else [rank.device.index]
    return wrapper(model, device_ids=device_ids, **{option: False})


def unwrapped(model):
    """Return the model inside DistributedDataParallel, or the model itself."""
    return getattr(model, "module", model)


class Preemption(object):
    """Notices SIGTERM, so that all ranks can stop after the same step."""

    def __init__(self, rank):
        self._rank = rank
        self._seen = self._agreed = False
        self._asked = 0
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_):
        self._seen = True

    def agreed(self, at_once=False):
        """Return whether to save and stop; every rank must ask at every step, and all get the same answer.

        Several ranks talk about it at every tenth step, or `at_once`."""
        self._asked += 1
        if self._rank.world_size == 1:
            return self._seen
        if at_once or self._asked % _STEPS_BETWEEN_AGREEMENTS == 0:
            self._agreed = self._agreed or sum_over_ranks([float(self._seen)], self._rank)[0] > 0
        return self._agreed

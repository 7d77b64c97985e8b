"""The virtual clock over two ranks: collectives take time on a stream of their own, and all ranks wait for the last."""

import datetime
import os

import pytest
import torch
import torch.distributed as dist
from check_clock import MS, OPERATOR, ahead, ones, steps
from torch import nn
from torch_npu import _clock

RANK, RANKS, COLLECTIVE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), 30 * MS


@pytest.fixture(scope="module", autouse=True)
def group():
    torch.npu.set_device(RANK)
    dist.init_process_group("hccl", init_method=os.environ["INIT_METHOD"], rank=RANK, world_size=RANKS,
                            timeout=datetime.timedelta(seconds=60))
    yield
    dist.destroy_process_group()


def test_the_ranks_wait_for_the_last():
    """Rank 1 comes late: on both ranks the result is there when rank 1's device has come and the collective has run. Neither
    host waits before it reads."""
    x, waits = ones(RANK), _clock.waits()[0]
    if RANK == 1:
        x = steps(x, 10)
    dist.all_reduce(x)
    assert _clock.waits()[0] == waits and ahead(RANK) > 5 * OPERATOR + COLLECTIVE
    assert x[0].item() == 12 and ahead(RANK) <= 0


def test_collectives_are_in_order_beside_compute():
    """Two asynchronous collectives run one after the other while the device computes; who waits for the second has both."""
    x, y, z = ones(RANK), ones(RANK), ones(RANK)
    began, busy = _clock.device_time(RANK), _clock.busy_time(RANK)
    works = [dist.all_reduce(t, async_op=True) for t in (x, y)]
    steps(z, 3)
    works[1].wait()
    work = _clock.busy_time(RANK) - busy
    assert work > 3 * OPERATOR + 2 * COLLECTIVE - MS and _clock.device_time(RANK) - began < work
    works[0].wait()
    assert x.tolist() == y.tolist() == [2] * 8


def test_a_barrier_waits_on_the_host():
    """barrier() makes the host wait for the devices of all ranks."""
    x, waits = ones(RANK), _clock.waits()[0]
    if RANK == 1:
        steps(x, 10)
    dist.barrier(device_ids=[RANK])
    assert _clock.waits()[0] == waits + 1 and ahead(RANK) <= 0


def test_data_parallel_training_runs_ahead():
    """The gradients' collectives of DDP are launched too: a step ends before its device does."""
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)).npu(), device_ids=[RANK])
    x = ones(RANK)
    for _ in range(2):
        loss = model(x).sum()
        waits = _clock.waits()[0]
        loss.backward()
    assert _clock.waits()[0] == waits and ahead(RANK) > 5 * OPERATOR + COLLECTIVE
    assert len({p.grad.sum().item() for p in model.parameters()}) > 1


def test_ranks_on_their_own():
    """send and recv, scatter and gather finish on a clock, too."""
    x = ones(RANK)
    if RANK == 0:
        dist.send(x, 1)
    else:
        dist.recv(x, 0)
    parts = [torch.zeros(8, device=x.device) for _ in range(RANKS)]
    dist.all_gather(parts, x)
    dist.reduce_scatter_tensor(x, torch.cat(parts))
    assert x.tolist() == [2] * 8

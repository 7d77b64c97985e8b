"""Each collective that a training can call against its definition, on real ranks; prints a line of JSON per collective on rank 0.

Run by stage 4 as `python -m certificate._collectives KIND RANKS`. The numbers are small integers, which every order of adding gives
exactly.
"""
import argparse
import json
import sys

import torch
import torch.distributed as dist

from common import cli, distributed

LENGTH = 1000


def value(rank, size):
    """Return the tensor of a rank: integers that differ from rank to rank and from place to place."""
    return torch.arange(size, dtype=torch.float32) % 97 + 100 * (rank + 1)


def worker(args, rank):
    """Call each collective, and have rank 0 print whether the results of all ranks are those of the definition."""
    for name, call in sorted(COLLECTIVES.items()):
        try:
            wrong, said = call(rank), ""
        except RuntimeError as error:
            wrong, said = 1, str(error).splitlines()[0]
        total = distributed.sum_over_ranks([float(wrong)], rank)[0]
        if rank.is_main:
            cli.print_line(json.dumps({"collective": name, "wrong": int(total), "said": said}))


def _wrong(found, wanted):
    return int((found.cpu() != wanted).sum())


def _values(rank):
    return [value(each, LENGTH) for each in range(rank.world_size)]


def _mine(rank):
    return value(rank.rank, LENGTH).to(rank.device)


def _all_reduce(rank):
    tensor = _mine(rank)
    dist.all_reduce(tensor)
    return _wrong(tensor, sum(_values(rank)))


def _all_reduce_max(rank):
    tensor = _mine(rank)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return _wrong(tensor, torch.stack(_values(rank)).max(0)[0])


def _broadcast(rank):
    root = rank.world_size - 1
    tensor = _mine(rank)
    dist.broadcast(tensor, root)
    return _wrong(tensor, value(root, LENGTH))


def _all_gather(rank):
    gathered = [torch.zeros(LENGTH, device=rank.device) for _ in range(rank.world_size)]
    dist.all_gather(gathered, _mine(rank))
    return sum(_wrong(*pair) for pair in zip(gathered, _values(rank)))


def _reduce(rank):
    tensor = _mine(rank)
    dist.reduce(tensor, 0)
    return _wrong(tensor, sum(_values(rank))) if rank.is_main else 0


def _sum_over_ranks(rank):
    found = distributed.sum_over_ranks([rank.rank + 1.0, 2.0 ** rank.rank], rank)
    return int(found != [rank.world_size * (rank.world_size + 1) / 2, 2.0 ** rank.world_size - 1])


def _broadcast_buffers(rank):
    norm = torch.nn.BatchNorm1d(LENGTH).to(rank.device)
    norm.running_mean.copy_(_mine(rank))
    distributed.broadcast_buffers(norm, rank)
    return _wrong(norm.running_mean, value(0, LENGTH))


def _gradients(rank):
    """DistributedDataParallel gives each rank the mean of the ranks' gradients."""
    layer = torch.nn.Linear(LENGTH, 1, bias=False).to(rank.device)
    model = distributed.data_parallel(layer, rank)
    model(_mine(rank)[None] * rank.world_size).sum().backward()  # a multiple: the mean is a whole number
    return _wrong(layer.weight.grad[0], sum(_values(rank)))


COLLECTIVES = {"all_reduce(sum)": _all_reduce, "all_reduce(max)": _all_reduce_max, "broadcast": _broadcast,
               "all_gather": _all_gather, "reduce": _reduce, "distributed.sum_over_ranks": _sum_over_ranks,
               "distributed.broadcast_buffers": _broadcast_buffers, "mean of gradients": _gradients}


def main():
    """Start the ranks."""
    kind, ranks = sys.argv[1], int(sys.argv[2])
    args = argparse.Namespace(stall_timeout=120)
    distributed.launch(worker, args, distributed.layout(kind, list(range(ranks)), standalone=True))


if __name__ == "__main__":
    cli.run(main)

"""Which checkpoint a training goes on from: the same on every rank, whichever machine has it."""
import io
import os

import numpy as np
import torch
import torch.distributed as dist

from common import checkpoint, distributed, entries, outputs, watchdog
from common.cli import UserError

AUTO = "auto"  # --resume
_LAUNCHED = ("RANK", "PET_NNODES", "SLURM_STEP_ID", "OMPI_COMM_WORLD_RANK")  # each launcher sets one of them


def choose(asked, own, rank):
    """Return (content, file) of the checkpoint to go on from, or ({}, "") where a run begins. Every rank has to call.

    `asked`: a file, which rank 0's machine has to have; AUTO: the newest of the checkpoints that the machines have at `own` (a path,
    or None), if there is one; None: that one too, but only where this run has written it, before its torchrun started it again.
    Raises UserError for a file that no training can go on from.
    """
    found = {}, ""
    if asked not in (None, AUTO):
        found = (checkpoint.load(asked), asked) if rank.is_main else found
    elif own and (asked or outputs.is_of_this_launch(own)) and (rank.is_main or rank.local_rank == 0):
        found = checkpoint.load_newest(own, rank.print)
    entries.check_run(*found)
    return found if rank.world_size == 1 else _newest(*found, rank)


def _newest(content, path, rank):
    """Return (content, file) of the rank that is furthest, on every rank."""
    places = [0] * (2 * rank.world_size)
    if path:
        places[2 * rank.rank:2 * rank.rank + 2] = content.get("epoch", 0) + 1, content.get("step", 0)
    places = distributed.sum_over_ranks(places, rank)
    places = list(zip(places[::2], places[1::2]))
    source = places.index(max(places))
    if not any(places[source]):
        return {}, ""
    rank.print(source and "the newest checkpoint is that of rank %d; its machine has the records of the run so far" % source)
    name, _, file = _broadcast(_named_file(path) if rank.rank == source else b"", source, rank).partition(b"\0")
    return (content, path) if rank.rank == source else (checkpoint.parse(io.BytesIO(file)), name.decode(errors="surrogateescape"))


def _named_file(path):
    with open(path, "rb") as stream:
        return path.encode(errors="surrogateescape") + b"\0" + stream.read()


def _broadcast(data, source, rank):
    """Return the bytes of rank `source`."""
    whole, rest = distributed.sum_over_ranks(divmod(len(data), 2 ** 20), rank)  # each is exact in an NPU's float32
    tensor = torch.empty(int(whole) * 2 ** 20 + int(rest), dtype=torch.int8)
    if rank.rank == source:
        tensor.copy_(torch.from_numpy(np.frombuffer(data, np.int8).copy()))
    tensor = tensor.to(rank.device)
    with watchdog.mark.within(watchdog.COLLECTIVE):
        dist.broadcast(tensor, source)
    return tensor.cpu().numpy().tobytes()


def batch_of_rank(batch, accumulate, resumed, rank):
    """Return how many images of a rank make a batch: `batch`, as the run is told, or where a launcher has started another number
    of ranks than the run to go on with had (`resumed`: the content of its checkpoint), what leaves the images of an update as they
    were. Raises UserError where these cannot be divided."""
    ranks, images = resumed.get("world_size", rank.world_size), resumed.get("global_batch")
    parts = rank.world_size * accumulate
    if ranks == rank.world_size or images != batch * accumulate * ranks or not any(map(os.environ.get, _LAUNCHED)):
        return batch
    if images % parts:
        raise UserError("the run to resume has %d images in an update, of %d ranks; %d ranks%s cannot share them evenly" % (
            images, ranks, rank.world_size, " times --accumulate %d" % accumulate if accumulate > 1 else ""))
    rank.print("%d ranks, before %d: %d images of a rank make a batch now, and %d an update as before"
               % (rank.world_size, ranks, images // parts, images))
    return images // parts

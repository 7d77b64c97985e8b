"""Accuracy over the whole validation set, for all three phases."""
from collections import namedtuple

import torch
import torch.nn.functional as functional

from common import distributed, meters
from common.cli import UserError

# Top-1 and top-5 in per cent, and the mean cross entropy of an image.
Result = namedtuple("Result", "top1 top5 loss")


def evaluate(batches, model, amp, rank):
    """Return the Result over the validation set: in order, each image once, counts summed over the ranks.

    Every rank uses rank 0's running statistics. The mean of the loss is over images, so that it does not depend on how they are
    divided among batches and ranks (upstream's is over batches).
    """
    distributed.broadcast_buffers(model, rank)
    network = distributed.unwrapped(model)  # a rank may get a batch fewer than the others: no collective in here
    network.eval()
    sums = torch.zeros(3, device=rank.device)
    count = 0
    with torch.no_grad():
        for images, target in batches:
            with amp.autocast():
                output = network(images).float()
            sums[:2] += torch.stack(meters.correct_counts(output, target, topk=(1, 5)))
            sums[2] += functional.cross_entropy(output, target) * len(target)
            count += len(target)
    correct1, correct5, loss, count = distributed.sum_over_ranks(sums.tolist() + [count], rank)
    if count == 0:
        raise UserError("no validation image could be read")
    return Result(100 * correct1 / count, 100 * correct5 / count, loss / count)

"""One pass over a validation set: in order, each image once over all ranks."""
import torch

from common import bar, distributed
from common.meters import Clock, Tally
from common.predictions import Predictions
from common.preemption import Preemption


def evaluate(batches, learner, rank, show=None, every=1, first=0, clock=None):
    """Return the meters.Result of `learner` (model, criterion and amp of a progress.Learner) over `batches`, with the running
    statistics of rank 0, which are those that a checkpoint holds.

    `show(step, tally, clock)` is called after every `every`-th batch of this rank from `first` on, to print a line. `clock`: the
    meters.Clock to measure with. Raises UserError where there is no image, TrainingStopped for a loss that is not finite, and in a
    training Terminated, after saving, when SIGTERM has come: a resumed run evaluates anew.
    """
    preemption, predictions = Preemption.listening(), Predictions() if Predictions.path and hasattr(batches, "source") else None
    tally, clock = Tally("the evaluation"), clock or Clock(rank.device, len(batches))
    distributed.broadcast_buffers(learner.model, rank)
    network = distributed.unwrapped(learner.model).eval()
    with torch.no_grad():  # and without a collective: a rank may get a batch fewer than the others
        for step, (images, target) in enumerate(clock.over(batches)):
            bar.hide(step, batches)
            with learner.amp.autocast():
                output = network(images).float()
            tally.add(learner.criterion(output, target), output, target)
            if predictions:
                predictions.add(output, target)
            clock.lap(len(target) * rank.world_size)
            if show and step % every == first:
                tally.read()
                clock.split()
                show(step, tally, clock)
            if preemption and preemption.seen:
                break
        clock.stop()
    bar.show()
    if preemption:
        preemption.leave_if_asked()
    if predictions:
        predictions.write(batches, rank)
    return tally.result(rank)

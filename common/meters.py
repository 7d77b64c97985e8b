"""Averages, accuracy, and the time that steps take."""
import contextlib
import math
import statistics
import time
from collections import namedtuple

import torch

from common import device as devices, distributed, ranges, watchdog
from common.cli import TrainingStopped, UserError

# Of an evaluation over all ranks: per cent, per cent, mean over the images.
Result = namedtuple("Result", "top1 top5 loss")

# Of one batch: number of images, mean loss, per cent, per cent.
BatchResult = namedtuple("BatchResult", "images loss top1 top5")


class AverageMeter(object):
    """The latest value, and the average weighted by counts."""

    def __init__(self, name, fmt=":f"):
        self.name, self.fmt = name, fmt
        self.val = self.sum = self.count = 0

    def update(self, value, count=1):
        """Note a value that holds for `count` images (or steps)."""
        self.val = value
        self.sum += value * count
        self.count += count

    @property
    def avg(self):
        """The average so far, 0 without any value."""
        return self.sum / self.count if self.count else 0.0

    def __str__(self):
        return ("{} {%s} ({%s})" % (self.fmt, self.fmt)).format(self.name, self.val, self.avg)


class Tally(object):
    """Loss, top-1 and top-5 of the batches of an epoch or of an evaluation.

    What a batch gives stays on the device until `fetch` brings all of it at once into the meters `loss`, `top1` and `top5`. `batches`
    counts them; `recent`, after `read`, are the BatchResults of a line. `name` says in errors what is counted, such as "epoch 3".
    `reduce`: what the stacked numbers (batches, 2 to 6) go through on the device, such as a mean over the ranks.
    """

    def __init__(self, name, reduce=None):
        self.name, self._reduce = name, reduce
        self.reset()

    def reset(self):
        """Forget everything."""
        self.loss, self.top1, self.top5 = AverageMeter("Loss", ":.4e"), AverageMeter("Acc@1", ":6.2f"), AverageMeter("Acc@5", ":6.2f")
        self.recent, self._window, self._pending, self.batches = [], [], [], 0

    def add(self, loss, output, target):
        """Note a batch: `loss` its mean (a scalar), `output` (N, classes), `target` (N,), all on the device."""
        largest = output.detach().topk(min(5, output.shape[1]), dim=1)[1]
        hits = largest.eq(target.view(-1, 1)).sum(0, dtype=torch.float32)  # for each of the largest outputs
        self._pending.append((len(target), torch.cat([loss.detach().float().view(1), hits])))

    def fetch(self):
        """Bring the numbers of the batches since the last time to the host, which waits for the device. Raises TrainingStopped
        for a loss that is not finite."""
        if not self._pending:
            return
        counts = [images for images, _ in self._pending]
        with watchdog.mark.within(watchdog.STEP):
            values = torch.stack([numbers for _, numbers in self._pending])
            values = (self._reduce(values) if self._reduce else values).tolist()
        self._pending = []
        for images, (loss, *hits) in zip(counts, values):
            if not math.isfinite(loss):
                raise TrainingStopped("the loss is %s in step %d of %s: the weights or the images are not finite numbers; a lower "
                                      "learning rate may help" % (loss, self.batches, self.name))
            self._count(images, loss, hits[0], sum(hits))

    def read(self):
        """Fetch for a line: `recent` are then the batches since the last time."""
        self.fetch()
        self.recent, self._window = self._window, []

    def _count(self, images, loss, hits1, hits5):
        self.batches += 1
        batch = BatchResult(images, loss, 100.0 * hits1 / images, 100.0 * hits5 / images)
        self._window.append(batch)
        for meter, value, total in ((self.loss, loss, loss * images), (self.top1, batch.top1, 100.0 * hits1),
                                    (self.top5, batch.top5, 100.0 * hits5)):
            meter.val, meter.sum, meter.count = value, meter.sum + total, meter.count + images

    def result(self, rank):
        """Return the Result over all ranks (a collective). Raises UserError where there was no image, and as `fetch` does."""
        self.fetch()
        images, *sums = distributed.sum_over_ranks([self.loss.count, self.top1.sum, self.top5.sum, self.loss.sum], rank)
        if images == 0:
            raise UserError("no image of the validation set could be read")
        return Result(*(value / images for value in sums))

    def state_dict(self):
        """Return all that has been fetched, as plain numbers."""
        return {"batches": self.batches, "recent": [list(batch) for batch in self._window],
                "meters": [[meter.val, meter.sum, meter.count] for meter in (self.loss, self.top1, self.top5)]}

    def load_state_dict(self, state):
        """Restore what `state_dict` returned. Raises ValueError or another exception for what it cannot have returned."""
        self.reset()
        self.batches, self._window = state["batches"], [BatchResult(*batch) for batch in state["recent"]]
        for meter, (value, total, count) in zip((self.loss, self.top1, self.top5), state["meters"]):
            meter.val, meter.sum, meter.count = value, total, count
        if not all(number in ranges.natural for row in [[self.batches], *self._window, *state["meters"]] for number in row):
            raise ValueError("not all of it is numbers")


class Clock(object):
    """What steps take: images per second over the steady steps of a run, and seconds a step (`step_time`) and for the wait for its
    batch (`data_time`), with their averages over an epoch; `own_time`, lately, up to where a rank waits for others: that wait, forward.

    A device runs behind the host, so time is read only where the host has waited for it: where `over` begins, at `split` and `stop`,
    and when the `warmup_steps` are over, which compile and fill caches and do not count for the images per second. What lies after
    `stop`, or in `paused`, does not count at all.
    """

    def __init__(self, device, steps_left, usual_warmup=10):
        """`steps_left`: of the run; where they are few, fewer than `usual_warmup` are left out."""
        self._device = device
        self.warmup_steps = self._left_to_warm_up = max(1, min(usual_warmup, steps_left // 2))
        self.steps = self.images = self.seconds = self.own_time = 0
        self.of_ranks = []  # own_time and data_time of each rank, as the ranks have told each other lately
        self._lapped = self._is_disturbed = False

    def over(self, batches):
        """Iterate over the batches of an epoch, for a loop whose body calls `lap` for each."""
        watchdog.mark.enter(watchdog.DATA, begins=True)
        self.step_time, self.data_time = AverageMeter("Time", ":6.3f"), AverageMeter("Data", ":6.3f")
        self._open()
        for batch in batches:
            watchdog.mark.enter(watchdog.STEP)
            self._waited += time.perf_counter() - self._asked
            self._came, self._lapped = devices.mark_time(self._device), False
            yield batch
            assert self._lapped, "the body of the loop has not called clock.lap"
            watchdog.mark.enter(watchdog.DATA)
            self._asked = time.perf_counter()

    def forward_is_over(self):
        """The host has asked for the network's output."""
        self._forwards.append((self._came, devices.mark_time(self._device)))

    def lap(self, images):
        """The host is through with a step over `images` images (of all ranks)."""
        self._lapped = watchdog.mark.is_steady = True
        self._laps += 1
        self._images += images
        if self._left_to_warm_up > 0:
            self._left_to_warm_up -= 1
            if self._left_to_warm_up == 0:
                self.split()

    def split(self):
        """Take the time since the last split, after waiting for the device."""
        self._count()
        self._open()

    def leave_out(self, is_disturbed):
        """From here on, what steps take does not count for the images per second, or does again."""
        self._is_disturbed = is_disturbed
        self.split()

    def stop(self):
        """Count what has been measured so far; what follows, up to the next epoch, does not count."""
        self._count()
        watchdog.mark.enter(watchdog.BETWEEN, begins=True)

    def _count(self):
        seconds = self._now() - self._since
        if self._laps == 0:
            return
        self.step_time.update(seconds / self._laps, self._laps)
        self.data_time.update(self._waited / self._laps, self._laps)
        self.own_time = (self._waited + sum(devices.seconds_between(*ends) for ends in self._forwards)) / self._laps
        if self._is_steady:
            self.steps, self.images, self.seconds = self.steps + self._laps, self.images + self._images, self.seconds + seconds

    @contextlib.contextmanager
    def paused(self):
        """What is done in here, such as writing a checkpoint, does not count."""
        self._count()
        yield
        self._open()

    @property
    def images_per_second(self):
        """The rate over steady steps, or None when there was none."""
        return self.images / self.seconds if self.seconds else None

    def straggler(self):
        """Return what a record says of the rank that the others wait for, {} where it is not known."""
        if not any(self.of_ranks):
            return {}
        own = self.of_ranks[::2]
        slowest = own.index(max(own))
        return {"train.slowest_rank": slowest, "train.slowest_host": distributed.hosts[slowest], "train.slowest_time": own[slowest],
                "train.slowest_data_time": self.of_ranks[2 * slowest + 1], "train.median_time": statistics.median(own)}

    def summary(self):
        """Return what the summary of a run says about its speed."""
        return {"train.total_ips": self.images_per_second, "steady_steps": self.steps, "warmup_steps": self.warmup_steps,
                "peak_memory_bytes": devices.peak_memory(self._device)}

    def _open(self):
        self._laps, self._images, self._waited, self._forwards = 0, 0, 0.0, []
        self._is_steady = self._left_to_warm_up == 0 and not self._is_disturbed
        self._since = self._asked = self._now()

    def _now(self):
        with watchdog.mark.within(watchdog.STEP):
            devices.synchronize(self._device)
        return time.perf_counter()

"""Averages, accuracy and throughput."""
import time

import torch

from common import device as devices


class AverageMeter(object):
    """The latest value, and the average weighted by counts. Values may be tensors: they stay on the device until shown."""

    def __init__(self, name, fmt=":f"):
        self.name, self.fmt = name, fmt
        self.val = self.sum = self.count = 0

    def update(self, value, count=1):
        self.val = value.detach() if torch.is_tensor(value) else value
        self.sum = self.sum + self.val * count
        self.count += count

    @property
    def avg(self):
        return float(self.sum) / self.count if self.count else 0.0

    def __str__(self):
        return ("{} {%s} ({%s})" % (self.fmt, self.fmt)).format(self.name, float(self.val), self.avg)


def accuracy(output, target, topk=(1,)):
    """Return, for each k, the percentage of rows of `output` (N, classes) whose `target` (N,) is among the k largest."""
    return [100.0 * correct / len(target) for correct in correct_counts(output, target, topk)]


def correct_counts(output, target, topk=(1,)):
    """Return, for each k, how many rows of `output` (N, classes) have their `target` (N,) among the k largest."""
    largest = min(max(topk), output.shape[1])
    hits = output.topk(largest, dim=1)[1].eq(target.view(-1, 1))
    return [hits[:, :k].float().sum() for k in topk]


class Throughput(object):
    """Images per second over steady steps: the first `warmup_steps` of the run, which compile and fill caches, are left out.

    Call `start()` before the steps of an epoch, `step(images)` after each, `stop()` after the last; what lies between epochs
    (validation, checkpoints) does not count. The device is waited for twice an epoch, not at each step.
    """

    def __init__(self, device, warmup_steps=10):
        self._device = device
        self._left_to_warm_up = self.warmup_steps = warmup_steps
        self.steps = self.images = 0
        self.seconds = 0.0
        self._since = None

    def start(self):
        if self._left_to_warm_up == 0:
            self._since = self._now()

    def step(self, images):
        """Note one step over `images` images (of all ranks)."""
        if self._left_to_warm_up > 0:
            self._left_to_warm_up -= 1
            if self._left_to_warm_up == 0:
                self._since = self._now()
            return
        self.steps += 1
        self.images += images

    def stop(self):
        if self._since is not None:
            self.seconds += self._now() - self._since
            self._since = None

    @property
    def images_per_second(self):
        """The rate, or None when no steady step was measured."""
        return self.images / self.seconds if self.steps and self.seconds else None

    def summary(self):
        """Return what the summary of a run says about its speed."""
        return {"train.total_ips": self.images_per_second, "steady_steps": self.steps, "warmup_steps": self.warmup_steps,
                "peak_memory_bytes": devices.peak_memory(self._device)}

    def _now(self):
        devices.synchronize(self._device)
        return time.perf_counter()


def warmup_steps(steps_in_all, usual=10):
    """Return how many steps to leave out of the throughput: `usual`, fewer in a run so short that nothing would be left."""
    return max(1, min(usual, steps_in_all // 2))

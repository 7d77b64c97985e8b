"""What is measured in training and evaluation, and the lines that say it.

Values of a *_iter line are medians over the last LOG_PERIOD steps, those of an *_epoch line means over the epoch's images.
Times include the wait for data.
"""
import datetime
import math
import resource
import time
from collections import deque

import numpy as np

from common import device as devices
from pycls.core import logging
from pycls.core.config import cfg

logger = logging.get_logger(__name__)


class Timer(object):
    """Mean time of a step. `toc(n)` closes n steps at once: the device is only waited for when numbers are fetched."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.total, self.calls, self.diff = 0.0, 0, 0.0
        self.tic()

    def tic(self):
        self._started = time.perf_counter()

    def toc(self, steps=1):
        seconds = time.perf_counter() - self._started
        self.total += seconds
        self.calls += steps
        self.diff = seconds / steps

    @property
    def average(self):
        return self.total / self.calls if self.calls else 0.0


class Window(object):
    """Median of the last LOG_PERIOD values, and their mean over an epoch weighted by images."""

    def __init__(self):
        self._recent = deque(maxlen=cfg.LOG_PERIOD)
        self.reset()

    def reset(self):
        self._recent.clear()
        self._total = self._weight = 0.0

    def add(self, value, weight):
        self._recent.append(value)
        self._total += value * weight
        self._weight += weight

    @property
    def median(self):
        return float(np.median(self._recent))

    @property
    def mean(self):
        return self._total / self._weight


def memory_mb(device):
    """Return the peak of allocated memory in MiB: of the device, or of this process where it computes on a CPU."""
    peak = devices.peak_memory(device)
    if peak is None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    return int(math.ceil(peak / 1024.0 ** 2))


def time_string(seconds):
    """Return seconds as DD,HH:MM:SS."""
    eta = datetime.timedelta(seconds=int(seconds))
    hours, minutes = eta.seconds // 3600, eta.seconds % 3600 // 60
    return "%02d,%02d:%02d:%02d" % (eta.days, hours, minutes, eta.seconds % 60)


class TrainMeter(object):
    """Loss and errors of training. `throughput` (common.meters.Throughput) gives FPS, over its steady steps alone."""

    def __init__(self, epoch_iters, throughput, device):
        self.epoch_iters = epoch_iters
        self.max_iter = cfg.OPTIM.MAX_EPOCH * epoch_iters
        self.iter_timer = Timer()
        self.throughput = throughput
        self.device = device
        self.loss, self.top1_err, self.top5_err = Window(), Window(), Window()
        self.reset()

    def reset(self):
        """Forget the epoch's numbers, but not its times: time_avg is over the whole run."""
        for window in (self.loss, self.top1_err, self.top5_err):
            window.reset()
        self.lr = self.last_loss = None

    def start(self):
        """Start the clocks of the steps that follow."""
        self.throughput.start()
        self.iter_timer.tic()

    def update_stats(self, top1_err, top5_err, loss, lr, mb_size):
        """Note one step over `mb_size` images of all ranks: errors in per cent."""
        self.top1_err.add(top1_err, mb_size)
        self.top5_err.add(top5_err, mb_size)
        self.loss.add(loss, mb_size)
        self.lr, self.last_loss = lr, loss

    def _common(self, cur_epoch, done):
        return dict(_rate(self.throughput, cfg.TRAIN.BATCH_SIZE), epoch="%d/%d" % (cur_epoch + 1, cfg.OPTIM.MAX_EPOCH),
                    time_avg=self.iter_timer.average, eta=time_string(self.iter_timer.average * (self.max_iter - done)),
                    lr=self.lr, mem=memory_mb(self.device))

    def log_iter_stats(self, cur_epoch, cur_iter):
        """Log a train_iter line after every LOG_PERIOD-th step."""
        if (cur_iter + 1) % cfg.LOG_PERIOD != 0:
            return
        stats = self._common(cur_epoch, cur_epoch * self.epoch_iters + cur_iter + 1)
        stats.update(iter="%d/%d" % (cur_iter + 1, self.epoch_iters), time_diff=self.iter_timer.diff,
                     top1_err=self.top1_err.median, top5_err=self.top5_err.median, loss=self.loss.median)
        logger.info(logging.stats_line(stats, "train_iter"))

    def log_epoch_stats(self, cur_epoch):
        """Log the train_epoch line."""
        stats = self._common(cur_epoch, (cur_epoch + 1) * self.epoch_iters)
        stats.update(time_epoch=self.iter_timer.average * self.epoch_iters,
                     top1_err=self.top1_err.mean, top5_err=self.top5_err.mean, loss=self.loss.mean)
        logger.info(logging.stats_line(stats, "train_epoch"))


class TestMeter(object):
    """Errors of evaluations. An epoch's are over all images of all ranks, each counted once."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    def __init__(self, epoch_iters, device, name="test"):
        self.epoch_iters = epoch_iters
        self.device = device
        self.name = name
        self.iter_timer = Timer()
        self.min_top1_err = self.min_top5_err = 100.0
        self.top1_err, self.top5_err = Window(), Window()
        self.reset()

    def reset(self, throughput=None):
        """Forget the last evaluation, its times too; `throughput` measures the next."""
        self.iter_timer.reset()
        self.top1_err.reset()
        self.top5_err.reset()
        self.throughput = throughput
        self.totals = [0.0, 0.0, 0.0, 0.0]

    def start(self):
        """Start the clocks of the steps that follow."""
        self.throughput.start()
        self.iter_timer.tic()

    def update_stats(self, top1_hits, top5_hits, loss_sum, mb_size):
        """Note one step of this rank over `mb_size` images."""
        self.top1_err.add(100.0 * (1.0 - top1_hits / mb_size), mb_size)
        self.top5_err.add(100.0 * (1.0 - top5_hits / mb_size), mb_size)
        for i, value in enumerate((mb_size, top1_hits, top5_hits, loss_sum)):
            self.totals[i] += value

    def epoch_stats(self, totals):
        """Return {top1_err, top5_err, loss} of `totals`, those of all ranks summed, and note the smallest errors."""
        images, top1_hits, top5_hits, loss_sum = totals
        errors = [100.0 * (images - hits) / images for hits in (top1_hits, top5_hits)]
        self.min_top1_err = min(self.min_top1_err, errors[0])
        self.min_top5_err = min(self.min_top5_err, errors[1])
        return {"top1_err": errors[0], "top5_err": errors[1], "loss": loss_sum / images}

    def _common(self, cur_epoch):
        return dict(_rate(self.throughput, cfg.TEST.BATCH_SIZE), epoch="%d/%d" % (cur_epoch + 1, cfg.OPTIM.MAX_EPOCH),
                    time_avg=self.iter_timer.average, mem=memory_mb(self.device))

    def log_iter_stats(self, cur_epoch, cur_iter):
        """Log a test_iter line, of this rank's images, after every LOG_PERIOD-th step."""
        if (cur_iter + 1) % cfg.LOG_PERIOD != 0:
            return
        stats = self._common(cur_epoch)
        stats.update(iter="%d/%d" % (cur_iter + 1, self.epoch_iters), time_diff=self.iter_timer.diff,
                     top1_err=self.top1_err.median, top5_err=self.top5_err.median)
        logger.info(logging.stats_line(stats, self.name + "_iter"))

    def log_epoch_stats(self, cur_epoch, stats):
        """Log the test_epoch line of what `epoch_stats` returned."""
        line = self._common(cur_epoch)
        line.update(time_epoch=self.iter_timer.average * self.epoch_iters, top1_err=stats["top1_err"],
                    top5_err=stats["top5_err"], min_top1_err=self.min_top1_err, min_top5_err=self.min_top5_err)
        logger.info(logging.stats_line(line, self.name + "_epoch"))


def _rate(throughput, batch_size):
    """Return FPS and batch_size as the Ascend port's lines have them; no FPS before there is a steady step."""
    rate = throughput.images_per_second if throughput else None
    return dict({"batch_size": batch_size}, **({"FPS": int(rate)} if rate else {}))

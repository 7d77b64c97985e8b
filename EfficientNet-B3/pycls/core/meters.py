"""The lines that say what a common.meters.Tally and a Clock have measured in training and evaluation.

Values of a *_iter line are medians over the last LOG_PERIOD steps, those of an *_epoch line means over the epoch's images.
Times include the wait for data.
"""
import datetime
import math
import resource
import statistics

from common import device as devices
from pycls.core import logging
from pycls.core.config import cfg

logger = logging.get_logger(__name__)


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
    """The lines of a training."""

    def __init__(self, epoch_iters, device):
        self.epoch_iters, self.device = epoch_iters, device
        self._seconds = self._steps = 0  # of the epochs that are over: time_avg is of the whole run

    def log_iter_stats(self, progress, clock, lr):
        """Log the train_iter line of the step that has just been read."""
        done = progress.step + 1
        stats = self._common(progress.epoch, done, clock, lr)
        stats.update(_medians(progress.tally), iter="%d/%d" % (done, self.epoch_iters), time_diff=clock.step_time.val)
        logger.info(logging.stats_line(stats, "train_iter"))

    def log_epoch_stats(self, progress, clock, lr):
        """Log the train_epoch line of the epoch whose last step is over."""
        tally, stats = progress.tally, self._common(progress.epoch, self.epoch_iters, clock, lr)
        stats.update(time_epoch=stats["time_avg"] * self.epoch_iters, top1_err=100.0 - tally.top1.avg,
                     top5_err=100.0 - tally.top5.avg, loss=tally.loss.avg)
        logger.info(logging.stats_line(stats, "train_epoch"))
        self._seconds, self._steps = self._seconds + clock.step_time.sum, self._steps + clock.step_time.count

    def _common(self, epoch, done, clock, lr):
        time_avg = (self._seconds + clock.step_time.sum) / max(1, self._steps + clock.step_time.count)
        left = (cfg.OPTIM.MAX_EPOCH - epoch) * self.epoch_iters - done
        return dict(_rate(clock, cfg.TRAIN.BATCH_SIZE), epoch="%d/%d" % (epoch + 1, cfg.OPTIM.MAX_EPOCH), time_avg=time_avg,
                    eta=time_string(time_avg * left), lr=lr, mem=memory_mb(self.device))


class TestMeter(object):
    """The lines of the evaluations of a network, and its smallest errors so far, which are kept in the dictionary `smallest`."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    def __init__(self, epoch_iters, device, name="test", smallest=None):
        self.epoch_iters, self.device, self.name = epoch_iters, device, name
        self._smallest = {} if smallest is None else smallest

    def log_iter_stats(self, epoch, step, tally, clock):
        """Log a test_iter line, of this rank's images."""
        stats = dict(_medians(tally), iter="%d/%d" % (step + 1, self.epoch_iters), time_diff=clock.step_time.val)
        del stats["loss"]
        logger.info(logging.stats_line(dict(self._common(epoch, clock), **stats), self.name + "_iter"))

    def log_epoch_stats(self, epoch, result, clock):
        """Log the test_epoch line of an evaluation's Result, over all images of all ranks, and note the smallest errors."""
        stats = dict(self._common(epoch, clock), time_epoch=clock.step_time.avg * self.epoch_iters)
        for key, accuracy in (("top1_err", result.top1), ("top5_err", result.top5)):
            name = "%s.min_%s" % (self.name, key)
            self._smallest[name] = min(100.0 - accuracy, self._smallest.get(name, 100.0))
            stats.update({key: 100.0 - accuracy, "min_" + key: self._smallest[name]})
        logger.info(logging.stats_line(stats, self.name + "_epoch"))

    def _common(self, epoch, clock):
        return dict(_rate(clock, cfg.TEST.BATCH_SIZE), epoch="%d/%d" % (epoch + 1, cfg.OPTIM.MAX_EPOCH),
                    time_avg=clock.step_time.avg, mem=memory_mb(self.device))


def _medians(tally):
    """Return the medians over the batches since the last line."""
    return {"top1_err": statistics.median(100.0 - batch.top1 for batch in tally.recent),
            "top5_err": statistics.median(100.0 - batch.top5 for batch in tally.recent),
            "loss": statistics.median(batch.loss for batch in tally.recent)}


def _rate(clock, batch_size):
    """Return FPS and batch_size as the Ascend port's lines have them; no FPS before there is a steady step."""
    rate = clock.images_per_second
    return dict({"batch_size": batch_size}, **({"FPS": int(rate)} if rate else {}))

"""Upstream's names; few lines, as what stands in them is not compared."""
import json
import logging

from pycls.core.config import cfg
from pycls.core.timer import Timer

logger = logging.getLogger(__name__)


def gpu_mem_usage():
    raise AssertionError("there is no GPU")


def topk_errors(preds, labels, ks):
    right = preds.topk(max(ks), 1)[1].t().eq(labels.view(1, -1))
    return [100.0 - 100.0 * right[:k].view(-1).float().sum() / len(labels) for k in ks]


class TrainMeter(object):
    kind = "train"

    def __init__(self, length):
        self.length, self.timer = length, Timer()
        self.iter_tic, self.iter_toc = self.timer.tic, self.timer.toc

    def reset(self):
        self.timer.reset()

    def update_stats(self, top1_err, top5_err, *others):
        self.stats = {"mem": gpu_mem_usage(), "time_diff": self.timer.diff, "top1_err": top1_err}

    def log_iter_stats(self, epoch, step):
        if (step + 1) % cfg.LOG_PERIOD == 0:
            self.log(epoch, "iter")

    def log_epoch_stats(self, epoch):
        self.log(epoch, "epoch")

    def log(self, epoch, kind):
        stats = dict(self.stats, _type=self.kind + "_" + kind, epoch="%d/%d" % (epoch + 1, cfg.OPTIM.MAX_EPOCH))
        line = "json_stats: " + json.dumps(stats)
        logger.info(line)


class TestMeter(TrainMeter):
    kind = "test"

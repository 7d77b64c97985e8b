"""How long a forward pass, a training step's two halves and the fetching of a batch take, on steady steps alone."""
import time

import torch

from common import device as devices
from common.distributed import unwrapped
from pycls.core import logging, losses
from pycls.core.config import cfg, step_batch_size

logger = logging.get_logger(__name__)


def log_times(learner, rank, train_loader=None, test_loader=None):
    """Log iter_times and, where there are loaders, epoch_times. The network and its BN statistics stay as they are."""
    saved = [buffer.clone() for buffer in learner.model.buffers()]
    times = {"test_fw_time": time_eval(learner, rank)}
    times["train_fw_time"], times["train_bw_time"] = time_train(learner, rank)
    times["train_fw_bw_time"] = times["train_fw_time"] + times["train_bw_time"]
    if train_loader is not None:
        times["train_loader_time"] = time_loader(train_loader)
    for buffer, value in zip(learner.model.buffers(), saved):  # older PyTorch has made new ones of some
        buffer.copy_(value)
    logger.info(logging.stats_line(times, "iter_times"))
    if train_loader is None:
        logger.info("loader: not measured (--data-path names the images to read)")
        return
    steps = {key: len(test_loader) if key == "test_fw_time" else len(train_loader) for key in times}
    logger.info(logging.stats_line({key: times[key] * steps[key] for key in times}, "epoch_times"))
    waited = max(0.0, times["train_loader_time"] - times["train_fw_bw_time"])
    logger.info("overhead of the data loader: %.2f%%", 100 * waited / times["train_fw_bw_time"])


@torch.no_grad()
def time_eval(learner, rank):
    """Return the mean seconds of a forward pass in evaluation over TEST.BATCH_SIZE / NUM_GPUS images."""
    size = cfg.TRAIN.IM_SIZE
    inputs = torch.zeros(cfg.TEST.BATCH_SIZE // cfg.NUM_GPUS, 3, size, size, device=rank.device)
    network = unwrapped(learner.model).eval()
    return _mean_seconds([lambda: network(inputs)], rank.device)[0]


def time_train(learner, rank):
    """Return the mean seconds of the forward and of the backward pass over a training step's images of a rank.

    The gradients are cleared afterwards, and no step is taken.
    """
    batch_size, size = step_batch_size(), cfg.TRAIN.IM_SIZE
    inputs = torch.rand(batch_size, 3, size, size, device=rank.device)
    targets = losses.smooth_one_hot(torch.zeros(batch_size, dtype=torch.int64, device=rank.device), cfg.MODEL.NUM_CLASSES, 0.0)
    state = {}
    learner.model.train()

    def forward():
        with learner.amp.autocast():
            outputs = learner.model(inputs)
        state["loss"] = learner.criterion(outputs.float(), targets)

    means = _mean_seconds([forward, lambda: learner.amp.backward(state["loss"])], rank.device)
    learner.optimizer.zero_grad()
    return means


def time_loader(loader):
    """Return the mean seconds of fetching a batch when nothing else runs; the first WARMUP_ITER start the processes."""
    steps = min(cfg.PREC_TIME.WARMUP_ITER + cfg.PREC_TIME.NUM_ITER, len(loader))
    dropped = min(cfg.PREC_TIME.WARMUP_ITER, steps - 1)
    started = time.perf_counter()
    for i, _ in enumerate(loader.first_inputs(0, steps), 1):
        if i == dropped:
            started = time.perf_counter()
    return (time.perf_counter() - started) / (steps - dropped)


def _mean_seconds(parts, device):
    """Run the functions in turn, WARMUP_ITER + NUM_ITER times, and return the mean seconds of each over the last NUM_ITER."""
    totals = [0.0] * len(parts)
    for i in range(cfg.PREC_TIME.WARMUP_ITER + cfg.PREC_TIME.NUM_ITER):
        for number, part in enumerate(parts):
            started = time.perf_counter()
            part()
            devices.synchronize(device)
            totals[number] += (time.perf_counter() - started) * (i >= cfg.PREC_TIME.WARMUP_ITER)
    return [total / cfg.PREC_TIME.NUM_ITER for total in totals]

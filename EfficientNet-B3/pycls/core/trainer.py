"""Training, evaluation and timing, as each rank does them. The three tools start these."""
import os
from collections import namedtuple

import numpy as np
import torch

from common import device as devices, distributed, meters as common_meters, precision, records
from common.cli import UserError
from common.progress import seed_step
from pycls.core import benchmark, checkpoint, config, logging, losses, net
from pycls.core import optimizer as optim
from pycls.core.config import cfg
from pycls.core.meters import TestMeter, TrainMeter
from pycls.datasets import loader
from pycls.models.effnet import EffNet

logger = logging.get_logger(__name__)

_FPS_WARMUP = 5  # steps at the start of a run, or of an evaluation, that are left out of FPS

# What takes training steps: the network, the same in DistributedDataParallel where there are several ranks, the network with
# the moving average of the weights (or None), and what updates them.
Learner = namedtuple("Learner", "network model ema optimizer amp loss_fun")


# --- what the tools run -----------------------------------------------------------------------------------------------

def train_model(args, rank):
    """Train for OPTIM.MAX_EPOCH epochs, with precise BN statistics, an evaluation and a checkpoint after each."""
    setup_env(args, rank)
    train_loader = loader.construct_train_loader(args.data_path, rank, args.skip_bad_images)
    test_loader = loader.construct_test_loader(args.data_path, rank, args.skip_bad_images)
    source = checkpoint.newest_checkpoint() if cfg.TRAIN.AUTO_RESUME else None
    learner, complexity = make_learner(rank, source)
    parts = {"model_state": learner.network, "optimizer_state": learner.optimizer, "amp": learner.amp}
    parts.update({"ema_state": learner.ema} if learner.ema is not None else {})
    progress = checkpoint.make_progress(rank, parts)
    absent = checkpoint.resume(progress, source) if source else []
    if "ema_state" in absent:
        learner.ema.load_state_dict(learner.network.state_dict())
    learner = learner._replace(model=distributed.data_parallel(learner.network, rank))

    recorder = start_log(args, rank, learner, complexity, append=bool(source))
    log_data(train_loader, cfg.TRAIN.SPLIT)
    log_data(test_loader, cfg.TEST.SPLIT)
    log_resumed(source, absent)
    if cfg.PREC_TIME.NUM_ITER > 0 and source is None:
        benchmark.log_times(learner, rank, train_loader, test_loader)
    steps_left = len(train_loader) * (cfg.OPTIM.MAX_EPOCH - progress.epoch) - progress.step
    throughput = common_meters.Throughput(rank.device, common_meters.warmup_steps(steps_left, _FPS_WARMUP))
    meter = TrainMeter(len(train_loader), throughput, rank.device)
    evaluated = {"test": learner.network}
    evaluated.update({"test_ema": learner.ema} if learner.ema is not None else {})
    test_meters = {name: make_test_meter(test_loader, rank, progress, name) for name in evaluated}

    logger.info("Start epoch: %d", progress.epoch + 1)
    while progress.epoch < cfg.OPTIM.MAX_EPOCH:
        epoch = progress.epoch
        train_epoch(train_loader, learner, meter, progress, rank, recorder)
        stats = {}
        for name, network in evaluated.items():
            if cfg.BN.USE_PRECISE_STATS:
                count = net.precise_bn_batches(len(train_loader))
                net.compute_precise_bn_stats(network, train_loader.first_inputs(epoch, count))
            stats[name] = test_epoch(test_loader, network, test_meters[name], epoch, rank)
        note_results(progress, test_meters, stats)
        path = checkpoint.end_epoch(progress, parts, top1_errors(stats), rank)
        logger.info("Wrote checkpoint to: %s", path)
        recorder.log((epoch,), dict(progress.results, **{"train.total_ips": throughput.images_per_second, "lr": meter.lr}))
    bad_images = train_loader.count_bad(rank) + test_loader.count_bad(rank)
    recorder.log((), dict(progress.results, bad_images=bad_images, **throughput.summary()))


def test_model(args, rank):
    """Evaluate TEST.WEIGHTS once."""
    setup_env(args, rank)
    test_loader = loader.construct_test_loader(args.data_path, rank, args.skip_bad_images)
    network, complexity = build_model(rank, cfg.TEST.WEIGHTS)
    network, _, amp = initialize_precision(network, None, rank)
    recorder = start_log(args, rank, Learner(network, network, None, None, amp, None), complexity, append=False)
    log_data(test_loader, cfg.TEST.SPLIT)
    logger.info("Loaded model weights from: %s", cfg.TEST.WEIGHTS)
    stats = test_epoch(test_loader, network, TestMeter(len(test_loader), rank.device), 0, rank)
    recorder.log((), {"val.top1": 100.0 - stats["top1_err"], "val.top5": 100.0 - stats["top5_err"],
                      "val.loss": stats["loss"], "bad_images": test_loader.count_bad(rank)})


def time_model(args, rank):
    """Time the network's passes on made-up images and, with a data path, the loader; nothing is trained or saved."""
    setup_env(args, rank)
    loaders = (None, None)
    if args.data_path:
        loaders = (loader.construct_train_loader(args.data_path, rank, args.skip_bad_images),
                   loader.construct_test_loader(args.data_path, rank, args.skip_bad_images))
    learner, complexity = make_learner(rank, None)
    learner = learner._replace(model=distributed.data_parallel(learner.network, rank))
    logging.setup_logging(rank, cfg.LOG_DEST, cfg.OUT_DIR)
    log_model(learner, complexity)
    benchmark.log_times(learner, rank, *loaders)


# --- an epoch ---------------------------------------------------------------------------------------------------------

def train_epoch(batches, learner, meter, progress, rank, recorder):
    """Train what is left of the epoch that `progress` is in, at the epoch's learning rate.

    The numbers of the steps stay on the device until LOG_PERIOD of them are fetched at once.
    """
    epoch, steps = progress.epoch, len(batches)
    lr = optim.get_epoch_lr(epoch)
    optim.set_lr(learner.optimizer, lr)
    learner.model.train()
    meter.reset()
    meter.start()
    pending = []
    for inputs, labels in batches.of_epoch(epoch, progress.step):
        step = progress.step
        pending.append(train_step(learner, inputs, labels, rank, epoch, step))
        meter.throughput.step(cfg.TRAIN.BATCH_SIZE)
        if (step + 1) % cfg.LOG_PERIOD == 0 or step + 1 == steps:
            fetch_train_stats(pending, meter, lr)
            meter.log_iter_stats(epoch, step)
            recorder.log((epoch, step), {"train.loss": meter.loss.median, "lr": lr}, epoch * steps + step)
            meter.start()
        progress.end_step()
    meter.throughput.stop()
    if meter.last_loss is not None:  # an interrupted epoch may have had no step left
        progress.results.update({"train.loss": meter.last_loss, "train.loss_mean": meter.loss.mean,
                                 "train.top1": 100.0 - meter.top1_err.mean})
        meter.log_epoch_stats(epoch)


def train_step(learner, inputs, labels, rank, epoch, step):
    """Take one step and return its (top-1 error, top-5 error, loss) as a tensor on the device.

    Everything random in it is a function of (RNG_SEED, rank, epoch, step), so that a resumed run draws the same.
    """
    seed_step(cfg.RNG_SEED, rank, epoch, step)
    targets = losses.smooth_one_hot(labels, cfg.MODEL.NUM_CLASSES, cfg.TRAIN.LABEL_SMOOTHING)
    if cfg.TRAIN.MIXUP_ALPHA > 0:
        rng = np.random.RandomState([cfg.RNG_SEED, rank.rank, epoch, step])
        weight, partners = losses.draw_mixup(len(labels), cfg.TRAIN.MIXUP_ALPHA, rng)
        inputs, targets = [losses.mixup(values, weight, partners.to(values.device)) for values in (inputs, targets)]
    with learner.amp.autocast():
        outputs = learner.model(inputs)
    outputs = outputs.float()
    loss = learner.loss_fun(outputs, targets)
    learner.amp.backward(loss)
    learner.amp.step()
    if learner.ema is not None:
        net.update_ema(learner.ema, learner.network, step, epoch)
    hits = losses.topk_hits(outputs.detach(), targets.argmax(dim=1))
    return torch.cat([100.0 * (1.0 - hits / len(labels)), loss.detach().view(1)])


def fetch_train_stats(pending, meter, lr):
    """Hand the numbers of the steps to the meter: means over the ranks. Raises RuntimeError when training has diverged."""
    meter.throughput.stop()
    values = net.mean_over_ranks(torch.stack(pending)).tolist()
    meter.iter_timer.toc(len(pending))
    pending.clear()
    for top1_err, top5_err, loss in values:
        if not np.isfinite(loss):
            raise RuntimeError("training has diverged: the loss is %s; a lower OPTIM.BASE_LR, or OPTIM.WARMUP_EPOCHS, may help"
                               % loss)
        meter.update_stats(top1_err, top5_err, loss, lr, cfg.TRAIN.BATCH_SIZE)


@torch.no_grad()
def test_epoch(batches, network, meter, epoch, rank):
    """Return {top1_err, top5_err, loss} over the whole split: each image once, counts summed over the ranks."""
    distributed.broadcast_buffers(network, rank)
    network.eval()
    meter.reset(common_meters.Throughput(rank.device, common_meters.warmup_steps(len(batches), _FPS_WARMUP)))
    meter.start()
    pending = []
    for step, (inputs, labels) in enumerate(batches):  # ranks may get different numbers of batches: no collective in here
        pending.append((test_step(network, inputs, labels), len(labels)))
        meter.throughput.step(len(labels) * rank.world_size)
        if (step + 1) % cfg.LOG_PERIOD == 0:
            fetch_test_stats(pending, meter)
            meter.log_iter_stats(epoch, step)
            meter.start()
    fetch_test_stats(pending, meter)
    totals = distributed.sum_over_ranks(meter.totals, rank)
    if totals[0] == 0:
        raise UserError("no image to evaluate on could be read")
    stats = meter.epoch_stats(totals)
    meter.log_epoch_stats(epoch, stats)
    return stats


def test_step(network, inputs, labels):
    """Return (top-1 hits, top-5 hits, summed loss) of a batch as a tensor on the device."""
    outputs = network(inputs).float()
    loss = torch.nn.functional.cross_entropy(outputs, labels, reduction="sum")
    return torch.cat([losses.topk_hits(outputs, labels), loss.view(1)])


def fetch_test_stats(pending, meter):
    """Hand the hits and losses of the steps to the meter."""
    meter.throughput.stop()
    if not pending:
        return
    values = torch.stack([stats for stats, _ in pending]).tolist()
    meter.iter_timer.toc(len(pending))
    for (top1_hits, top5_hits, loss), (_, mb_size) in zip(values, pending):
        meter.update_stats(top1_hits, top5_hits, loss, mb_size)
    pending.clear()


# --- setting up -------------------------------------------------------------------------------------------------------

def setup_env(args, rank):
    """Take the configuration in this process and seed it: all ranks begin with the same weights."""
    config.from_text(args.cfg_text)
    devices.seed(cfg.RNG_SEED, rank.device)
    torch.backends.cudnn.benchmark = cfg.CUDNN.BENCHMARK


def make_learner(rank, resumed):
    """Return (Learner, complexity) with its initial weights: TRAIN.WEIGHTS or PRETRAINED, unless a checkpoint is resumed."""
    if cfg.TRAIN.WEIGHTS and cfg.TRAIN.PRETRAINED:
        raise UserError("TRAIN.WEIGHTS and TRAIN.PRETRAINED: give one of the two")
    weights = "" if resumed else cfg.TRAIN.WEIGHTS or cfg.TRAIN.PRETRAINED
    network, complexity = build_model(rank, weights, new_classifier=bool(cfg.TRAIN.PRETRAINED))
    ema = None
    if cfg.OPTIM.EMA_UPDATE_PERIOD > 0:
        ema = EffNet().to(rank.device)  # in float32, whatever the level
        ema.load_state_dict(network.state_dict())
    network, optimizer, amp = initialize_precision(network, optim.construct_optimizer(network), rank)
    return Learner(network, None, ema, optimizer, amp, losses.SoftCrossEntropyLoss()), complexity


def build_model(rank, weights="", new_classifier=False):
    """Return (network on the device, its complexity, which is counted on the CPU)."""
    network = EffNet()
    complexity = net.complexity(network, cfg.TRAIN.IM_SIZE) if rank.is_main else None
    if weights:
        checkpoint.load_weights(weights, network, new_classifier)
    return network.to(rank.device), complexity


def initialize_precision(network, optimizer, rank):
    """Return common.precision.initialize's (network, optimizer, amp) for the configured level.

    Evaluation under O1 is in float32, as upstream's: that level is about training steps only.
    """
    level, scale = cfg.TRAIN.OPT_LEVEL, cfg.TRAIN.LOSS_SCALE or "dynamic"
    if cfg.TRAIN.MIXED_PRECISION:
        level, scale = "O1", "dynamic"
    if optimizer is None and level == "O1":
        level = "O0"
    return precision.initialize(network, optimizer, level, scale, rank.device)


def make_test_meter(batches, rank, progress, name):
    """Return a TestMeter that remembers the smallest errors of the run that is resumed."""
    meter = TestMeter(len(batches), rank.device, name)
    meter.min_top1_err = progress.results.get(name + ".min_top1_err", 100.0)
    meter.min_top5_err = progress.results.get(name + ".min_top5_err", 100.0)
    return meter


def note_results(progress, test_meters, stats):
    """Put what the evaluations found into the results of the run: of two networks, those of the better one."""
    for name, meter in test_meters.items():
        progress.results.update({name + ".min_top1_err": meter.min_top1_err, name + ".min_top5_err": meter.min_top5_err})
    better = min(stats.values(), key=lambda stat: stat["top1_err"])
    progress.results.update({"val.top5": 100.0 - better["top5_err"], "val.loss": better["loss"]})


def top1_errors(stats):
    """Return the errors as newer pycls names them in a checkpoint."""
    errors = {"test_err": stats["test"]["top1_err"]}
    errors.update({"ema_err": stats["test_ema"]["top1_err"]} if "test_ema" in stats else {})
    return errors


# --- what is said at the start ----------------------------------------------------------------------------------------

def start_log(args, rank, learner, complexity, append):
    """Everything has been checked: start the log, write the configuration, and return the recorder."""
    logging.setup_logging(rank, cfg.LOG_DEST, cfg.OUT_DIR)
    if rank.is_main:
        config.dump_cfg()
    recorder = records.Recorder(os.path.join(cfg.OUT_DIR, "metrics.jsonl"), rank, append=append)
    recorder.parameters(dict(vars(args), world_size=rank.world_size, device_type=rank.device.type,
                             opt_level_run=learner.amp.opt_level, torch=torch.__version__))
    log_model(learner, complexity)
    return recorder


def log_model(learner, complexity):
    """Log versions, the configuration, the network and its complexity."""
    logger.info("PyTorch %s, CUDA %s, cuDNN %s", torch.__version__, torch.version.cuda, torch.backends.cudnn.version())
    if cfg.VERBOSE:
        logger.info("Config:\n%s", cfg.dump())
        logger.info("Model:\n%s", learner.network)
    logger.info(logging.config_line(cfg))
    if complexity:
        logger.info(logging.stats_line(complexity, "complexity"))
    if learner.amp.note:
        logger.info(learner.amp.note)


def log_data(batches, split):
    """Log what a loader reads."""
    logger.info("Split %s: %s", split, batches.dataset.root)
    logger.info("Number of images: %d, classes: %d", len(batches.dataset), len(batches.dataset.classes))


def log_resumed(source, absent):
    """Log which checkpoint was resumed, and what it lacked."""
    if source:
        logger.info("Loaded checkpoint from: %s", source)
    if absent:
        logger.info("It holds no %s: starting anew with that", ", ".join(absent))

"""Training, evaluation and timing, as each rank does them. The three tools start these."""
import contextlib
import os
import types
from collections import namedtuple

import numpy as np
import torch
import torch.nn.functional as F

from common import distributed, evaluation, precision, progress as training, records
from common.meters import Clock
from common.network import compile_forward, place
from common.optimizer import set_rate
from pycls.core import benchmark, checkpoint, config, logging, losses, net
from pycls.core import optimizer as optim
from pycls.core.config import cfg
from pycls.core.meters import TestMeter, TrainMeter
from pycls.datasets import loader
from pycls.models.effnet import EffNet

logger = logging.get_logger(__name__)

_FPS_WARMUP = 5  # steps at the start of a run, or of an evaluation, that are left out of FPS

# What takes training steps, and the network with the moving average of the weights (or None).
Learner = namedtuple("Learner", training.Learner._fields + ("ema",))

# Evaluation is in float32 under O1 too, as upstream's: that level is about training steps only.
_NO_AUTOCAST = types.SimpleNamespace(autocast=contextlib.suppress)


# --- what the tools run -----------------------------------------------------------------------------------------------

def train_model(args, rank):
    """Train for OPTIM.MAX_EPOCH epochs, with precise BN statistics, an evaluation and a checkpoint after each."""
    source, resumed = setup_env(args, rank, may_resume=True)
    learner, notes = make_learner(args, rank, is_resumed=bool(source))
    parts = checkpoint.parts_of(learner)
    progress = checkpoint.make_progress(rank, parts)
    if source and "ema_state" in progress.resume(resumed, source):
        learner.ema.load_state_dict(parts["model_state"].state_dict())
    smallest = progress.constants["min_errors"]
    smallest.update(resumed.get("min_errors", {}))
    learner = learner._replace(model=distributed.data_parallel(learner.model, rank))
    train_loader, test_loader = construct_loaders(args, rank)
    clock = progress.start_clock(train_loader, cfg.OPTIM.MAX_EPOCH, _FPS_WARMUP, args.profile_steps)
    recorder = start_log(args, rank, learner, notes, progress)
    log_data(train_loader, cfg.TRAIN.SPLIT)
    log_data(test_loader, cfg.TEST.SPLIT)
    if source:
        logger.info("Loaded checkpoint from: %s", source)
    elif cfg.PREC_TIME.NUM_ITER > 0:
        benchmark.log_times(learner, rank, train_loader, test_loader)

    run, meter = training.Run(rank, progress, clock, recorder), TrainMeter(len(train_loader), rank.device)
    networks = {"test": parts["model_state"]}
    networks.update({} if learner.ema is None else {"test_ema": learner.ema})
    test_meters = {name: TestMeter(len(test_loader), rank.device, name, smallest) for name in networks}
    logger.info("Start epoch: %d", progress.epoch + 1)
    while progress.epoch < cfg.OPTIM.MAX_EPOCH:
        rate = optim.get_epoch_lr(progress.epoch)
        set_rate(learner.optimizer, rate)
        train_epoch(train_loader, learner, run, meter)
        results, count = {}, net.precise_bn_batches(len(train_loader)) if cfg.BN.USE_PRECISE_STATS else 0
        for name, network in networks.items():
            if count:
                net.compute_precise_bn_stats(network, train_loader.first_inputs(progress.epoch, count))
                net.count_batches(network, -count)  # a run that leaves in the evaluation computes them again
            results[name] = test_epoch(test_loader, network, rank, test_meters[name], progress.epoch)
        for network in networks.values():
            net.count_batches(network, count)
        progress.note_evaluation(max(results.values(), key=lambda result: result.top1))
        recorder.epoch(progress, clock, rate)
        logger.info("Wrote checkpoint to: %s", checkpoint.end_epoch(progress, parts, results, rank))
    recorder.summary(progress, clock, train_loader.count_bad(rank) + test_loader.count_bad(rank))


def test_model(args, rank):
    """Evaluate TEST.WEIGHTS once."""
    setup_env(args, rank)
    network, notes = build_model(args, rank, cfg.TEST.WEIGHTS)
    place(network, rank.device)
    network, _, amp = initialize_precision(network, None, rank, args.amp_dtype)
    test_loader = loader.construct_test_loader(args, rank)
    recorder = start_log(args, rank, Learner(network, None, None, amp, None), notes)
    log_data(test_loader, cfg.TEST.SPLIT)
    logger.info("Loaded model weights from: %s", cfg.TEST.WEIGHTS)
    result = test_epoch(test_loader, network, rank, TestMeter(len(test_loader), rank.device))
    recorder.evaluation(result, test_loader.count_bad(rank))


def time_model(args, rank):
    """Time the network's passes on made-up images and, with a data path, the loader; nothing is trained or saved."""
    setup_env(args, rank)
    learner, notes = make_learner(args, rank)
    learner = learner._replace(model=distributed.data_parallel(learner.model, rank))
    loaders = construct_loaders(args, rank) if args.data_path else (None, None)
    logging.setup_logging(rank, cfg.LOG_DEST, cfg.OUT_DIR)
    log_model(learner, notes)
    benchmark.log_times(learner, rank, *loaders)


# --- an epoch ---------------------------------------------------------------------------------------------------------

def train_epoch(batches, learner, run, meter):
    """Train what is left of the epoch that the run is in."""
    model, criterion, sgd, amp, ema = learner
    rank, progress, clock, recorder = run
    rate = sgd.param_groups[0]["lr"]
    model.train()
    for step, inputs, labels in progress.steps(batches, learner, clock, cfg.TRAIN.ACCUMULATE):
        targets = losses.smooth_one_hot(labels, cfg.MODEL.NUM_CLASSES, cfg.TRAIN.LABEL_SMOOTHING)
        if cfg.TRAIN.MIXUP_ALPHA > 0:
            rng = np.random.RandomState([cfg.RNG_SEED, rank.rank, progress.epoch, step])
            weight, partners = losses.draw_mixup(len(labels), cfg.TRAIN.MIXUP_ALPHA, rng)
            inputs, targets = [losses.mixup(values, weight, partners.to(values.device)) for values in (inputs, targets)]
        with amp.autocast():
            outputs = model(inputs)
        outputs = outputs.float()
        loss = criterion(outputs, targets)
        progress.update(amp, loss)
        if progress.update_is_complete:
            net.update_ema(ema, distributed.unwrapped(model), step // cfg.TRAIN.ACCUMULATE, progress.epoch)

        progress.tally.add(loss, outputs, targets.argmax(dim=1) if cfg.TRAIN.MIXUP_ALPHA > 0 else labels)
        clock.lap(len(labels) * rank.world_size)
        is_logged = (step + 1) % cfg.LOG_PERIOD == 0
        if is_logged or step + 1 == len(batches):
            progress.read(clock)
            if is_logged:
                meter.log_iter_stats(progress, clock, rate)
            recorder.step(progress, clock, rate)
    meter.log_epoch_stats(progress, clock, rate)


def test_epoch(batches, network, rank, meter, epoch=0):
    """Return the meters.Result over the whole split: each image once, counts summed over the ranks."""
    def show(step, tally, clock):
        meter.log_iter_stats(epoch, step, tally, clock)

    clock = Clock(rank.device, len(batches), _FPS_WARMUP)
    result = evaluation.evaluate(batches, Learner(network, F.cross_entropy, None, _NO_AUTOCAST, None), rank, show,
                                 every=cfg.LOG_PERIOD, first=cfg.LOG_PERIOD - 1, clock=clock)
    meter.log_epoch_stats(epoch, result, clock)
    return result


# --- setting up -------------------------------------------------------------------------------------------------------

def setup_env(args, rank, may_resume=False):
    """Take the configuration in this process and seed it: all ranks begin with the same weights. Returns the checkpoint file to
    go on from and what it holds, or ("", {})."""
    config.from_text(args.cfg_text)
    resumed, source = checkpoint.choose(args.resume, rank) if may_resume else ({}, "")
    training.choose_seed(cfg.RNG_SEED, resumed, rank)
    torch.backends.cudnn.benchmark = cfg.CUDNN.BENCHMARK and not args.deterministic
    return source, resumed


def make_learner(args, rank, is_resumed=False):
    """Return (Learner, lines for the log), with its first weights: TRAIN.WEIGHTS or PRETRAINED, unless a run is resumed."""
    weights = "" if is_resumed else cfg.TRAIN.WEIGHTS or cfg.TRAIN.PRETRAINED
    network, notes = build_model(args, rank, weights, new_classifier=bool(cfg.TRAIN.PRETRAINED))
    place(network, rank.device, config.step_batch_size(), cfg.TRAIN.IM_SIZE)
    ema = None
    if cfg.OPTIM.EMA_UPDATE_PERIOD > 0:
        ema = place(EffNet(), rank.device)  # in float32, whatever the level
        ema.load_state_dict(network.state_dict())
    network, optimizer, amp = initialize_precision(network, optim.construct_optimizer(network), rank, args.amp_dtype)
    compile_forward(network, rank.device, args.compile)
    return Learner(network, losses.SoftCrossEntropyLoss(), optimizer, amp, ema), notes


def build_model(args, rank, weights="", new_classifier=False):
    """Return (network, lines for the log on what it is)."""
    network = EffNet()
    notes = [logging.stats_line(net.complexity(network, cfg.TRAIN.IM_SIZE), "complexity")] if rank.is_main else []
    if weights:
        notes.append(checkpoint.load_weights(weights, network, new_classifier, args.use_ema))
    return network, notes


def initialize_precision(network, optimizer, rank, dtype):
    """Return common.precision.initialize's (network, optimizer, amp) for the configured level; without an optimizer O1 is O0."""
    level, scale = cfg.TRAIN.OPT_LEVEL, cfg.TRAIN.LOSS_SCALE or "dynamic"
    if cfg.TRAIN.MIXED_PRECISION:
        level, scale = "O1", "dynamic"
    if optimizer is None and level == "O1":
        level = "O0"
    return precision.initialize(network, optimizer, level, scale, rank.device, dtype)


def construct_loaders(args, rank):
    """Return the Loaders of training and of evaluation."""
    if args.dummy:
        return loader.made_up_loaders(rank)
    return loader.construct_train_loader(args, rank), loader.construct_test_loader(args, rank)


# --- what is said at the start ----------------------------------------------------------------------------------------

def start_log(args, rank, learner, notes, progress=None):
    """Everything has been checked: start the log, write the configuration, and return the recorder."""
    recorder = records.start(os.path.join(cfg.OUT_DIR, "metrics.jsonl"), rank, args, learner.amp, progress)
    logging.setup_logging(rank, cfg.LOG_DEST, cfg.OUT_DIR)
    if rank.is_main:
        config.dump_cfg()
    log_model(learner, notes)
    return recorder


def log_model(learner, notes):
    """Log versions, the configuration, the network and the `notes` on it."""
    logger.info("PyTorch %s, CUDA %s, cuDNN %s", torch.__version__, torch.version.cuda, torch.backends.cudnn.version())
    if cfg.VERBOSE:
        logger.info("Config:\n%s", cfg.dump())
        logger.info("Model:\n%s", distributed.unwrapped(learner.model))
    logger.info(logging.config_line(cfg))
    for note in notes + [learner.amp.note]:
        if note:
            logger.info(note)


def log_data(batches, split):
    """Log what a loader reads."""
    if isinstance(batches, loader.MadeUpBatches):
        logger.info("Split %s: made up, %d images", split, batches.images)
        return
    logger.info("Split %s: %s", split, batches.dataset.root)
    logger.info("Number of images: %d, classes: %d", len(batches.dataset), len(batches.dataset.classes))

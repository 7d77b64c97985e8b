"""Train HRNet on ImageNet: one device, or several of one machine."""
import importlib
import os
import random
import sys
import time

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, os.pardir, os.pardir), os.path.join(HERE, os.pardir)]
from common import checkpoint, cli, data, device as devices, distributed, meters, precision, records  # noqa: E402
from common.progress import Progress  # noqa: E402
from lib.core import options  # noqa: E402
from lib.core.data import make_eval_batches, make_train_batches, remark_on_classes  # noqa: E402
from lib.core.function import say, train, validate  # noqa: E402
from lib.core.optimizer import get_optimizer, learning_rate, set_learning_rate  # noqa: E402
from tools.model_stats import model_stats  # noqa: E402

OLD_STOP_STEP = 200  # steps that --stop_step=TRUE, the Ascend port's switch, left of an epoch


def parser():
    p = cli.Parser(description=__doc__)
    options.add_common_flags(p, workers_of="this process, instead of NPROC / DN")
    add = p.add_argument
    add("--lr", type=float, help="learning rate of one device, multiplied by their number; without it TRAIN.LR, as it is")
    add("--train-epochs", type=cli.positive_int, help="epochs in all (TRAIN.END_EPOCH)")
    add("--stop-step", "--max-steps", dest="stop_step", type=stop_step, metavar="STEPS",
        help="end each epoch, and each validation, after this many steps; TRUE means %d" % OLD_STOP_STEP)
    add("--pretrained", default="", metavar="FILE", help="weights to start from")
    add("--resume", default="", metavar="FILE",
        help="go on exactly where this checkpoint was written (TRAIN.RESUME True: with the output folder's, if there is one)")
    add("--checkpoint-steps", type=cli.natural_int, default=0,
        help="also write the checkpoint every so many steps; 0: each epoch only")
    add("--static-loss-scale", type=float, default=128.0, help="constant loss scale of O1 and O2")
    add("--dynamic-loss-scale", action="store_true", help="loss scale that adapts itself")
    add("--seed", type=cli.natural_int, help="makes a run reproducible; without it a random one")
    return p


def stop_step(text):
    """argparse type: a number of steps; TRUE and FALSE, as in old scripts, mean 200 steps and no stop."""
    if text.lower() in ("true", "false", ""):
        return OLD_STOP_STEP if text.lower() == "true" else None
    return cli.positive_int(text)


def main():
    args = parser().parse_intermixed_args()
    where, ranks = options.layout(args)
    overrides = []
    if args.lr is not None:
        overrides += ["TRAIN.LR", repr(args.lr * ranks)]
    if args.train_epochs is not None:
        overrides += ["TRAIN.END_EPOCH", str(args.train_epochs)]
    args = options.settle(args, overrides, where)
    find_checkpoint(args)
    data.check_layout(args.data_path, (args.config.DATASET.TRAIN_SET, args.config.DATASET.TEST_SET))
    distributed.launch(work, args, where)


def find_checkpoint(args):
    """Where TRAIN.RESUME asks for it and no --resume is given, resume from the output folder's checkpoint, if there is one."""
    args.checkpoint = os.path.join(args.output_path, "checkpoint.pth.tar")
    args.continues = not args.resume and args.config.TRAIN.RESUME and os.path.isfile(args.checkpoint)
    if args.continues:
        args.resume = args.checkpoint


def work(args, rank):
    """What each rank does."""
    config = args.config
    resumed = checkpoint.load(args.resume) if args.resume else {}
    if args.seed is None:  # an interrupted run goes on with its own
        args.seed = resumed.get("seed", distributed.broadcast_int(random.SystemRandom().randrange(2 ** 31), rank))
    set_up_device(config, args.seed, rank)
    model, optimizer, amp = network_to_train(args, rank)
    progress = Progress(rank, "state_dict", {"state_dict": model, "optimizer": optimizer, "amp": amp}, args.checkpoint,
                        best_path=None, constants={"model": config.MODEL.NAME, "seed": args.seed},
                        every_steps=args.checkpoint_steps, best_key="perf")
    progress.epoch = config.TRAIN.BEGIN_EPOCH
    if resumed:
        go_on(progress, resumed, args, rank)
    model = distributed.data_parallel(model, rank)
    criterion = torch.nn.CrossEntropyLoss()
    train_batches, eval_batches = make_train_batches(args, rank), make_eval_batches(args, rank)
    recorder = records.Recorder(os.path.join(args.output_path, "metrics.jsonl"), rank, append=bool(resumed),
                                tensorboard_dir=tensorboard_dir(args, rank))
    recorder.parameters(dict(vars(args), world_size=rank.world_size, device_type=rank.device.type,
                             opt_level_run=amp.opt_level, torch=torch.__version__))

    epochs = config.TRAIN.END_EPOCH
    throughput = meters.Throughput(rank.device, meters.warmup_steps(len(train_batches) * (epochs - progress.epoch)))
    while progress.epoch < epochs:
        epoch = progress.epoch
        set_learning_rate(optimizer, learning_rate(config, config.TRAIN.LR, epoch))
        train(train_batches, model, criterion, optimizer, amp, progress, throughput, config, rank, recorder)
        top1, top5, loss = validate(eval_batches, model, criterion, amp, rank)
        progress.results.update({"val.top5": top5, "val.loss": loss})
        if progress.best is None or top1 > progress.best:
            save_weights(model, os.path.join(args.output_path, "model_best.pth.tar"), rank)
        progress.end_epoch(top1)
        recorder.log((epoch,), {"train.loss": progress.results.get("train.loss_mean"), "val.loss": loss, "val.top1": top1,
                                "train.total_ips": throughput.images_per_second, "lr": optimizer.param_groups[0]["lr"]})
    save_weights(model, os.path.join(args.output_path, "final_state.pth.tar"), rank)
    recorder.log((), dict(progress.results, **throughput.summary(), bad_images=train_batches.count_bad(rank)))


def network_to_train(args, rank):
    """Return (model, optimizer, amp) on the rank's device, and say in the log what is trained."""
    config, size = args.config, args.config.MODEL.IMAGE_SIZE[0]
    model = options.initial_model(args, args.pretrained)
    say(rank, *options.remarks(args) + [remark_on_classes(args), remark_on_rate(args, rank)])
    say(rank, rank.is_main and model_stats(model, size, size).summary())
    try:
        optimizer = get_optimizer(config, model.to(rank.device), config.TRAIN.LR)
    except ValueError as error:
        raise cli.UserError("%s: %s" % (args.cfg, error))
    loss_scale = "dynamic" if args.dynamic_loss_scale else args.static_loss_scale
    model, optimizer, amp = precision.initialize(model, optimizer, args.opt_level, loss_scale, rank.device)
    say(rank, amp.note)
    return model, optimizer, amp


def remark_on_rate(args, rank):
    """Return a line for the log where TRAIN.LR is used as it is although the config has another number of devices in mind."""
    gpus = len(args.config.GPUS)
    if args.lr is not None or gpus == rank.world_size:
        return ""
    return ("TRAIN.LR %g is used as it is, but the config is for %d devices (GPUS) and %d take part; --lr gives the rate of one"
            % (args.config.TRAIN.LR, gpus, rank.world_size))


def go_on(progress, resumed, args, rank):
    """Continue where the checkpoint was written, and say so."""
    absent = progress.resume(resumed, args.resume)
    say(rank, "going on with %s%s: epoch %d, step %d%s" % (
        args.resume, " (TRAIN.RESUME is True)" if args.continues else "", progress.epoch, progress.step,
        "; it holds no " + ", ".join(absent) if absent else ""))


def set_up_device(config, seed, rank):
    """Seed everything, and give cuDNN what the config says of it."""
    devices.seed(seed, rank.device)
    torch.backends.cudnn.enabled = config.CUDNN.ENABLED
    torch.backends.cudnn.benchmark = config.CUDNN.BENCHMARK
    torch.backends.cudnn.deterministic = config.CUDNN.DETERMINISTIC


def save_weights(model, path, rank):
    """Write the bare state dict, the form in which upstream publishes and evaluates weights."""
    if rank.is_main:
        checkpoint.save(distributed.unwrapped(model).state_dict(), path)


def tensorboard_dir(args, rank):
    """Return <LOG_DIR>/<DATASET.DATASET>/<MODEL.NAME>/<experiment>_<time>; None without LOG_DIR or TensorBoard."""
    config = args.config
    if not config.LOG_DIR:
        return None
    try:
        importlib.import_module("torch.utils.tensorboard")
    except (ImportError, AttributeError) as error:  # AttributeError: PyTorch 1.8 beside a setuptools without distutils.version
        say(rank, "no events in LOG_DIR %s: TensorBoard cannot be imported (%s)" % (config.LOG_DIR, error))
        return None
    return os.path.join(config.LOG_DIR, config.DATASET.DATASET, config.MODEL.NAME,
                        "%s_%s" % (args.experiment, time.strftime("%Y-%m-%d-%H-%M")))


if __name__ == "__main__":
    cli.run(main)

"""Train HRNet on ImageNet: one device, or several of one machine."""
import importlib
import os
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, os.pardir, os.pardir), os.path.join(HERE, os.pardir)]
from common import checkpoint, cli, data, distributed, flags, network, precision, ranges, records, resume  # noqa: E402
from common.optimizer import set_rate  # noqa: E402
from common.progress import Learner, Progress, Run, choose_seed  # noqa: E402
from lib.core import options  # noqa: E402
from lib.core.data import make_batches, remark_on_classes  # noqa: E402
from lib.core.function import train, validate  # noqa: E402
from lib.core.optimizer import get_optimizer, learning_rate  # noqa: E402
from lib.model_stats import model_stats  # noqa: E402
import torch  # noqa: E402 (after common, which says what this Python lacks)

OLD_STOP_STEP = 200  # steps that --stop_step=TRUE, the Ascend port's switch, left of an epoch


def parser():
    p = cli.Parser(description=__doc__)
    options.add_common_flags(p)
    flags.add_training_flags(p)
    add = p.add_argument
    add("--lr", type=ranges.natural,
        help="learning rate of one device, multiplied by devices and --accumulate; without it TRAIN.LR, as it is")
    add("--train-epochs", type=cli.positive_int, help="epochs in all (TRAIN.END_EPOCH)")
    add("--stop-step", "--max-steps", dest="stop_step", type=stop_step, metavar="STEPS",
        help="end each epoch, and each validation, after this many steps; TRUE means %d" % OLD_STOP_STEP)
    add("--pretrained", default="", metavar="FILE", help="weights to start from")
    add("--new-classifier", action="store_true",
        help="of those, take all but the classifier, so that they may be of other classes")
    flags.add_resume_flag(p, "<output-path>/checkpoint.pth.tar (TRAIN.RESUME True says so too)")
    add("--static-loss-scale", type=ranges.positive, default=128.0, help="constant loss scale of O1 and O2")
    add("--dynamic-loss-scale", action="store_true", help="loss scale that adapts itself")
    return p


def stop_step(text):
    """argparse type: a number of steps; TRUE and FALSE, as in old scripts, mean 200 steps and no stop."""
    if text.lower() in ("true", "false", ""):
        return OLD_STOP_STEP if text.lower() == "true" else None
    return cli.positive_int(text)


def main():
    args = parser().parse_intermixed_args()
    layout = options.device_layout(args)
    if args.new_classifier and not args.pretrained:
        raise cli.UserError("--new-classifier is of a training that starts from weights: give them with --pretrained")
    overrides = []
    if args.lr is not None:
        overrides += ["TRAIN.LR", repr(args.lr * layout.world_size * args.accumulate)]
    if args.train_epochs is not None:
        overrides += ["TRAIN.END_EPOCH", str(args.train_epochs)]
    args = options.resolved(args, overrides, layout)
    args.checkpoint = os.path.join(args.output_path, "checkpoint.pth.tar")
    args.continues = not args.resume and args.config.TRAIN.RESUME
    if not args.dummy:
        data.check_layout(args.data_path, (args.config.DATASET.TRAIN_SET, args.config.DATASET.TEST_SET))
    distributed.launch(fit, args, layout)


def fit(args, rank):
    """What each rank does: train to the end of the last epoch, with an evaluation and a checkpoint after each."""
    config = args.config
    resumed, args.resume = resume.choose(resume.AUTO if args.continues else args.resume, args.checkpoint, rank)
    keep_batch(args, resumed, rank)
    args.seed = choose_seed(args.seed, resumed, rank)
    set_cudnn(config.CUDNN, args.deterministic)
    learner = make_learner(args, rank)
    progress = make_progress(learner, resumed, args, rank)
    learner = learner._replace(model=distributed.data_parallel(learner.model, rank))
    train_batches, eval_batches = make_batches("TRAIN", args, rank), make_batches("TEST", args, rank)
    clock = progress.start_clock(train_batches, config.TRAIN.END_EPOCH, profile_steps=args.profile_steps)
    recorder = records.start(os.path.join(args.output_path, "metrics.jsonl"), rank, args, learner.amp, progress,
                             tensorboard_dir=tensorboard_dir(args, rank))
    run = Run(rank, progress, clock, recorder)

    while progress.epoch < config.TRAIN.END_EPOCH:
        rate = learning_rate(config, config.TRAIN.LR, progress.epoch)
        set_rate(learner.optimizer, rate)
        train(train_batches, learner, run, args)
        result = validate(eval_batches, learner, rank)
        if progress.is_best(result.top1):
            save_weights(learner.model, os.path.join(args.output_path, "model_best.pth.tar"), rank)
        progress.note_evaluation(result)
        recorder.epoch(progress, clock, rate)
        progress.end_epoch()
    save_weights(learner.model, os.path.join(args.output_path, "final_state.pth.tar"), rank)
    recorder.summary(progress, clock, train_batches.count_bad(rank) + eval_batches.count_bad(rank))


def keep_batch(args, resumed, rank):
    """Where the run to go on with had another number of ranks, have the images of an update, and the rate, stay what they were."""
    config, before = args.config, args.config.TRAIN.BATCH_SIZE_PER_GPU
    batch = resume.batch_of_rank(before, args.accumulate, resumed, rank)
    if batch != before:
        config.defrost()
        config.TRAIN.BATCH_SIZE_PER_GPU = batch
        config.TRAIN.LR *= 1 if args.lr is None else batch / before  # --lr was multiplied by the ranks that there are
        config.freeze()


def set_cudnn(settings, deterministic):
    """Give cuDNN what the config says of it, but for what --deterministic forbids."""
    torch.backends.cudnn.enabled = settings.ENABLED
    torch.backends.cudnn.benchmark = settings.BENCHMARK and not deterministic
    torch.backends.cudnn.deterministic = settings.DETERMINISTIC or deterministic


def make_learner(args, rank):
    """Return the Learner on the rank's device, and say in the log what is trained."""
    config, size = args.config, args.config.MODEL.IMAGE_SIZE[0]
    model = options.initial_model(args, args.pretrained, rank, args.new_classifier)
    rank.print(*options.remarks(args) + [remark_on_classes(args), remark_on_rate(args, rank)])
    rank.print(rank.is_main and model_stats(model, size, size).summary())
    loss_scale = "dynamic" if args.dynamic_loss_scale else args.static_loss_scale
    network.place(model, rank.device, config.TRAIN.BATCH_SIZE_PER_GPU, size)
    try:
        optimizer = get_optimizer(config, model, config.TRAIN.LR)
    except ValueError as error:
        raise cli.UserError("%s: %s" % (args.cfg, error))
    model, optimizer, amp = precision.initialize(model, optimizer, args.opt_level, loss_scale, rank.device, args.amp_dtype)
    rank.print(amp.note)
    network.compile_forward(model, rank.device, args.compile)
    return Learner(model, torch.nn.CrossEntropyLoss(), optimizer, amp)


def remark_on_rate(args, rank):
    """Return a line for the log where TRAIN.LR is used as it is although the config has another number of devices in mind."""
    gpus = len(args.config.GPUS)
    if args.lr is not None or gpus == rank.world_size * args.accumulate:
        return ""
    several = " with --accumulate %d" % args.accumulate if args.accumulate > 1 else ""
    return ("TRAIN.LR %g is used as it is, but the config is for %d devices (GPUS) and %d take part%s; --lr gives the rate of one"
            % (args.config.TRAIN.LR, gpus, rank.world_size, several))


def make_progress(learner, resumed, args, rank):
    """Return the Progress, with upstream's keys in the checkpoint; `resumed`: the loaded one to go on from, or {}."""
    parts = {"state_dict": learner.model, "optimizer": learner.optimizer, "amp": learner.amp}
    progress = Progress(rank, "state_dict", parts, args.checkpoint, best_path=None,
                        constants={"model": args.config.MODEL.NAME, "seed": args.seed}, every_steps=args.checkpoint_steps,
                        best_key="perf", keep=args.keep_checkpoints)
    progress.products += [os.path.join(args.output_path, name) for name in ("model_best.pth.tar", "final_state.pth.tar")]
    progress.epoch = args.config.TRAIN.BEGIN_EPOCH
    if resumed:
        progress.resume(resumed, args.resume)
        rank.print("going on with %s%s: epoch %d, step %d" % (args.resume, " (TRAIN.RESUME is True)" if args.continues else "",
                                                              progress.epoch, progress.step))
    return progress


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
        rank.print("no events in LOG_DIR %s: TensorBoard cannot be imported (%s)" % (config.LOG_DIR, error))
        return None
    return os.path.join(config.LOG_DIR, config.DATASET.DATASET, config.MODEL.NAME,
                        "%s_%s" % (args.experiment, time.strftime("%Y-%m-%d-%H-%M")))


if __name__ == "__main__":
    cli.run(main)

"""Train or evaluate a gather-excite wide residual network on CIFAR: one device, several, or several machines.

The defaults are the recipe of the Ascend port: GE-theta-minus with global extent on WRN-16-8, 300 epochs.
"""
import itertools
import json
import os
import sys

sys.path[:0] = [os.path.join(os.path.dirname(os.path.abspath(__file__)), *up) for up in ((), (os.pardir,))]
from common import (checkpoint, cli, data, device as devices, distributed, entries, evaluation, flags, network,  # noqa: E402
                    optimizer, outputs, precision, profiling, ranges, records, resume, synthetic)
from common.progress import Learner, Progress, Run, choose_seed  # noqa: E402
import cifar  # noqa: E402
from cifar_batches import MEAN_STD, CifarLoader  # noqa: E402
from models import IMAGE_SIZE, WideResNet  # noqa: E402
import torch  # noqa: E402 (after common, which says what this Python lacks)
from torch import nn  # noqa: E402

MASTER_PORT = 29688  # where the ranks of several machines meet, as in the Ascend port
PROFILED_UPDATE = 5  # --prof: the first ones compile and fill caches
NETWORK_FLAGS = ("depth", "width", "extent", "extra_params", "mlp")


def parser():
    p = cli.Parser(description=__doc__)
    add = p.add_argument
    switch = {"type": cli.boolean, "nargs": "?", "const": True, "default": False}
    add("--DataPath", "--data-path", dest="data_path", metavar="DIR", help="folder that holds cifar-10-batches-py, or that folder")
    add("--dataset", choices=sorted(cifar.LAYOUTS), default="cifar10")

    add("-d", "--depth", type=cli.positive_int, default=16, help="layers of the wide residual network, 6n + 4")
    add("-w", "--width", type=cli.positive_int, default=8, help="its widening factor")
    add("--extent", type=int, choices=(0, 2, 4, 8), default=0, help="pixels that one gathered value stands for; 0: the whole map")
    add("--extra-params", help="gather with depthwise convolutions (GE-theta) instead of averages", **switch)
    add("--mlp", help="1x1-convolution pair in the excite branch; with --extra-params GE-theta-plus", **switch)
    add("--image-size", type=cli.positive_int, default=IMAGE_SIZE, help="must be %d: CIFAR's" % IMAGE_SIZE)

    add("-epochs", "--no-epochs", "--epochs", dest="epochs", type=cli.natural_int, default=300, help="epochs in all")
    add("-b", "--batch-size", type=cli.positive_int, default=128, help="images of an update over all ranks of all machines")
    add("-bt", "--test-batch-size", type=cli.positive_int, default=128, help="images per evaluation step of one rank")
    add("-lr", "--learning-rate", "--lr", type=ranges.natural, default=0.1, help="not scaled by the number of ranks")
    add("--lr-decay-ratio", type=ranges.natural, default=0.2, help="factor on the learning rate at each of --epoch-step")
    add("--epoch-step", type=milestones, default="[60,120,160,200]", help="epochs at which the learning rate decays, a JSON list")
    add("--momentum", type=ranges.fraction, default=0.9, help="of SGD")
    add("--nesterov", help="Nesterov's momentum", **switch)
    add("--weight-decay", "--wd", type=ranges.natural, default=0.0005, help="on every parameter, BatchNorm's and biases too")

    add("--amp", action="store_true", help="mixed precision at --opt-level")
    add("--opt-level", choices=precision.OPT_LEVELS, default="O2", help="counts only with --amp")
    add("--loss-scale", type=flags.loss_scale, default=128.0, help="constant loss scale, or dynamic")

    add("-e", "--eval", action="store_true", help="evaluate and stop")
    add("--pth-path", metavar="FILE", help="weights to start from, or to evaluate")
    add("--pretrained", action="store_true",
        help="start from --pth-path (without it from model_best.pth.tar of the output path), with a new classifier")
    flags.add_resume_flag(p, "<output-path>/checkpoint.pth.tar")

    flags.add_run_flags(p, images=False)
    flags.add_machine_flags(p)
    add("--gpu", type=ranges.device, default=0, help="position in --device-list of the device of a run on one")
    add("-j", "--workers", type=ranges.workers, default=9,
        help="threads of this machine that prepare batches, divided among its ranks; 0: batches are made when they are needed")

    flags.add_training_flags(p, images=False)
    flags.add_step_flags(p)
    add("--output-path", default="checkpoints", metavar="DIR", help="where checkpoints and metrics.jsonl go")
    add("--prof", action="store_true", help="make %d updates, profile one, write output.prof and stop" % PROFILED_UPDATE)
    return p


def milestones(text):
    """argparse type: a JSON list of epochs, such as [60,120,160,200]."""
    try:
        epochs = json.loads(text)
    except (ValueError, RecursionError):
        epochs = None
    if not isinstance(epochs, list) or not all(epoch in ranges.count for epoch in epochs):
        raise cli.argparse.ArgumentTypeError("%r is not a JSON list of epochs such as [60,120,160,200]" % text)
    return epochs


def main():
    args = checked(parser().parse_args())
    layout = device_layout(args)
    flags.divide(args, layout)
    if not args.dummy:
        args.folder = cifar.find_folder(args.data_path, args.dataset)
        cifar.verify_checksums(args.folder, args.dataset)
    distributed.launch(train_or_evaluate, args, layout)


def checked(args):
    """Check what the flags say together, and resolve those that say the same thing."""
    if not (args.data_path or args.dummy):
        raise cli.UserError("no dataset: give the folder that holds %s with --DataPath" % cifar.LAYOUTS[args.dataset].folder)
    if args.image_size != IMAGE_SIZE:
        raise cli.UserError("--image-size %d: the network is made for images of %d pixels" % (args.image_size, IMAGE_SIZE))
    if args.nesterov and args.momentum <= 0:
        raise cli.UserError("--nesterov needs a positive --momentum")
    if args.pretrained and not args.pth_path:
        args.pth_path = os.path.join(args.output_path, "model_best.pth.tar")
    if args.eval and args.resume not in (None, resume.AUTO):
        args.pth_path, args.resume = args.resume, None
    if args.eval and not args.pth_path:
        raise cli.UserError("nothing to evaluate: give the weights with --pth-path (or --resume=FILE)")
    if not args.amp:
        args.opt_level = "O0"
    return args


def device_layout(args):
    """Return the distributed.Layout that the flags describe."""
    if args.gpu >= len(args.device_list):
        raise cli.UserError("--gpu %d: --device-list has %d devices, counted from 0" % (args.gpu, len(args.device_list)))
    return flags.machine_layout(args, args.device_list[args.gpu], MASTER_PORT)


def train_or_evaluate(args, rank):
    """What each rank does; the order is that of every model (ResNet50/main.py)."""
    resumed, args.resume = resume.choose(args.resume, None if args.eval else checkpoint_path(args), rank)
    args.seed = choose_seed(args.seed, resumed, rank)
    learner = make_learner(args, rank)
    if args.eval:
        return evaluate(learner, args, rank)
    progress = make_progress(learner, args, rank)
    if args.resume:
        go_on(progress, resumed, args)
    fit(learner._replace(model=distributed.data_parallel(learner.model, rank)), progress, args, rank)


def make_learner(args, rank):
    """Return the Learner on the rank's device, with its first weights and the recipe's optimizer."""
    model = build_model(network_of(args), cifar.LAYOUTS[args.dataset].classes)
    rank.print(start_from_weights(model, args))
    network.place(model, rank.device, not args.eval and args.batch_per_rank, args.image_size)
    model, sgd, amp = precision.initialize(model, make_optimizer(model, args), args.opt_level, args.loss_scale, rank.device,
                                            args.amp_dtype)
    rank.print(amp.note)
    network.compile_forward(model, rank.device, args.compile)
    return Learner(model, nn.CrossEntropyLoss(), sgd, amp)


def make_optimizer(model, args):
    """Return SGD over all parameters in one group: BatchNorm's and the classifier's bias decay too."""
    return optimizer.SGD(model.parameters(), args.learning_rate, momentum=args.momentum,
                         weight_decay=args.weight_decay, nesterov=args.nesterov)


def make_progress(learner, args, rank):
    """Return the Progress of a training from its first epoch on, with the port's keys in the checkpoint."""
    parts = {"state_dict": learner.model, "optimizer": learner.optimizer, "amp": learner.amp}
    return Progress(rank, "state_dict", parts, checkpoint_path(args), os.path.join(args.output_path, "model_best.pth.tar"),
                    constants={"arch": "GENET", "seed": args.seed, "network": network_of(args)}, every_steps=args.checkpoint_steps,
                    best_key="best_err1", best_is_error=True, keep=args.keep_checkpoints)


def checkpoint_path(args):
    """Return where the checkpoint of a training goes."""
    return os.path.join(args.output_path, "checkpoint.pth.tar")


def evaluate(learner, args, rank):
    """Evaluate once on the test set, and record the result."""
    batches = make_batches("test", args, rank)
    recorder = open_records(learner, args, rank)
    recorder.evaluation(validate(batches, learner, args, rank), bad_images=0)


def fit(learner, progress, args, rank):
    """Train to the end of the last epoch, with an evaluation and a checkpoint after each."""
    train_batches, test_batches = make_batches("train", args, rank), make_batches("test", args, rank)
    clock = progress.start_clock(train_batches, args.epochs, profile_steps=args.profile_steps)
    if args.prof:
        return profile(train_batches, learner, Run(rank, progress, clock, None), args)
    run = Run(rank, progress, clock, open_records(learner, args, rank, progress))
    while progress.epoch < args.epochs:
        rate = learning_rate(progress.epoch, args.learning_rate, args.lr_decay_ratio, args.epoch_step)
        optimizer.set_rate(learner.optimizer, rate)
        rank.print("epoch %d: learning rate %g" % (progress.epoch, rate))
        train(train_batches, learner, run, args)
        progress.note_evaluation(validate(test_batches, learner, args, rank))
        run.recorder.epoch(progress, clock, rate)
        progress.end_epoch()
    run.recorder.summary(progress, clock, bad_images=0)


def open_records(learner, args, rank, progress=None):
    """Return the Recorder of the run. Everything that can be wrong has been checked by now."""
    return records.start(os.path.join(args.output_path, "metrics.jsonl"), rank, args, learner.amp, progress)


def learning_rate(epoch, base, decay_ratio, milestones):
    """Return the learning rate of an epoch (counted from 0): `base`, times `decay_ratio` for each milestone <= epoch.

    A function of the epoch alone: there is no scheduler whose state a checkpoint could lack, or whose order of calls
    could shift the drops.
    """
    return base * decay_ratio ** sum(milestone <= epoch for milestone in milestones)


def train(batches, learner, run, args):
    """Train what is left of the epoch that the run is in."""
    rank, progress, clock, recorder = run
    tally = progress.tally
    learner.model.train()
    for step, images, target in progress.steps(batches, learner, clock, args.accumulate):
        output, loss = train_step(learner, images, target, progress)
        tally.add(loss, output, target)
        clock.lap(len(target) * rank.world_size)
        if step % args.print_freq == 0:
            progress.read(clock)
            rank.print(line("Epoch: [%d]" % progress.epoch, step, len(batches), (clock.step_time, clock.data_time), tally))
            recorder.step(progress, clock, learner.optimizer.param_groups[0]["lr"])
    rate = clock.images_per_second
    rank.print(rate and "%sbatch_size: %d Time: %.3f * FPS@all %.3f"
               % (rank.tag, batches.global_batch, batches.global_batch / rate, rate))


def train_step(learner, images, target, progress):
    """Forward, backward and, with the last batch of an update, the update; return output and loss, still on the device."""
    with learner.amp.autocast():
        output = learner.model(images)
    loss = learner.criterion(output.float(), target)
    progress.update(learner.amp, loss)
    return output, loss


def validate(batches, learner, args, rank):
    """Return the meters.Result over the test set."""
    def show(step, tally, clock):
        rank.print(line("Test: ", step, len(batches), (clock.step_time,), tally))

    result = evaluation.evaluate(batches, learner, rank, show, args.print_freq)
    rank.print("%s[AVG-ERR] * Err@1 %.3f Err@5 %.3f" % (rank.tag, 100.0 - result.top1, 100.0 - result.top5))
    return result


def line(what, step, steps, times, tally):
    """Return a progress line in upstream's form: `Name value (average)` of the meters, with errors for accuracies."""
    shown = ["%s %.3f (%.3f)" % (time.name, time.val, time.avg) for time in times]
    shown.append("Loss %.4f (%.4f)" % (tally.loss.val, tally.loss.avg))
    shown += ["Err@%d %.3f (%.3f)" % (k, 100.0 - right.val, 100.0 - right.avg) for k, right in ((1, tally.top1), (5, tally.top5))]
    return "\t".join(["%s[%d/%d]" % (what, step, steps)] + shown)


def profile(batches, learner, run, args):
    """Profile one whole update, its gradients included, after the first few; write output.prof."""
    rank, progress, clock, _ = run
    if len(batches) - progress.step <= PROFILED_UPDATE * args.accumulate:
        raise cli.UserError("--prof needs more than %d updates in an epoch" % PROFILED_UPDATE)

    def take(steps):
        for _, images, target in steps:
            train_step(learner, images, target, progress)
            clock.lap(len(target) * rank.world_size)
        devices.synchronize(rank.device)

    learner.model.train()
    steps = progress.steps(batches, learner, clock, args.accumulate)
    take(itertools.islice(steps, PROFILED_UPDATE * args.accumulate))
    with torch.autograd.profiler.profile(**profiling.autograd_options(rank.device)) as profiler:
        take(itertools.islice(steps, args.accumulate))
    path = os.path.join(args.output_path, "output.prof")
    if rank.is_main:
        os.makedirs(args.output_path, exist_ok=True)
        outputs.hold(args.output_path)
        outputs.note(path)
        profiler.export_chrome_trace(path)
    rank.print("wrote %s (open it in chrome://tracing)" % path)


# --- the network and the batches --------------------------------------------------------------------------------------

def network_of(args):
    """Return which variant the flags ask for; a checkpoint keeps it."""
    return {flag: getattr(args, flag) for flag in NETWORK_FLAGS}


def build_model(network, classes):
    """Return the network with its initial weights. Raises UserError for options that make no network."""
    try:
        return WideResNet(num_classes=classes, **network)
    except ValueError as error:
        raise cli.UserError("--%s" % error)


def start_from_weights(model, args):
    """Load --pth-path into `model`, with --pretrained all but its classifier; return a line that says which weights they are
    where the file leaves a choice."""
    if not args.pth_path:
        return ""
    content = checkpoint.load(args.pth_path)
    check_network(content, args, args.pth_path)
    return checkpoint.load_weights(model, content, args.pth_path, args.use_ema, args.pretrained and not args.eval)


def check_network(content, args, source):
    """Raise UserError where a checkpoint says that it is of another variant. (Without parameters in the gather, all
    extents have the same keys and shapes, so that loading alone would not notice.)"""
    trained = content.get("network")
    if isinstance(trained, dict) and trained != network_of(args):
        different = ["--%s %s" % (flag.replace("_", "-"), trained.get(flag)) for flag, value in network_of(args).items()
                     if trained.get(flag) != value]
        raise cli.UserError("%s was trained with %s" % (source, " ".join(different)))


def go_on(progress, content, args):
    """Continue where the loaded checkpoint was written: ours, the Ascend port's, or upstream's own."""
    check_network(content, args, args.resume)
    progress.resume(content, args.resume)
    errors = content.get("error_history")  # upstream's, of each epoch
    if progress.best is None and isinstance(errors, (list, tuple)) and errors:
        progress.best = 100.0 - min(entries.percentage(error, args.resume) for error in errors)


def make_batches(split, args, rank):
    """Return the batches of a split on the device: augmented and shuffled for training, as they are for testing."""
    if args.dummy:
        return synthetic.SyntheticBatches(synthetic.CIFAR[split == "test"], args.batch_per_rank, IMAGE_SIZE,
                                          cifar.LAYOUTS[args.dataset].classes, rank, args.max_steps, args.accumulate)
    images, labels = cifar.read_split(args.folder, split, args.dataset)
    if split == "train":
        # As in the port, one rank keeps the smaller last batch of an epoch and several drop it; so does one that accumulates in
        # their stead. One of a single image is dropped as well: BatchNorm on the 1x1 maps of some variants needs two values.
        drop_last = rank.world_size * args.accumulate > 1 or len(images) % args.batch_per_rank == 1
        batches = data.TrainBatches(len(images), args.batch_per_rank, rank, args.seed, args.max_steps, drop_last, args.accumulate)
    else:
        batches = data.EvalBatches(len(images), args.test_batch_size, rank, args.max_steps)
    source = CifarLoader(images, labels, batches, rank.device, args.workers_per_rank, args.seed if split == "train" else None)
    batches = data.DeviceBatches(source, rank.device, *MEAN_STD[args.dataset])
    batches.classes = cifar.class_names(args.folder, args.dataset)
    return batches


if __name__ == "__main__":
    cli.run(main)

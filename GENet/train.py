"""Train or evaluate a gather-excite wide residual network on CIFAR: one device, several, or several machines.

The defaults are the recipe of the Ascend port: GE-theta-minus with global extent on WRN-16-8, 300 epochs.
"""
import inspect
import json
import os
import random
import sys
import time

import torch
from torch import nn

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
from common import checkpoint, cifar, cli, data, device as devices, distributed, meters, precision, records  # noqa: E402
from common.progress import Progress  # noqa: E402
from cifar_batches import MEAN_STD, CifarLoader  # noqa: E402
from models import IMAGE_SIZE, WideResNet  # noqa: E402

MASTER_PORT = 29688  # where the ranks of several machines meet, as in the Ascend port, unless --dist-url or --master-port says otherwise
PROFILED_STEP = 5  # --prof: the first steps compile and fill caches
NETWORK_FLAGS = ("depth", "width", "extent", "extra_params", "mlp")


def parser():
    p = cli.Parser(description=__doc__.splitlines()[0])
    add = p.add_argument
    switch = {"type": cli.boolean, "nargs": "?", "const": True, "default": False}
    add("--DataPath", "--data-path", dest="data_path", metavar="DIR", help="folder that holds cifar-10-batches-py, or that folder")
    add("--dataset", choices=sorted(cifar.LAYOUTS), default="cifar10")

    add("-d", "--depth", type=int, default=16, help="layers of the wide residual network, 6n + 4")
    add("-w", "--width", type=cli.positive_int, default=8, help="its widening factor")
    add("--extent", type=int, choices=(0, 2, 4, 8), default=0, help="pixels that one gathered value stands for; 0: the whole map")
    add("--extra-params", help="gather with depthwise convolutions (GE-theta) instead of averages", **switch)
    add("--mlp", help="1x1-convolution pair in the excite branch; with --extra-params GE-theta-plus", **switch)
    add("--image-size", type=cli.positive_int, default=IMAGE_SIZE, help="must be %d: CIFAR's" % IMAGE_SIZE)

    add("-epochs", "--no-epochs", "--epochs", dest="epochs", type=cli.natural_int, default=300, help="epochs in all")
    add("-b", "--batch-size", type=cli.positive_int, default=128, help="images per step over all ranks of all machines")
    add("-bt", "--test-batch-size", type=cli.positive_int, default=128, help="images per evaluation step of one rank")
    add("-lr", "--learning-rate", "--lr", type=float, default=0.1, help="not scaled by the number of ranks")
    add("--lr-decay-ratio", type=float, default=0.2, help="factor on the learning rate at each of --epoch-step")
    add("--epoch-step", type=milestones, default="[60,120,160,200]", help="epochs at which the learning rate decays, a JSON list")
    add("--momentum", type=float, default=0.9)
    add("--nesterov", help="Nesterov's momentum", **switch)
    add("--weight-decay", "--wd", type=float, default=0.0005, help="on every parameter, BatchNorm's and biases too")

    add("--amp", action="store_true", help="mixed precision at --opt-level")
    add("--opt-level", choices=precision.OPT_LEVELS, default="O2", help="counts only with --amp")
    add("--loss-scale", type=loss_scale, default=128.0, help="constant loss scale, or dynamic")

    add("-e", "--eval", action="store_true", help="evaluate and stop")
    add("--pth-path", metavar="FILE", help="weights to start from, or to evaluate")
    add("--pretrained", action="store_true",
        help="start from --pth-path (without it from model_best.pth.tar of the output path), with a new classifier")
    add("--resume", metavar="FILE", default="", help="go on exactly where this checkpoint was written; with --eval: evaluate it")

    add("--device", choices=devices.KINDS, default="auto", help="auto: npu, else gpu, else cpu")
    add("--device-list", type=cli.int_list, default="0,1,2,3,4,5,6,7", help="devices of this machine")
    add("--gpu", type=cli.natural_int, default=0, help="position in --device-list of the device of a run on one")
    add("--multiprocessing-distributed", action="store_true", help="one rank on each device of --device-list")
    add("--world-size", type=cli.positive_int, default=1, help="number of machines")
    add("--rank", type=int, default=-1, help="number of this machine; without it the environment's NODE_RANK, else 0")
    add("--addr", help="address of machine 0")
    add("--master-port", type=cli.positive_int, help="port on machine 0")
    add("--dist-url", help="tcp://ADDRESS:PORT of machine 0; same as --addr with --master-port")

    add("-j", "--workers", type=cli.natural_int, default=9,
        help="threads of this machine that prepare batches, divided among its ranks; 0: batches are made when they are needed")
    add("--seed", type=cli.natural_int, help="makes a run reproducible; without it a random one")
    add("-p", "--print-freq", type=cli.positive_int, default=10, help="steps between progress lines")
    add("--max-steps", type=cli.positive_int, help="end each epoch (and each evaluation) after this many steps")
    add("--checkpoint-steps", type=cli.natural_int, default=0, help="also write the checkpoint every so many steps")
    add("--output-path", default="checkpoints", metavar="DIR", help="where checkpoints and metrics.jsonl go")
    add("--prof", action="store_true", help="train %d steps, profile one, write output.prof and stop" % PROFILED_STEP)
    return p


def milestones(text):
    """argparse type: a JSON list of epochs, such as [60,120,160,200]."""
    try:
        epochs = json.loads(text)
    except ValueError:
        epochs = None
    if not isinstance(epochs, list) or not all(type(epoch) is int and epoch >= 0 for epoch in epochs):
        raise cli.argparse.ArgumentTypeError("%r is not a JSON list of epochs such as [60,120,160,200]" % text)
    return epochs


def loss_scale(text):
    """argparse type: a positive number, or the word dynamic."""
    try:
        value = text if text == "dynamic" else float(text)
    except ValueError:
        value = 0
    if value != "dynamic" and not 0 < value < float("inf"):
        raise cli.argparse.ArgumentTypeError("%r is neither a positive number nor dynamic" % text)
    return value


def main():
    args = settled(parser().parse_args())
    where = layout(args)
    args.batch_per_rank = args.batch_size // where.world_size
    args.workers_per_rank = (args.workers + len(where.indices) - 1) // len(where.indices)
    if args.batch_per_rank == 0:
        raise cli.UserError("batch size %d is smaller than the number of ranks, %d" % (args.batch_size, where.world_size))
    args.folder = cifar.find_folder(args.data_path, args.dataset)
    cifar.verify_checksums(args.folder, args.dataset)
    distributed.launch(train_or_evaluate, args, where)


def settled(args):
    """Check what the flags say together, and resolve those that say the same thing."""
    if not args.data_path:
        raise cli.UserError("no dataset: give the folder that holds %s with --DataPath" % cifar.LAYOUTS[args.dataset].folder)
    if args.image_size != IMAGE_SIZE:
        raise cli.UserError("--image-size %d: the network is made for images of %d pixels" % (args.image_size, IMAGE_SIZE))
    if args.nesterov and args.momentum <= 0:
        raise cli.UserError("--nesterov needs a positive --momentum")
    if args.pretrained and not args.pth_path:
        args.pth_path = os.path.join(args.output_path, "model_best.pth.tar")
    if args.eval and not (args.pth_path or args.resume):
        raise cli.UserError("nothing to evaluate: give the weights with --pth-path (or --resume)")
    if args.eval and args.resume:
        args.pth_path, args.resume = args.resume, ""
    if not args.amp:
        args.opt_level = "O0"
    return args


def layout(args):
    """Return the distributed.Layout that the flags describe."""
    addr, port = distributed.meeting_point(args.addr, args.master_port, args.dist_url)
    if args.gpu >= len(args.device_list):
        raise cli.UserError("--gpu %d: --device-list has %d devices, counted from 0" % (args.gpu, len(args.device_list)))
    indices = args.device_list if args.multiprocessing_distributed else [args.device_list[args.gpu]]
    node_rank = args.rank if args.rank >= 0 else int(os.environ.get("NODE_RANK", 0))
    return distributed.layout(args.device, indices, args.world_size, node_rank, addr,
                              port or (MASTER_PORT if args.world_size > 1 else None))


def train_or_evaluate(args, rank):
    """What each rank does."""
    resumed = load_run(args.resume) if args.resume else {}
    seed_everything(args, resumed, rank)
    devices.npu_modes(rank.device)

    network = {flag: getattr(args, flag) for flag in NETWORK_FLAGS}
    model = build_model(network, cifar.LAYOUTS[args.dataset].classes)
    start_from_weights(model, network, args)
    model.to(rank.device)
    if args.eval:
        evaluate(model, args, rank)
    else:
        fit(model, network, resumed, args, rank)


def seed_everything(args, resumed, rank):
    """Settle the run's seed, the same on all ranks: --seed, or that of the run to go on with, or a random one.

    Whoever gives --seed wants the same numbers again, so cuDNN may neither use algorithms that differ from call to call nor
    choose among them by their speed of the moment.
    """
    torch.backends.cudnn.deterministic = args.seed is not None
    if args.seed is not None:
        torch.backends.cudnn.benchmark = False
    else:
        args.seed = resumed.get("seed", distributed.broadcast_int(random.SystemRandom().randrange(2 ** 31), rank))
    devices.seed(args.seed, rank.device)


def evaluate(model, args, rank):
    """Evaluate on the test set and record the result."""
    model, _, amp = precision.initialize(model, None, args.opt_level, args.loss_scale, rank.device)
    show = Printer(rank)
    show.note(amp.note)
    batches = make_batches("test", args, rank)
    recorder = open_recorder(args, rank, amp)
    err1, test_loss = validate(batches, model, nn.CrossEntropyLoss(), amp, args, rank, show)
    recorder.log((), {"val.top1": 100.0 - err1, "val.loss": test_loss})


def fit(model, network, resumed, args, rank):
    """Train from the epoch and step that `resumed`, a loaded checkpoint or nothing, has reached; evaluate after each epoch."""
    criterion = nn.CrossEntropyLoss()
    optimizer = make_optimizer(model, args)
    model, optimizer, amp = precision.initialize(model, optimizer, args.opt_level, args.loss_scale, rank.device)
    progress = Progress(rank, "state_dict", {"state_dict": model, "optimizer": optimizer, "amp": amp},
                        os.path.join(args.output_path, "checkpoint.pth.tar"),
                        os.path.join(args.output_path, "model_best.pth.tar"), best_key="best_err1", best_is_error=True,
                        constants={"arch": "GENET", "seed": args.seed, "network": network}, every_steps=args.checkpoint_steps)
    show = Printer(rank)
    show.note(amp.note)
    if resumed:
        resume(progress, resumed, network, args.resume, show)
    model = distributed.data_parallel(model, rank)
    train_batches, test_batches = make_batches("train", args, rank), make_batches("test", args, rank)
    if args.prof:
        return profile(train_batches, model, criterion, amp, args, rank, show)
    recorder = open_recorder(args, rank, amp)

    throughput = meters.Throughput(rank.device, meters.warmup_steps(len(train_batches) * (args.epochs - progress.epoch)))
    while progress.epoch < args.epochs:
        epoch = progress.epoch
        rate = learning_rate(epoch, args.learning_rate, args.lr_decay_ratio, args.epoch_step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        show.note("epoch %d: learning rate %g" % (epoch, rate))
        train(train_batches, model, criterion, amp, progress, throughput, args, rank, show, recorder)
        err1, test_loss = validate(test_batches, model, criterion, amp, args, rank, show)
        progress.results["val.loss"] = test_loss
        progress.end_epoch(100.0 - err1)
        recorder.log((epoch,), {"train.loss": progress.results.get("train.loss_mean"), "val.loss": test_loss, "val.top1": 100.0 - err1,
                                "train.total_ips": throughput.images_per_second, "lr": rate})
    recorder.log((), dict(progress.results, **throughput.summary()))


def open_recorder(args, rank, amp):
    """Return the recorder of the run, which has noted its parameters. Everything that can be wrong has been checked by now."""
    recorder = records.Recorder(os.path.join(args.output_path, "metrics.jsonl"), rank, append=bool(args.resume))
    recorder.parameters(dict(vars(args), world_size=rank.world_size, device_type=rank.device.type,
                             opt_level_run=amp.opt_level, torch=torch.__version__))
    return recorder


def make_optimizer(model, args):
    """Return SGD over all parameters in one group: BatchNorm's and the classifier's bias decay too."""
    return torch.optim.SGD(model.parameters(), args.learning_rate, momentum=args.momentum,
                           weight_decay=args.weight_decay, nesterov=args.nesterov)


def learning_rate(epoch, base, decay_ratio, milestones):
    """Return the learning rate of an epoch (counted from 0): `base`, times `decay_ratio` for each milestone <= epoch.

    A function of the epoch alone: there is no scheduler whose state a checkpoint could lack, or whose order of calls
    could shift the drops.
    """
    return base * decay_ratio ** sum(milestone <= epoch for milestone in milestones)


def train(batches, model, criterion, amp, progress, throughput, args, rank, show, recorder):
    """Train what is left of the epoch that `progress` is in."""
    batch_time, data_time, losses, err1, err5 = Meter("Time"), Meter("Data"), Meter("Loss", 4), Meter("Err@1"), Meter("Err@5")
    epoch, steps = progress.epoch, len(batches)
    model.train()
    throughput.start()
    end = time.time()
    for images, target in batches.of_epoch(epoch, first_step=progress.step):
        data_time.update(time.time() - end)
        step = progress.step
        output, loss = train_step(model, criterion, amp, images, target)

        losses.update(loss, len(target))
        for meter, value in zip((err1, err5), errors(output, target)):
            meter.update(value, len(target))
        batch_time.update(time.time() - end)
        end = time.time()
        throughput.step(len(target) * rank.world_size)
        if step % args.print_freq == 0:  # the only place where the host waits for the device
            show("Epoch: [%d]" % epoch, step, steps, batch_time, data_time, losses, err1, err5)
            recorder.log((epoch, step), {"train.loss": float(losses.val), "train.data_time": data_time.avg}, epoch * steps + step)
        progress.end_step()
    throughput.stop()
    if losses.count:  # an interrupted epoch may have had no step left
        progress.results.update({"train.loss": float(losses.val), "train.loss_mean": losses.avg})
    rate = throughput.images_per_second
    show.device_note(rate and "batch_size: %d Time: %.3f * FPS@all %.3f" % (args.batch_size, args.batch_size / rate, rate))


def train_step(model, criterion, amp, images, target):
    """Forward, backward and update; return the output and the loss, both still on the device."""
    with amp.autocast():
        output = model(images)
    loss = criterion(output.float(), target)
    amp.backward(loss)
    amp.step()
    return output.detach(), loss.detach()


def validate(batches, model, criterion, amp, args, rank, show):
    """Return (top-1 error in per cent, loss) over the test set: in order, each image once, counts summed over the ranks."""
    batch_time, losses, err1, err5 = Meter("Time"), Meter("Loss", 4), Meter("Err@1"), Meter("Err@5")
    distributed.broadcast_buffers(model, rank)
    network = distributed.unwrapped(model)  # a rank may get a batch fewer than the others: no collective in here
    network.eval()
    end = time.time()
    with torch.no_grad():
        for step, (images, target) in enumerate(batches):
            with amp.autocast():
                output = network(images)
            losses.update(criterion(output.float(), target), len(target))
            for meter, value in zip((err1, err5), errors(output, target)):
                meter.update(value, len(target))
            batch_time.update(time.time() - end)
            end = time.time()
            if step % args.print_freq == 0:
                show("Test: ", step, len(batches), batch_time, losses, err1, err5)
    images, loss, wrong1, wrong5 = distributed.sum_over_ranks(
        [losses.count, float(losses.sum), float(err1.sum), float(err5.sum)], rank)
    show.device_note("[AVG-ERR] * Err@1 %.3f Err@5 %.3f" % (wrong1 / images, wrong5 / images))
    return wrong1 / images, loss / images


def errors(output, target):
    """Return the top-1 and top-5 errors of a batch in per cent, as tensors on the device."""
    return [100.0 - right for right in meters.accuracy(output, target, topk=(1, 5))]


def profile(batches, model, criterion, amp, args, rank, show):
    """Profile one whole training step, the update with its gradients included, after the first few; write output.prof."""
    model.train()
    for step, (images, target) in enumerate(batches.of_epoch(0)):
        if step < PROFILED_STEP:
            train_step(model, criterion, amp, images, target)
            continue
        with torch.autograd.profiler.profile(**profiler_options(rank.device)) as profiler:
            train_step(model, criterion, amp, images, target)
            devices.synchronize(rank.device)
        break
    else:
        raise cli.UserError("--prof needs more than %d steps in an epoch" % PROFILED_STEP)
    if rank.is_main:
        os.makedirs(args.output_path, exist_ok=True)
        profiler.export_chrome_trace(os.path.join(args.output_path, "output.prof"))
    show.note("wrote %s (open it in chrome://tracing)" % os.path.join(args.output_path, "output.prof"))


def profiler_options(device):
    """Return what makes this PyTorch's profiler look at `device` too."""
    known = inspect.signature(torch.autograd.profiler.profile.__init__).parameters
    if device.type == "cpu":
        return {}
    if "use_device" in known:
        return {"use_device": device.type}
    return {"use_" + device.type: True} if "use_" + device.type in known else {}


class Meter(meters.AverageMeter):
    """Prints as upstream's: `Name value (average)`."""

    def __init__(self, name, digits=3):
        super().__init__(name, ":.%df" % digits)


class Printer:
    """Prints rank 0's lines."""

    def __init__(self, rank):
        self._device = "[%s id: %d ] " % (rank.device.type, rank.device.index or 0)
        self._is_main = rank.is_main

    def __call__(self, what, step, steps, *shown):
        self.note("\t".join(["%s[%d/%d]" % (what, step, steps)] + [str(meter) for meter in shown]))

    def note(self, text):
        if self._is_main and text:
            print(text, flush=True)

    def device_note(self, text):
        self.note(text and self._device + text)


# --- the network and the batches --------------------------------------------------------------------------------------

def build_model(network, classes):
    """Return the network with its initial weights. Raises UserError for options that make no network."""
    try:
        return WideResNet(num_classes=classes, **network)
    except ValueError as error:
        raise cli.UserError("--%s" % error)


def start_from_weights(model, network, args):
    """Load --pth-path into `model`; with --pretrained all but its classifier."""
    if not args.pth_path:
        return
    content = checkpoint.load(args.pth_path)
    check_network(content, network, args.pth_path)
    if args.pretrained and not args.eval:
        content = checkpoint.weights(content)
        content.update((key, value) for key, value in model.state_dict().items() if key.startswith("fc."))
    checkpoint.load_weights(model, content, args.pth_path)


def check_network(content, network, source):
    """Raise UserError where a checkpoint says that it is of another variant. (Without parameters in the gather, all
    extents have the same keys and shapes, so that loading alone would not notice.)"""
    trained = content.get("network") if isinstance(content, dict) else None
    if isinstance(trained, dict) and trained != network:
        different = ["--%s %s" % (flag.replace("_", "-"), trained.get(flag)) for flag in NETWORK_FLAGS
                     if trained.get(flag) != network[flag]]
        raise cli.UserError("%s was trained with %s" % (source, " ".join(different)))


def load_run(path):
    """Return the checkpoint of a run to go on with. Raises UserError for a file without weights."""
    content = checkpoint.load(path)
    checkpoint.weights(content)
    return content


def resume(progress, content, network, source, show):
    """Continue where the loaded checkpoint was written: ours, the Ascend port's, or upstream's own."""
    check_network(content, network, source)
    if "best_err1" not in content and content.get("error_history"):
        content["best_err1"] = min(float(error) for error in content["error_history"])
    absent = progress.resume(content, source)
    show.note("%s holds no %s: starting anew with that" % (source, ", ".join(absent)) if absent else None)


def make_batches(split, args, rank):
    """Return the batches of a split on the device: augmented and shuffled for training, as they are for testing."""
    images, labels = cifar.read_split(args.folder, split, args.dataset)
    if split == "train":
        # As in the port, one rank keeps the smaller last batch of an epoch and several drop it. One of a single image is
        # dropped as well: BatchNorm on the 1x1 maps of some variants needs two values.
        drop_last = rank.world_size > 1 or len(images) % args.batch_per_rank == 1
        batches = data.TrainBatches(len(images), args.batch_per_rank, rank, args.seed, args.max_steps, drop_last)
    else:
        batches = data.EvalBatches(len(images), args.test_batch_size, rank, args.max_steps)
    source = CifarLoader(images, labels, batches, rank.device, args.workers_per_rank, args.seed if split == "train" else None)
    return data.DeviceBatches(source, rank.device, *MEAN_STD[args.dataset])


if __name__ == "__main__":
    cli.run(main)

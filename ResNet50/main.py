"""Train or evaluate a residual network on ImageNet: one device, several, or several machines.

The recipes of pytorch/examples (the defaults), of the single-card and of the eight-card Ascend port differ in flags only;
the scripts in test/ pass them.
"""
import os
import random
import sys
import time

import numpy as np
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
from common import checkpoint, cli, data, device as devices, distributed, meters, precision, records  # noqa: E402
from common.progress import Progress  # noqa: E402
import recipe  # noqa: E402
import resnet  # noqa: E402

MASTER_PORT = 29501  # where the ranks of several machines meet, as in the Ascend port, unless --dist-url or --master-port says otherwise
BENCHMARK_BATCH = 2048  # images per card between two updates with --benchmark 1


def parser():
    p = cli.Parser(description=__doc__.splitlines()[0])
    add = p.add_argument
    add("folder", nargs="?", metavar="DIR", help="dataset root with train/ and val/; same as --data")
    add("--data", metavar="DIR", help="dataset root with train/ and val/")
    add("-a", "--arch", default="resnet50", help="resnet18, 34, 50, 101, 152, or any network of torchvision.models")
    add("--num-classes", type=cli.positive_int, default=1000, help="outputs of the network")
    add("--image-size", type=cli.positive_int, default=224, help="training crop and evaluation crop")

    add("--epochs", type=cli.natural_int, default=90, help="epochs in all")
    add("--start-epoch", type=cli.natural_int, default=0, help="first epoch, counted from 0")
    add("-b", "--batch-size", type=cli.positive_int, default=256, help="images per step over all ranks of all machines")
    add("--lr", "--learning-rate", dest="lr", type=float, help="base learning rate; without it 0.1 x batch size / 256")
    add("--lr-schedule", choices=recipe.SCHEDULES, default="step30", help="course of the learning rate after the warm-up")
    add("--warmup", type=cli.natural_int, default=0, help="epochs of linear warm-up")
    add("--momentum", type=float, default=0.9)
    add("--nesterov", action="store_true", help="Nesterov's momentum")
    add("--wd", "--weight-decay", dest="weight_decay", type=float, default=1e-4)
    add("--no-decay", choices=sorted(recipe.NO_DECAY), default="none",
        help="parameters without weight decay, by name: none, those ending in 'bias', those containing 'bn'")
    add("--bn-weight-decay", action="store_true", help="weight decay on every parameter, whatever --no-decay says")
    add("--label-smoothing", type=float, default=0.0)
    add("--smoothing-form", choices=("uniform", "off-class"), default="uniform", help="where the smoothed mass goes")
    add("--mixup", type=float, default=0.0, metavar="ALPHA", help="parameter of mixup's Beta distribution; 0: no mixup")
    add("--optimizer-batch-size", type=int, default=-1,
        help="images of one rank between two updates: gradients are summed over several batches; -1: every batch")
    add("--benchmark", "-bm", type=int, choices=(0, 1), default=0, help="1: --optimizer-batch-size %d" % BENCHMARK_BATCH)
    add("--zero-init-residual", action="store_true", help="start with 0 as the last BatchNorm weight of each block")
    add("--normal-fc", action="store_true", help="start with a normal fc.weight, std sqrt(1/(3 inputs))")
    add("-c", "--model-config", choices=("classic", "fanin", "grp-fanin", "grp-fanout"), default="classic",
        help="initialisation of the convolutions: He's with fan-in for the fanin ones, else with fan-out")

    add("--opt-level", choices=precision.OPT_LEVELS, help="mixed precision; O0: fp32 (default)")
    add("--amp", action="store_true", help="mixed precision: --opt-level O2")
    add("--fp16", action="store_true", help="same as --amp")
    add("--precision-mode", choices=("allow_mix_precision", "must_keep_origin_dtype"), help="--opt-level O2 or O0")
    add("--static-loss-scale", type=float, default=128.0, help="constant loss scale of O1 and O2")
    add("--dynamic-loss-scale", action="store_true", help="loss scale that adapts itself")
    add("--graph-mode", action="store_true", help="npu: run as a graph where the plug-in can")
    add("--bin-mode", action="store_true", help="npu: precompiled operators (always on)")
    add("--ND", type=cli.boolean, nargs="?", const=True, default=False, help="npu: without the device's private formats")

    add("--pretrained", action="store_true", help="start from torchvision's published weights (downloads them)")
    add("--pth-path", metavar="FILE", help="weights to start from, or to evaluate")
    add("--resume", metavar="FILE", default="", help="go on exactly where this checkpoint was written")
    add("-t", "--fine-tuning", action="store_true", help="train fc alone; weights of another number of classes fit")
    add("-e", "--evaluate", type=cli.boolean, nargs="?", const=True, default=False, help="evaluate and stop")

    add("--device", choices=devices.KINDS, default="auto", help="auto: npu, else gpu, else cpu")
    add("--device-list", type=cli.int_list, default="0,1,2,3,4,5,6,7", help="devices of this machine")
    add("--gpu", "--npu", dest="index", type=cli.natural_int, default=0, help="the device of a run on one")
    add("--multiprocessing-distributed", action="store_true", help="one rank on each device of --device-list")
    add("--world-size", type=int, default=-1, help="number of machines")
    add("--rank", type=int, default=-1, help="number of this machine; without it the environment's NODE_RANK, else 0")
    add("--addr", help="address of machine 0")
    add("--master-port", type=cli.positive_int, help="port on machine 0")
    add("--dist-url", help="tcp://ADDRESS:PORT of machine 0; same as --addr with --master-port")
    add("--dist-backend", choices=("hccl", "nccl", "gloo"), help="must be the device's own: hccl npu, nccl gpu, gloo cpu")

    add("-j", "--workers", type=cli.natural_int, default=4, help="loader processes of this machine, divided among its ranks")
    add("--seed", type=cli.natural_int, help="makes a run reproducible; without it a random one")
    add("--skip-bad-images", action="store_true", help="leave unreadable images out and count them")
    add("-p", "--print-freq", type=cli.positive_int, default=10, help="steps between progress lines")
    add("--max-steps", type=cli.positive_int, help="end each epoch (and each evaluation) after this many steps")
    add("--save-ckpt-path", default="./", metavar="DIR", help="where checkpoints go")
    add("--checkpoint-nameprefix", default="checkpoint")
    add("--checkpoint-freq", type=cli.natural_int, default=0, help="keep a numbered copy every so many epochs; 0: none")
    add("--checkpoint-steps", type=cli.natural_int, default=0, help="also write the checkpoint every so many steps")
    add("--workspace", default="./", metavar="DIR", help="where the DLLogger records go")
    add("--raport-file", default="experiment_raport.json", help="their file name")
    return p


def main():
    args = settled(parser().parse_args())
    where = layout(args)
    divide(args, where)
    data.check_layout(args.data, ("val",) if args.evaluate else ("train", "val"))
    distributed.launch(train_or_evaluate, args, where)


def settled(args):
    """Check what the flags say together, and resolve those that say the same thing."""
    args.data = args.data or args.folder
    if not args.data:
        raise cli.UserError("no dataset: give its root, the folder that holds train/ and val/, with --data")
    if args.evaluate and not (args.pth_path or args.resume or args.pretrained):
        raise cli.UserError("nothing to evaluate: give the weights with --pth-path (or --resume)")
    if args.lr is None:
        args.lr = 0.1 * args.batch_size / 256
    if args.opt_level is None:
        mixed = args.amp or args.fp16 or args.precision_mode == "allow_mix_precision"
        args.opt_level = "O2" if mixed and args.precision_mode != "must_keep_origin_dtype" else "O0"
    if args.bn_weight_decay:
        args.no_decay = "none"
    if args.benchmark:
        args.optimizer_batch_size = BENCHMARK_BATCH
    if args.mixup > 0 and args.smoothing_form != "uniform":
        raise cli.UserError("--mixup goes with --smoothing-form uniform")
    return args


def layout(args):
    """Return the distributed.Layout that the flags describe."""
    addr, port = distributed.meeting_point(args.addr, args.master_port, args.dist_url)
    nnodes = max(1, args.world_size)
    node_rank = args.rank if args.rank >= 0 else int(os.environ.get("NODE_RANK", 0))
    indices = args.device_list if args.multiprocessing_distributed else [args.index]
    where = distributed.layout(args.device, indices, nnodes, node_rank, addr, port or (MASTER_PORT if nnodes > 1 else None))
    if args.dist_backend not in (None, devices.backend(where.device_type)):
        raise cli.UserError("--dist-backend %s does not drive %s devices; theirs is %s"
                            % (args.dist_backend, where.device_type, devices.backend(where.device_type)))
    return where


def divide(args, where):
    """Give each rank its share of the batch and of the loader processes."""
    args.batch_per_rank = args.batch_size // where.world_size
    args.workers_per_rank = (args.workers + len(where.indices) - 1) // len(where.indices)
    if args.batch_per_rank == 0:
        raise cli.UserError("batch size %d is smaller than the number of ranks, %d" % (args.batch_size, where.world_size))


def train_or_evaluate(args, rank):
    """What each rank does."""
    resumed = checkpoint.load(args.resume) if args.resume else {}
    torch.backends.cudnn.deterministic = args.seed is not None
    if args.seed is None:  # an interrupted run goes on with its own
        args.seed = resumed.get("seed", distributed.broadcast_int(random.SystemRandom().randrange(2 ** 31), rank))
    devices.seed(args.seed, rank.device)
    devices.npu_modes(rank.device, graph_mode=args.graph_mode, private_formats=not args.ND)

    model = build_model(args)
    start_from_weights(model, args)
    model.to(rank.device)
    criterion = recipe.SmoothedCrossEntropy(args.label_smoothing, args.smoothing_form)
    optimizer = torch.optim.SGD(recipe.parameter_groups(model, args.no_decay, args.weight_decay), args.lr,
                                momentum=args.momentum, nesterov=args.nesterov)
    loss_scale = "dynamic" if args.dynamic_loss_scale else args.static_loss_scale
    model, optimizer, amp = precision.initialize(model, optimizer, args.opt_level, loss_scale, rank.device)
    progress = Progress(rank, "state_dict", {"state_dict": model, "optimizer": optimizer, "amp": amp},
                        os.path.join(args.save_ckpt_path, args.checkpoint_nameprefix + ".pth.tar"),
                        os.path.join(args.save_ckpt_path, "model_best.pth.tar"),
                        constants={"arch": args.arch, "seed": args.seed}, every_steps=args.checkpoint_steps)
    progress.epoch = args.start_epoch
    show = Printer(rank)
    show.note(amp.note)
    if resumed:
        absent = progress.resume(resumed, args.resume)
        show.note("%s holds no %s: starting anew with that" % (args.resume, ", ".join(absent)) if absent else None)
    model = distributed.data_parallel(model, rank)
    val_batches = make_val_batches(args, rank)
    train_batches = None if args.evaluate else make_train_batches(args, rank)
    recorder = records.Recorder(os.path.join(args.workspace, args.raport_file), rank, append=bool(args.resume))
    recorder.parameters(dict(vars(args), world_size=rank.world_size, device_type=rank.device.type,
                             opt_level_run=amp.opt_level, torch=torch.__version__))

    if args.evaluate:
        top1, val_loss = validate(val_batches, model, criterion, amp, args, rank, show)
        recorder.log((), {"val.top1": top1, "val.loss": val_loss, "bad_images": val_batches.count_bad(rank)})
        return
    throughput = meters.Throughput(rank.device, meters.warmup_steps(len(train_batches) * (args.epochs - progress.epoch)))
    while progress.epoch < args.epochs:
        epoch = progress.epoch
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate(epoch, args.lr_schedule, args.lr, args.warmup, args.epochs)
        train(train_batches, model, criterion, optimizer, amp, progress, throughput, args, rank, show, recorder)
        top1, val_loss = validate(val_batches, model, criterion, amp, args, rank, show)
        progress.results["val.loss"] = val_loss
        numbered = "%s-epoch%d.pth.tar" % (args.checkpoint_nameprefix, epoch + 1)
        keep = args.checkpoint_freq and (epoch + 1) % args.checkpoint_freq == 0
        progress.end_epoch(top1, copy_to=[os.path.join(args.save_ckpt_path, numbered)] if keep else [])
        recorder.log((epoch,), {"train.loss": progress.results.get("train.loss_mean"), "val.loss": val_loss, "val.top1": top1,
                                "train.total_ips": throughput.images_per_second, "lr": optimizer.param_groups[0]["lr"]})
    recorder.log((), dict(progress.results, **throughput.summary(), bad_images=train_batches.count_bad(rank)))


def train(batches, model, criterion, optimizer, amp, progress, throughput, args, rank, show, recorder):
    """Train what is left of the epoch that `progress` is in."""
    batch_time, data_time = meters.AverageMeter("Time", ":6.3f"), meters.AverageMeter("Data", ":6.3f")
    losses = meters.AverageMeter("Loss", ":.4e")
    top1, top5 = meters.AverageMeter("Acc@1", ":6.2f"), meters.AverageMeter("Acc@5", ":6.2f")
    epoch, steps = progress.epoch, len(batches)
    accumulate = max(1, args.optimizer_batch_size // args.batch_per_rank)
    model.train(not args.fine_tuning)  # a frozen body keeps its statistics too
    throughput.start()
    end = time.time()
    for images, target in batches.of_epoch(epoch, first_step=progress.step):
        data_time.update(time.time() - end)
        step = progress.step
        # The gradients of `accumulate` batches make one update; the last update of an epoch takes those that are left.
        first = step - step % accumulate
        last = min(first + accumulate, steps) - 1
        images, soft_target = mixup(images, target, args, rank, epoch, step)
        with amp.autocast():
            output = model(images)
        loss = criterion(output.float(), soft_target)
        amp.backward(loss / (last + 1 - first))
        if step == last:
            amp.step()

        losses.update(loss, len(target))
        for meter, value in zip((top1, top5), meters.accuracy(output, target, topk=(1, 5))):
            meter.update(value, len(target))
        batch_time.update(time.time() - end)
        end = time.time()
        throughput.step(args.batch_per_rank * rank.world_size)
        if step % args.print_freq == 0:
            show("Epoch: [%d]" % epoch, step, steps, batch_time, data_time, losses, top1, top5)
            recorder.log((epoch, step), {"train.loss": float(losses.val), "train.data_time": data_time.avg,
                                         "lr": optimizer.param_groups[0]["lr"]}, epoch * steps + step)
        progress.end_step(resumable=step == last)
    throughput.stop()
    if losses.count:  # an interrupted epoch may have had no step left
        progress.results.update({"train.loss": float(losses.val), "train.loss_mean": losses.avg})
    rate = throughput.images_per_second
    show.note(rate and "batch_size: %d Time: %.3f * FPS@all %.3f" % (args.batch_size, args.batch_size / rate, rate))


def validate(batches, model, criterion, amp, args, rank, show):
    """Return (top-1 in per cent, loss) over the validation set: in order, each image once, counts summed over the ranks."""
    batch_time = meters.AverageMeter("Time", ":6.3f")
    losses = meters.AverageMeter("Loss", ":.4e")
    top1, top5 = meters.AverageMeter("Acc@1", ":6.2f"), meters.AverageMeter("Acc@5", ":6.2f")
    distributed.broadcast_buffers(model, rank)
    network = distributed.unwrapped(model)  # a rank may get a batch fewer than the others: no collective in here
    network.eval()
    end = time.time()
    with torch.no_grad():
        for step, (images, target) in enumerate(batches):
            with amp.autocast():
                output = network(images)
            losses.update(criterion(output.float(), target), len(target))
            for meter, value in zip((top1, top5), meters.accuracy(output, target, topk=(1, 5))):
                meter.update(value, len(target))
            batch_time.update(time.time() - end)
            end = time.time()
            if step % args.print_freq == 0:
                show("Test:", step, len(batches), batch_time, losses, top1, top5)
    images, loss, acc1, acc5 = distributed.sum_over_ranks(
        [losses.count, float(losses.sum), float(top1.sum), float(top5.sum)], rank)
    if images == 0:
        raise cli.UserError("no validation image could be read")
    show.note("%s * Acc@1 %.3f Acc@5 %.3f" % ("[AVG-ACC]" if rank.world_size > 1 else "", acc1 / images, acc5 / images))
    return acc1 / images, loss / images


def mixup(images, target, args, rank, epoch, step):
    """Return (images, target), mixed when --mixup asks for it; a function of seed, rank, epoch and step."""
    if args.mixup <= 0:
        return images, target
    rng = data.sample_rng(args.seed + 1 + rank.rank, epoch, step)
    return recipe.mixed_up(images, target, args.num_classes, args.mixup, rng)


class Printer(object):
    """Prints rank 0's progress lines; with several ranks they begin with the device, as the eight-card Ascend port's do."""

    def __init__(self, rank):
        self._prefix = "[%s id: %d ] " % (rank.device.type, rank.device.index or 0) if rank.world_size > 1 else ""
        self._is_main = rank.is_main

    def __call__(self, what, step, steps, *shown):
        if self._is_main:
            counter = "[%*d/%d]" % (len(str(steps)), step, steps)
            separator = "" if what.startswith("Epoch") else " "
            print("\t".join([self._prefix + what + separator + counter] + [str(meter) for meter in shown]), flush=True)

    def note(self, text):
        if self._is_main and text:
            print(self._prefix + text, flush=True)


# --- the network and the batches --------------------------------------------------------------------------------------

def build_model(args):
    """Return the network with its initial weights. Raises UserError for an unknown name."""
    if hasattr(resnet, args.arch) and args.arch.startswith("resnet"):
        model = getattr(resnet, args.arch)(args.num_classes)
    else:
        model = torchvision_network(args.arch, num_classes=args.num_classes)
    if "fanin" in args.model_config:
        resnet.initialize_convolutions(model, mode="fan_in")
    if args.zero_init_residual:
        resnet.zero_last_gammas(model)
    if args.normal_fc:
        resnet.normal_classifier(model)
    if args.fine_tuning:
        if not hasattr(model, "fc"):
            raise cli.UserError("--fine-tuning trains the layer fc, which %s does not have" % args.arch)
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith("fc.")
    return model


def torchvision_network(name, **options):
    models = devices.import_torchvision().models
    build = getattr(models, name, None)
    if not callable(build) or not name.islower() or name.startswith("_"):
        raise cli.UserError("--arch %s: no such network here or in torchvision.models" % name)
    return build(**options)


def start_from_weights(model, args):
    """Load --pth-path or --pretrained into `model`. In fine-tuning, a classifier of other size keeps its initial weights."""
    if args.pth_path:
        content, source = checkpoint.load(args.pth_path), args.pth_path
    elif args.pretrained:
        content, source = published_weights(args.arch), "the published weights of " + args.arch
    else:
        return
    if args.fine_tuning:
        content, own = checkpoint.weights(content, source), model.state_dict()
        for key in ("fc.weight", "fc.bias"):
            if key in content and content[key].shape != own[key].shape:
                content[key] = own[key]
    checkpoint.load_weights(model, content, source)


def published_weights(arch):
    try:
        return torchvision_network(arch, pretrained=True).state_dict()
    except (OSError, ValueError, KeyError) as error:
        raise cli.UserError("cannot get the published weights of %s (%s)" % (arch, error))


def make_train_batches(args, rank):
    """Return the training batches on the device: random resized crop, flip."""
    def transform(image, rng):
        box = data.random_resized_crop_box(image.size[0], image.size[1], rng)
        array = np.asarray(data.crop_and_resize(image, box, args.image_size))
        return array[:, ::-1] if rng.random() < 0.5 else array

    dataset = data.ImageFolder(os.path.join(args.data, "train"), transform, args.seed, args.skip_bad_images, replace=True)
    check_classes(dataset, args)
    batches = data.TrainBatches(len(dataset), args.batch_per_rank, rank, args.seed, args.max_steps)
    return on_device(dataset, batches, args, rank)


def make_val_batches(args, rank):
    """Return the validation batches on the device: shorter side to 8/7 of the crop (256 for 224), centre crop."""
    def transform(image, rng):
        return np.asarray(data.center_crop(data.resize_shorter(image, args.image_size * 8 // 7), args.image_size))

    dataset = data.ImageFolder(os.path.join(args.data, "val"), transform, skip_bad_images=args.skip_bad_images)
    check_classes(dataset, args)
    batches = data.EvalBatches(len(dataset), args.batch_per_rank, rank, args.max_steps)
    return on_device(dataset, batches, args, rank)


def on_device(dataset, batches, args, rank):
    source = data.loader(dataset, batches, args.workers_per_rank, rank.device)
    return data.DeviceBatches(source, rank.device, skip_bad_images=args.skip_bad_images)


def check_classes(dataset, args):
    if len(dataset.classes) > args.num_classes:
        raise cli.UserError("%s has %d classes, the network has --num-classes %d"
                            % (dataset.root, len(dataset.classes), args.num_classes))


if __name__ == "__main__":
    cli.run(main)

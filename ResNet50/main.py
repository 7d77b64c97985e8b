"""Train or evaluate a residual network on ImageNet: one device, several, or several machines.

The recipes of pytorch/examples (the defaults), of the single-card and of the eight-card Ascend port differ in flags only;
the scripts in test/ pass them.
"""
import inspect
import os
import sys

sys.path[:0] = [os.path.join(os.path.dirname(os.path.abspath(__file__)), *up) for up in ((), (os.pardir,))]
from common import (checkpoint, cli, data, device as devices, distributed, evaluation, flags, network,  # noqa: E402
                    optimizer, precision, ranges, records, resume, synthetic, transforms)
from common.progress import Learner, Progress, Run, choose_seed  # noqa: E402
import recipe  # noqa: E402
import resnet  # noqa: E402

MASTER_PORT = 29501  # where the ranks of several machines meet, as in the Ascend port
BENCHMARK_BATCH = 2048  # images per card between two updates with --benchmark 1


def parser():
    p = cli.Parser(description=__doc__)
    add = p.add_argument
    add("folder", nargs="?", metavar="DIR", help="dataset root with train/ and val/; same as --data")
    add("--data", metavar="DIR", help="dataset root with train/ and val/")
    add("-a", "--arch", default="resnet50", help="resnet18, 34, 50, 101, 152, or any network of torchvision.models")
    add("--num-classes", type=cli.positive_int, default=1000, help="outputs of the network")
    add("--image-size", type=cli.positive_int, default=224, help="training crop and evaluation crop")

    add("--epochs", type=cli.natural_int, default=90, help="epochs in all")
    add("--start-epoch", type=cli.natural_int, default=0, help="first epoch, counted from 0")
    add("-b", "--batch-size", type=cli.positive_int, default=256, help="images of an update over all ranks of all machines")
    add("--lr", "--learning-rate", dest="lr", type=ranges.natural, help="base learning rate; without it 0.1 x batch size / 256")
    add("--lr-schedule", choices=recipe.SCHEDULES, default="step30", help="course of the learning rate after the warm-up")
    add("--warmup", type=cli.natural_int, default=0, help="epochs of linear warm-up")
    add("--momentum", type=ranges.fraction, default=0.9, help="of SGD")
    add("--nesterov", action="store_true", help="Nesterov's momentum")
    add("--wd", "--weight-decay", dest="weight_decay", type=ranges.natural, default=1e-4, help="L2 penalty")
    add("--no-decay", choices=sorted(recipe.NO_DECAY), default="none",
        help="parameters without weight decay, by name: none, those ending in 'bias', those containing 'bn'")
    add("--bn-weight-decay", action="store_true", help="weight decay on every parameter, whatever --no-decay says")
    add("--label-smoothing", type=ranges.share, default=0.0, help="share of the target that is spread over the classes")
    add("--smoothing-form", choices=("uniform", "off-class"), default="uniform", help="where the smoothed mass goes")
    add("--mixup", type=ranges.natural, default=0.0, metavar="ALPHA", help="parameter of mixup's Beta distribution; 0: no mixup")
    add("--optimizer-batch-size", type=ranges.whole(-1), default=-1,
        help="images of one rank between two updates, --accumulate counted in: gradients of several batches; -1: every update")
    add("--benchmark", "-bm", type=int, choices=(0, 1), default=0, help="1: --optimizer-batch-size %d" % BENCHMARK_BATCH)
    add("--zero-init-residual", action="store_true", help="start with 0 as the last BatchNorm weight of each block")
    add("--normal-fc", action="store_true", help="start with a normal classifier, std sqrt(1/(3 inputs))")
    add("-c", "--model-config", choices=("classic", "fanin", "grp-fanin", "grp-fanout"), default="classic",
        help="initialisation of the convolutions: He's with fan-in for the fanin ones, else with fan-out")

    add("--opt-level", choices=precision.OPT_LEVELS, help="mixed precision; O0: fp32 (default)")
    add("--amp", action="store_true", help="mixed precision: --opt-level O2")
    add("--fp16", action="store_true", help="same as --amp")
    add("--precision-mode", choices=("allow_mix_precision", "must_keep_origin_dtype"), help="--opt-level O2 or O0")
    add("--static-loss-scale", type=ranges.positive, default=128.0, help="constant loss scale of O1 and O2")
    add("--dynamic-loss-scale", action="store_true", help="loss scale that adapts itself")
    add("--graph-mode", action="store_true", help="npu: run as a graph where the plug-in can")
    add("--bin-mode", action="store_true", help="npu: precompiled operators (always on)")
    add("--ND", type=cli.boolean, nargs="?", const=True,
        help="npu: without the device's private formats; false: with them; neither: the plug-in's default, which suits the device")

    add("--pretrained", action="store_true", help="start from torchvision's published weights (downloads them)")
    add("--pth-path", metavar="FILE", help="weights to start from, or to evaluate")
    flags.add_resume_flag(p, "<save-ckpt-path>/<checkpoint-nameprefix>.pth.tar")
    add("--new-classifier", action="store_true",
        help="of the weights to start from, take all but the classifier, so that they may be of other classes")
    add("-t", "--fine-tuning", action="store_true", help="train fc alone; weights of another number of classes fit")
    add("-e", "--evaluate", type=cli.boolean, nargs="?", const=True, default=False, help="evaluate and stop")

    flags.add_run_flags(p)
    flags.add_machine_flags(p)
    add("--gpu", "--npu", dest="index", type=ranges.device, default=0, help="the device of a run on one")
    add("--dist-backend", choices=("hccl", "nccl", "gloo"), help="must be the device's own: hccl npu, nccl gpu, gloo cpu")

    add("-j", "--workers", type=ranges.workers, default=4, help="loader processes of this machine, divided among its ranks")
    flags.add_training_flags(p)
    flags.add_step_flags(p)
    add("--save-ckpt-path", default="./", metavar="DIR", help="where checkpoints go")
    add("--checkpoint-nameprefix", type=cli.file_name, default="checkpoint", help="how their names begin")
    add("--checkpoint-freq", type=cli.natural_int, default=0, help="keep a numbered copy every so many epochs; 0: none")
    add("--workspace", default="./", metavar="DIR", help="where the DLLogger records go")
    add("--raport-file", type=cli.file_name, default="experiment_raport.json", help="their file name")
    return p


def main():
    args = checked(parser().parse_args())
    layout = device_layout(args)
    flags.divide(args, layout)
    if not args.dummy:
        data.check_layout(args.data, ("val",) if args.evaluate else ("train", "val"))
    distributed.launch(train_or_evaluate, args, layout)


def checked(args):
    """Check what the flags say together, and resolve those that say the same thing."""
    args.data = args.data or args.folder
    if not (args.data or args.dummy):
        raise cli.UserError("no dataset: give its root, the folder that holds train/ and val/, with --data")
    if args.evaluate and args.resume in (None, resume.AUTO) and not (args.pth_path or args.pretrained):
        raise cli.UserError("nothing to evaluate: give the weights with --pth-path (or --resume=FILE)")
    if args.new_classifier and (args.evaluate or not (args.pth_path or args.pretrained)):
        raise cli.UserError("--new-classifier is of a training that starts from weights: give them with --pth-path")
    if args.start_epoch > args.epochs:
        raise cli.UserError("--start-epoch %d: there are %d epochs" % (args.start_epoch, args.epochs))
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


def device_layout(args):
    """Return the distributed.Layout that the flags describe."""
    layout = flags.machine_layout(args, args.index, MASTER_PORT)
    if args.dist_backend not in (None, devices.BACKENDS[layout.device_type]):
        raise cli.UserError("--dist-backend %s does not drive %s devices; theirs is %s"
                            % (args.dist_backend, layout.device_type, devices.BACKENDS[layout.device_type]))
    return layout


# --- what each rank does ----------------------------------------------------------------------------------------------
# The order is the same in every model: load, seed, device modes, network, weights, to the device, optimizer, precision; then
# progress, resume, parallel, batches, clock; and when nothing can be wrong any more, the records.

def train_or_evaluate(args, rank):
    """What each rank does."""
    resumed, args.resume = resume.choose(args.resume, None if args.evaluate else checkpoint_path(args), rank)
    args.seed = choose_seed(args.seed, resumed, rank)
    devices.npu_modes(rank.device, graph_mode=args.graph_mode, private_formats=None if args.ND is None else not args.ND)
    learner = make_learner(args, rank)
    progress = make_progress(learner, args, rank)
    if resumed:
        progress.resume(resumed, args.resume)
    learner = learner._replace(model=distributed.data_parallel(learner.model, rank))
    if args.evaluate:
        evaluate(learner, args, rank)
    else:
        fit(learner, progress, args, rank)


def make_learner(args, rank):
    """Return the Learner on the rank's device, with its first weights and the recipe's optimizer."""
    model = build_model(args)
    rank.print(start_from_weights(model, args))
    network.place(model, rank.device, not args.evaluate and args.batch_per_rank, args.image_size)
    loss_scale = "dynamic" if args.dynamic_loss_scale else args.static_loss_scale
    sgd = optimizer.SGD(recipe.parameter_groups(model, args.no_decay, args.weight_decay), args.lr,
                        momentum=args.momentum, nesterov=args.nesterov)
    model, sgd, amp = precision.initialize(model, sgd, args.opt_level, loss_scale, rank.device, args.amp_dtype)
    rank.print(amp.note)
    network.compile_forward(model, rank.device, args.compile)
    return Learner(model, recipe.SmoothedCrossEntropy(args.label_smoothing, args.smoothing_form), sgd, amp)


def make_progress(learner, args, rank):
    """Return the Progress of a training from its first epoch on, with upstream's keys in the checkpoint."""
    parts = {"state_dict": learner.model, "optimizer": learner.optimizer, "amp": learner.amp}
    progress = Progress(rank, "state_dict", parts, checkpoint_path(args), os.path.join(args.save_ckpt_path, "model_best.pth.tar"),
                        constants={"arch": args.arch, "seed": args.seed}, every_steps=args.checkpoint_steps,
                        keep=args.keep_checkpoints)
    progress.products += [numbered_copy("[0-9]*", args)] if args.checkpoint_freq else []
    progress.epoch = args.start_epoch
    return progress


def checkpoint_path(args):
    """Return where the checkpoint of a training goes."""
    return os.path.join(args.save_ckpt_path, args.checkpoint_nameprefix + ".pth.tar")


def evaluate(learner, args, rank):
    """Evaluate once, and record the result."""
    batches = make_batches("val", args, rank)
    recorder = records.start(os.path.join(args.workspace, args.raport_file), rank, args, learner.amp)
    recorder.evaluation(validate(batches, learner, args, rank), batches.count_bad(rank))


def fit(learner, progress, args, rank):
    """Train to the end of the last epoch, with an evaluation and a checkpoint after each."""
    train_batches, val_batches = make_batches("train", args, rank), make_batches("val", args, rank)
    clock = progress.start_clock(train_batches, args.epochs, profile_steps=args.profile_steps)
    recorder = records.start(os.path.join(args.workspace, args.raport_file), rank, args, learner.amp, progress)
    run = Run(rank, progress, clock, recorder)
    while progress.epoch < args.epochs:
        rate = recipe.learning_rate(progress.epoch, args.lr_schedule, args.lr, args.warmup, args.epochs)
        optimizer.set_rate(learner.optimizer, rate)
        train(train_batches, learner, run, args)
        progress.note_evaluation(validate(val_batches, learner, args, rank))
        recorder.epoch(progress, clock, rate)
        is_kept = args.checkpoint_freq and (progress.epoch + 1) % args.checkpoint_freq == 0
        progress.end_epoch(copy_to=[numbered_copy(progress.epoch + 1, args)] if is_kept else [])
    recorder.summary(progress, clock, train_batches.count_bad(rank) + val_batches.count_bad(rank))


def numbered_copy(epochs, args):
    """Return where the copy of the checkpoint after so many epochs goes (--checkpoint-freq)."""
    return os.path.join(args.save_ckpt_path, "%s-epoch%s.pth.tar" % (args.checkpoint_nameprefix, epochs))


def train(batches, learner, run, args):
    """Train what is left of the epoch that the run is in."""
    model, criterion, sgd, amp = learner
    rank, progress, clock, recorder = run
    tally = progress.tally
    model.train(not args.fine_tuning)  # a frozen body keeps its statistics too
    for step, images, target in progress.steps(batches, learner, clock, batches_in_update(args)):
        images, soft_target = mixup(images, target, args, run)
        with amp.autocast():
            output = model(images)
        loss = criterion(output.float(), soft_target)
        progress.update(amp, loss)

        tally.add(loss, output, target)
        clock.lap(len(target) * rank.world_size)
        if step % args.print_freq == 0:
            progress.read(clock)
            rank.print(line(rank, "Epoch: [%d]" % progress.epoch, step, len(batches), clock.step_time, clock.data_time, tally.loss,
                            tally.top1, tally.top5))
            recorder.step(progress, clock, sgd.param_groups[0]["lr"])
    rate = clock.images_per_second
    rank.print(rate and "%sbatch_size: %d Time: %.3f * FPS@all %.3f"
               % (tag(rank), batches.global_batch, batches.global_batch / rate, rate))


def batches_in_update(args):
    """Return how many batches of a rank make one update: --accumulate, or what --optimizer-batch-size makes of it."""
    return args.accumulate * max(1, args.optimizer_batch_size // (args.batch_per_rank * args.accumulate))


def validate(batches, learner, args, rank):
    """Return the meters.Result over the validation set."""
    def show(step, tally, clock):
        rank.print(line(rank, "Test: ", step, len(batches), clock.step_time, tally.loss, tally.top1, tally.top5))

    result = evaluation.evaluate(batches, learner, rank, show, args.print_freq)
    rank.print("%s%s * Acc@1 %.3f Acc@5 %.3f" % (tag(rank), "[AVG-ACC]" if rank.world_size > 1 else "", result.top1, result.top5))
    return result


def line(rank, what, step, steps, *shown):
    """Return a progress line in the form of pytorch/examples."""
    return "\t".join(["%s%s[%*d/%d]" % (tag(rank), what, len(str(steps)), step, steps)] + [str(meter) for meter in shown])


def tag(rank):
    """Return how a line begins: with the device where there are several ranks, as the eight-card Ascend port's do."""
    return rank.tag if rank.world_size > 1 else ""


def mixup(images, target, args, run):
    """Return (images, target), mixed when --mixup asks for it; a function of seed, rank, epoch and step."""
    if args.mixup <= 0:
        return images, target
    rng = data.sample_rng(args.seed + 1 + run.rank.rank, run.progress.epoch, run.progress.step)
    return recipe.mixed_up(images, target, args.num_classes, args.mixup, rng)


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
    if not inspect.isfunction(build) or not {"pretrained", "weights"}.intersection(inspect.signature(build).parameters):
        raise cli.UserError("--arch %s: no such network here or in torchvision.models" % name)
    return build(**options)


def start_from_weights(model, args):
    """Load --pth-path or --pretrained into `model`, and return checkpoint.load_weights' line. With --new-classifier, and in
    fine-tuning where the file's has another size, the classifier keeps its initial weights."""
    if args.pth_path:
        content, source = checkpoint.load(args.pth_path), args.pth_path
    elif args.pretrained:
        content, source = published_weights(args.arch), "the published weights of " + args.arch
    else:
        return ""
    new_classifier = args.new_classifier
    if args.fine_tuning:
        found = checkpoint.weights(content, source, args.use_ema).get("fc.weight", model.fc.weight)
        new_classifier |= found.shape != model.fc.weight.shape
    return checkpoint.load_weights(model, content, source, args.use_ema, new_classifier)


def published_weights(arch):
    try:
        return torchvision_network(arch, pretrained=True).state_dict()
    except (OSError, ValueError, KeyError) as error:
        raise cli.UserError("cannot get the published weights of %s (%s)" % (arch, error))


def make_batches(split, args, rank):
    """Return the batches of a split on the device: train by random resized crop and flip, val by shorter side to 8/7 of the crop
    (256 for 224) and centre crop."""
    is_train, side = split == "train", args.image_size
    if args.dummy:
        return synthetic.SyntheticBatches(synthetic.IMAGENET[not is_train], args.batch_per_rank, side, args.num_classes, rank,
                                          args.max_steps, args.accumulate)
    transform = transforms.train_transform(side) if is_train else transforms.eval_transform(side, side * 8 // 7)
    dataset = data.ImageFolder(os.path.join(args.data, split), transform, args.num_classes, args.seed,
                               is_train and args.skip_bad_images, args.decoder)
    if is_train:
        batches = data.TrainBatches(len(dataset), args.batch_per_rank, rank, args.seed, args.max_steps, accumulate=args.accumulate,
                                    order=dataset.order(args.shuffle_shards))
    else:
        batches = data.EvalBatches(len(dataset), args.batch_per_rank, rank, args.max_steps)
    return data.device_batches(dataset, batches, args.workers_per_rank, rank, skip_bad_images=args.skip_bad_images)


if __name__ == "__main__":
    cli.run(main)

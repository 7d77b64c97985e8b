"""Train or evaluate MobileNetV2 on ImageNet by the recipe of torchvision's references: one device, several, or several machines."""
import copy
import os
import sys

sys.path[:0] = [os.path.join(os.path.dirname(os.path.abspath(__file__)), *up) for up in ((), (os.pardir,))]
from common import (checkpoint, cli, data, distributed, evaluation, flags, network, optimizer, precision,  # noqa: E402
                    progress as training, ranges, records, resume, synthetic, transforms)
from mobilenetv2 import MobileNetV2  # noqa: E402
from torch import nn  # noqa: E402

RATE, DECAY, MOMENTUM, WEIGHT_DECAY = 0.045, 0.98, 0.9, 4e-5  # of 256 images in an update; of the rate, in each epoch
FILES = ("checkpoint.pth.tar", "model_best.pth.tar", "metrics.jsonl")


def parser():
    p = cli.Parser(description=__doc__)
    add = p.add_argument
    add("--data-path", default=".", metavar="DIR", help="dataset root with train/ and val/")
    add("--num-classes", type=cli.positive_int, default=1000, help="outputs of the network")
    add("--image-size", type=cli.positive_int, default=224, help="training crop and evaluation crop")
    add("--epochs", type=cli.natural_int, default=300, help="epochs in all")
    add("-b", "--batch-size", type=cli.positive_int, default=256, help="images of an update over all ranks of all machines")
    add("--lr", type=ranges.natural, help="learning rate of the first epoch; without it %g x batch size / 256" % RATE)
    add("--model-ema", action="store_true", help="also average the weights over the updates, and evaluate the average")
    add("--model-ema-steps", type=cli.positive_int, default=32, help="updates from one averaging to the next")
    add("--model-ema-decay", type=ranges.share, default=0.99998, help="of the average; the larger the batch, the less counts")
    add("--opt-level", choices=precision.OPT_LEVELS, default="O0", help="mixed precision; O0: fp32")
    add("--weights", metavar="FILE", help="weights to start from, or to evaluate")
    add("--new-classifier", action="store_true", help="of these weights, take all but the classifier")
    add("--test-only", action="store_true", help="evaluate and stop")
    add("--device-list", type=cli.int_list, default="0", help="devices of this machine, one rank each")
    add("-j", "--workers", type=ranges.workers, default=16, help="loader processes of this machine, divided among its ranks")
    add("--output-dir", default=".", metavar="DIR", help="where checkpoints and metrics.jsonl go")
    flags.add_resume_flag(p, "<output-dir>/checkpoint.pth.tar")
    for more in "run_flags", "node_flags", "training_flags", "step_flags":
        getattr(flags, "add_" + more)(p)
    return p


def main():
    args = parser().parse_args()
    if (args.test_only or args.new_classifier) and not args.weights:
        raise cli.UserError("--test-only and --new-classifier are about weights: give them with --weights")
    args.lr = RATE * args.batch_size / 256 if args.lr is None else args.lr
    layout = flags.node_layout(args, args.device_list, usual_port=29503)
    flags.divide(args, layout)
    if not args.dummy:
        data.check_layout(args.data_path, ("val",) if args.test_only else ("train", "val"))
    distributed.launch(train_or_evaluate, args, layout)


def train_or_evaluate(args, rank):
    """What each rank does; the order is that of every model (ResNet50/main.py)."""
    path, best, args.metrics = (os.path.join(args.output_dir, name) for name in FILES)
    resumed, args.resume = resume.choose(args.resume, None if args.test_only else path, rank)
    args.seed = training.choose_seed(args.seed, resumed, rank)
    learner, average = make_learner(args, rank)
    parts = {"model": learner.model, "optimizer": learner.optimizer, "amp": learner.amp, "model_ema": average}
    parts = {key: part for key, part in parts.items() if part}
    progress = training.Progress(rank, "model", parts, path, best, {"seed": args.seed}, args.checkpoint_steps,
                                 keep=args.keep_checkpoints)
    if resumed and "model_ema" in progress.resume(resumed, args.resume):
        average.load_state_dict(learner.model.state_dict())
    learner = learner._replace(model=distributed.data_parallel(learner.model, rank))
    if not args.test_only:
        return fit(learner, average, progress, args, rank)
    batches = make_batches("val", args, rank)
    recorder = records.start(args.metrics, rank, args, learner.amp)
    result = evaluation.evaluate(batches, learner, rank)
    rank.print("Test: Acc@1 %.3f Acc@5 %.3f" % (result.top1, result.top5))
    recorder.evaluation(result, batches.count_bad(rank))


def make_learner(args, rank):
    """Return the Learner on the rank's device, with its first weights, and the network of the average, or None."""
    model = MobileNetV2(args.num_classes)
    if args.weights:
        rank.print(checkpoint.load_weights(model, checkpoint.load(args.weights), args.weights, args.use_ema, args.new_classifier))
    average = network.place(copy.deepcopy(model), rank.device) if args.model_ema else None  # in fp32, whatever the level
    network.place(model, rank.device, not args.test_only and args.batch_per_rank, args.image_size)
    sgd = optimizer.SGD(model.parameters(), args.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    model, sgd, amp = precision.initialize(model, sgd, args.opt_level, 128.0, rank.device, args.amp_dtype)
    rank.print(amp.note)
    network.compile_forward(model, rank.device, args.compile)
    return training.Learner(model, nn.CrossEntropyLoss(), sgd, amp), average


def fit(learner, average, progress, args, rank):
    """Train to the end of the last epoch, with an evaluation and a checkpoint after each; the better network counts."""
    model, criterion, sgd, amp = learner
    train_batches, val_batches = make_batches("train", args, rank), make_batches("val", args, rank)
    clock = progress.start_clock(train_batches, args.epochs, profile_steps=args.profile_steps)
    recorder = records.start(args.metrics, rank, args, amp, progress)
    share = min(1.0, (1 - args.model_ema_decay) * args.batch_size * args.model_ema_steps / max(1, args.epochs))
    while progress.epoch < args.epochs:
        rate = args.lr * DECAY ** progress.epoch
        optimizer.set_rate(sgd, rate)
        model.train()
        for step, images, target in progress.steps(train_batches, learner, clock, args.accumulate):
            with amp.autocast():
                output = model(images)
            loss = criterion(output.float(), target)
            progress.update(amp, loss)
            if average and progress.update_is_complete and step // args.accumulate % args.model_ema_steps == 0:
                is_first = progress.epoch == 0 and step < args.accumulate
                network.update_average(average, distributed.unwrapped(model), 1.0 if is_first else share)
            progress.tally.add(loss, output, target)
            clock.lap(len(target) * rank.world_size)
            if step % args.print_freq == 0:
                progress.read(clock)
                shown = (progress.epoch, step, len(train_batches), clock.step_time, progress.tally.loss, progress.tally.top1)
                rank.print("Epoch: [%d][%d/%d] %s %s %s" % shown)
                recorder.step(progress, clock, rate)
        results = [evaluation.evaluate(val_batches, learner._replace(model=each), rank) for each in (model, average) if each]
        progress.constants.update(zip(("test_err", "ema_err"), (100 - result.top1 for result in results)))  # for --use-ema=auto
        progress.note_evaluation(max(results, key=lambda result: result.top1))
        rank.print("Test: Acc@1 %(val.top1).3f Acc@5 %(val.top5).3f" % progress.results)
        recorder.epoch(progress, clock, rate)
        progress.end_epoch()
    recorder.summary(progress, clock, train_batches.count_bad(rank) + val_batches.count_bad(rank))


def make_batches(split, args, rank):
    """Return the batches of a split on the device: train by random resized crop and flip, val by shorter side to 8/7 of the crop
    (256 for 224) and centre crop."""
    is_train, side = split == "train", args.image_size
    if args.dummy:
        return synthetic.SyntheticBatches(synthetic.IMAGENET[not is_train], args.batch_per_rank, side, args.num_classes, rank,
                                          args.max_steps, args.accumulate)
    transform = transforms.train_transform(side) if is_train else transforms.eval_transform(side, side * 8 // 7)
    dataset = data.ImageFolder(os.path.join(args.data_path, split), transform, args.num_classes, args.seed,
                               is_train and args.skip_bad_images, args.decoder)
    if is_train:
        batches = data.TrainBatches(len(dataset), args.batch_per_rank, rank, args.seed, args.max_steps, accumulate=args.accumulate,
                                    order=dataset.order(args.shuffle_shards))
    else:
        batches = data.EvalBatches(len(dataset), args.batch_per_rank, rank, args.max_steps)
    return data.device_batches(dataset, batches, args.workers_per_rank, rank, skip_bad_images=args.skip_bad_images)


if __name__ == "__main__":
    cli.run(main)

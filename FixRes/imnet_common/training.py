"""The training of a phase, from its network to the summary of the run. What makes a phase this phase is a Phase."""
import statistics
from collections import namedtuple

import torch.nn.functional as functional

from common import distributed, evaluation, network, precision, records, resume
from common.progress import Learner, Progress, Run, choose_seed
from imnet_common import batches, flags, networks, transforms
from imnet_common.schedule import Schedule, base_learning_rate, sgd

# architecture: a name of networks.RECIPES. network(args, rank): the network with its start weights, frozen where it is to be.
# sampler(images, ranks, rank, seed): the order of the training images. transform: their pipeline. set_mode(network): what is in
# train mode in an epoch. scaled: whether the rate grows with the global batch. evaluate_first: whether to say the accuracy before
# the first epoch.
Phase = namedtuple("Phase", "architecture network sampler transform set_mode scaled evaluate_first")


def train(args, rank, phase):
    """Train a phase to the end of `args.epochs`: what each rank does. The order of the set-up is that of ResNet50/main.py."""
    resumed, args.resume = resume.choose(args.resume, args.checkpoint_file, rank)
    args.batch_per_rank = resume.batch_of_rank(args.batch_per_rank, args.accumulate, resumed, rank)
    args.batch = args.batch_per_rank * args.accumulate
    args.seed = choose_seed(args.seed, resumed, rank)
    args.base_learning_rate = base_learning_rate(args.learning_rate, args.batch, rank.world_size, phase.scaled)
    learner = make_learner(args, rank, phase)
    schedule = Schedule(learner.optimizer, args.base_learning_rate)
    progress = make_progress(learner, schedule, phase.architecture, args, rank)
    if args.resume:
        progress.resume(resumed, args.resume)
        progress.constants["accuracy"] = resumed.get("accuracy")
    learner = learner._replace(model=distributed.data_parallel(learner.model, rank))
    recipe = networks.RECIPES[phase.architecture]
    train_batches = batches.training(args, rank, phase.sampler, phase.transform, recipe)
    val_batches = batches.validation(args, rank, transforms.eval_pipeline(args.input_size, args.resize == "short-side"), recipe)
    clock = progress.start_clock(train_batches, args.epochs, profile_steps=args.profile_steps)
    run = Run(rank, progress, clock, records.start(args.metrics_file, rank, args, learner.amp, progress))
    rank.print("%s: input size %d, global batch %d, learning rate %g" % (
        phase.architecture, args.input_size, train_batches.global_batch, args.base_learning_rate))

    if phase.evaluate_first and "val.top1_before" not in progress.results:
        before = evaluation.evaluate(val_batches, learner, rank)
        progress.results["val.top1_before"] = before.top1
        rank.print("before the first epoch: top-1 %.1f %%, loss %.3f" % (before.top1, before.loss))
    while progress.epoch < args.epochs:
        rate = schedule.start_epoch(progress.epoch)
        phase.set_mode(distributed.unwrapped(learner.model))
        train_epoch(train_batches, learner, run, args)
        is_evaluated = (progress.epoch + 1) % args.eval_freq == 0 or progress.epoch + 1 == args.epochs
        if is_evaluated:
            evaluate_epoch(val_batches, learner, run)
        run.recorder.epoch(progress, clock, rate, is_evaluated)
        progress.end_epoch([flags.beside_checkpoint(args, "checkpoint_%d" % progress.epoch)] if is_evaluated else [])
    run.recorder.summary(progress, clock, train_batches.count_bad(rank) + val_batches.count_bad(rank))
    top1 = progress.results.get("val.top1")
    rank.print("Validation accuracy: %s" % ("not measured" if top1 is None else "%.5f" % (top1 / 100)))


def make_learner(args, rank, phase):
    """Return the Learner that starts the phase."""
    model = network.place(phase.network(args, rank), rank.device, args.batch_per_rank, args.input_size, phase.set_mode)
    optimizer = sgd(model, args.base_learning_rate)
    model, optimizer, amp = precision.initialize(model, optimizer, args.opt_level, args.loss_scale, rank.device, args.amp_dtype)
    rank.print(amp.note)
    network.compile_forward(model, rank.device, args.compile)
    return Learner(model, functional.cross_entropy, optimizer, amp)


def make_progress(learner, schedule, architecture, args, rank):
    """Return the Progress of a training from epoch 0 on, with upstream's keys in the checkpoint."""
    parts = {"model": learner.model, "optimizer": learner.optimizer, "lr_scheduler": schedule, "amp": learner.amp}
    constants = {"architecture": architecture, "accuracy": None, "seed": args.seed}
    progress = Progress(rank, "model", parts, args.checkpoint_file, flags.beside_checkpoint(args, "model_best"), constants,
                        args.checkpoint_steps, keep=args.keep_checkpoints)
    progress.products.append(flags.beside_checkpoint(args, "checkpoint_[0-9]*"))
    return progress


def train_epoch(train_batches, learner, run, args):
    """Train what is left of the epoch that the run is in."""
    model, criterion, optimizer, amp = learner
    rank, progress, clock, recorder = run
    for step, images, target in progress.steps(train_batches, learner, clock, args.accumulate):
        with amp.autocast():
            output = model(images).float()
        loss = criterion(output, target)
        progress.update(amp, loss)

        progress.tally.add(loss, output, target)
        clock.lap(len(target) * rank.world_size)
        if step % args.print_freq == args.print_freq - 1:
            progress.read(clock)
            mean = statistics.mean(batch.loss for batch in progress.tally.recent)  # over batches, as upstream's
            rank.print("[%02d, %05d] loss: %.3f time: %.3f" % (progress.epoch, step, mean, clock.step_time.val))
            recorder.step(progress, clock, optimizer.param_groups[0]["lr"])
    rate = clock.images_per_second
    rank.print("\nEpoch %d: %s fps\n" % (progress.epoch, "not measured" if rate is None else "%.3f" % rate))


def evaluate_epoch(val_batches, learner, run):
    """Evaluate, and note the result for the records and for the checkpoint."""
    rank, progress = run.rank, run.progress
    result = evaluation.evaluate(val_batches, learner, rank)
    progress.note_evaluation(result)
    progress.constants["accuracy"] = result.top1 / 100  # upstream's entry: a fraction
    rank.print("epoch %d: top-1 %.1f %%, loss %.3f" % (progress.epoch, result.top1, result.loss))

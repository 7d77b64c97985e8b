"""The training of a phase, from a network to the summary of the run. What makes a phase this phase is a Phase."""
import time
from collections import namedtuple

import torch
import torch.nn.functional as functional

from common import checkpoint, distributed, meters, precision, records
from common.progress import Progress, seed_step
from imnet_common import batches, flags, networks, transforms
from imnet_common.schedule import Schedule, base_learning_rate, sgd
from imnet_evaluate.evaluation import evaluate

# architecture: a name of networks.RECIPES. sampler(images, ranks, rank): the order of the training images. transform: their
# pipeline. set_mode(network): what is in train mode in an epoch. scaled: whether the rate grows with the global batch.
# evaluate_first: whether to say the accuracy before the first epoch.
Phase = namedtuple("Phase", "architecture sampler transform set_mode scaled evaluate_first")


def train(args, rank, model, phase):
    """Train `model` (on the CPU, with its start weights, and frozen where it is to be) to the end of `args.epochs`."""
    model.to(rank.device)
    base_rate = base_learning_rate(args.learning_rate, args.batch, rank.world_size, phase.scaled)
    optimizer = sgd(model, base_rate)
    schedule = Schedule(optimizer, base_rate)
    model, optimizer, amp = precision.initialize(model, optimizer, args.opt_level, args.loss_scale, rank.device)
    constants = {"architecture": phase.architecture, "accuracy": None}
    progress = Progress(rank, "model", {"model": model, "optimizer": optimizer, "lr_scheduler": schedule, "amp": amp},
                        args.checkpoint_file, flags.beside_checkpoint(args, "model_best"), constants, args.checkpoint_steps)
    if args.resume:
        content = checkpoint.load(args.resume)
        absent = progress.resume(content, args.resume)
        constants["accuracy"] = content.get("accuracy")
        say(rank, absent and "%s holds no %s: starting anew with that" % (args.resume, ", ".join(absent)))
    say(rank, amp.note)
    model = distributed.data_parallel(model, rank)
    recipe = networks.RECIPES[phase.architecture]
    eval_transform = transforms.eval_pipeline(args.input_size, args.resize == "short-side")
    train_batches = batches.training(args, rank, phase.sampler, phase.transform, recipe.mean, recipe.std)
    val_batches = batches.validation(args, rank, eval_transform, recipe.mean, recipe.std)
    recorder = records.Recorder(args.metrics_file, rank, append=bool(args.resume))
    recorder.parameters(dict(vars(args), world_size=rank.world_size, device_type=rank.device.type, base_learning_rate=base_rate,
                             opt_level_run=amp.opt_level, torch=torch.__version__))
    say(rank, "%s: input size %d, global batch %d, learning rate %g" % (
        phase.architecture, args.input_size, args.batch * rank.world_size, base_rate))

    if phase.evaluate_first and "val.top1_before" not in progress.results:
        before = evaluate(val_batches, model, amp, rank)
        progress.results["val.top1_before"] = before.top1
        say(rank, "before the first epoch: top-1 %.1f %%, loss %.3f" % (before.top1, before.loss))
    throughput = meters.Throughput(rank.device, meters.warmup_steps(len(train_batches) * (args.epochs - progress.epoch)))
    while progress.epoch < args.epochs:
        epoch = progress.epoch
        rate = schedule.start_epoch(epoch)
        phase.set_mode(distributed.unwrapped(model))
        train_epoch(train_batches, model, amp, progress, throughput, args, rank, recorder)
        say(rank, "\nEpoch %d: %s fps\n" % (epoch, _rounded(throughput.images_per_second)))
        result = end_epoch(val_batches, model, amp, progress, constants, args, rank)
        recorder.log((epoch,), {"train.loss": progress.results.get("train.loss"), "val.top1": result and result.top1,
                                "val.loss": result and result.loss, "train.total_ips": throughput.images_per_second, "lr": rate})
    bad_images = train_batches.count_bad(rank) + val_batches.count_bad(rank)
    recorder.log((), dict(progress.results, **throughput.summary(), bad_images=bad_images))
    top1 = progress.results.get("val.top1")
    say(rank, "Validation accuracy: %s" % ("not measured" if top1 is None else "%.5f" % (top1 / 100)))


def train_epoch(train_batches, model, amp, progress, throughput, args, rank, recorder):
    """Train what is left of the epoch that `progress` is in."""
    epoch = progress.epoch
    losses = meters.AverageMeter("loss")
    loss = None
    throughput.start()
    end = time.time()
    for images, target in train_batches.of_epoch(epoch, first_step=progress.step):
        step = progress.step
        seed_step(args.seed, rank, epoch, step)  # PNASNet's dropout
        with amp.autocast():
            output = model(images)
        loss = functional.cross_entropy(output.float(), target)
        amp.backward(loss)
        amp.step()

        losses.update(loss)
        throughput.step(len(target) * rank.world_size)
        if step % args.print_freq == args.print_freq - 1:
            mean, seconds = losses.avg, time.time() - end
            say(rank, "[%02d, %05d] loss: %.3f time: %.3f" % (epoch, step, mean, seconds))
            recorder.log((epoch, step), {"train.loss": mean}, epoch * len(train_batches) + step)
            losses = meters.AverageMeter("loss")
        end = time.time()
        progress.end_step()
    throughput.stop()
    if loss is not None:
        progress.results["train.loss"] = loss.item()


def end_epoch(val_batches, model, amp, progress, constants, args, rank):
    """Evaluate when it is time to, and save; return the evaluation's Result or None."""
    epoch = progress.epoch
    if (epoch + 1) % args.eval_freq != 0 and epoch + 1 != args.epochs:
        progress.end_epoch(None)
        return None
    result = evaluate(val_batches, model, amp, rank)
    say(rank, "epoch %d: top-1 %.1f %%, loss %.3f" % (epoch, result.top1, result.loss))
    progress.results["val.loss"] = result.loss
    constants["accuracy"] = result.top1 / 100  # upstream's entry: a fraction
    progress.end_epoch(result.top1, copy_to=[flags.beside_checkpoint(args, "checkpoint_%d" % epoch)])
    return result


def say(rank, text):
    """Print a line of rank 0."""
    if rank.is_main and text:
        print(text, flush=True)


def _rounded(rate):
    return "not measured" if rate is None else "%.3f" % rate

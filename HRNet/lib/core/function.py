"""One epoch of training, and one pass over the validation set."""
import time

import torch

from common import cli, distributed, meters


def say(rank, *lines):
    """Print the lines that are not empty, on rank 0."""
    for line in lines if rank.is_main else ():
        if line:
            print(line, flush=True)


def train(batches, model, criterion, optimizer, amp, progress, throughput, config, rank, recorder):
    """Train what is left of the epoch that `progress` is in, and put the epoch's means into its results."""
    losses, top1 = meters.AverageMeter("Loss"), meters.AverageMeter("Accuracy@1")
    epoch, steps = progress.epoch, len(batches)
    line = TrainingLine(rank, recorder, epoch, steps)
    model.train()
    throughput.start()
    for images, target in batches.of_epoch(epoch, first_step=progress.step):
        line.batch_came()
        with amp.autocast():
            output = model(images)
        loss = criterion(output.float(), target)
        amp.backward(loss)
        amp.step()

        losses.update(loss, len(target))
        correct1, correct5 = meters.accuracy(output, target, topk=(1, 5))
        top1.update(correct1, len(target))
        throughput.step(len(target) * rank.world_size)
        line.step_done(len(target))
        if progress.step % config.PRINT_FREQ == 0:
            line.show(progress.step, loss, correct1, correct5, optimizer.param_groups[0]["lr"])
        progress.end_step()
    throughput.stop()
    if losses.count:
        progress.results.update({"train.loss": float(losses.val), "train.loss_mean": losses.avg, "train.top1": top1.avg})
        show_epoch(rank, throughput, config.TRAIN.BATCH_SIZE_PER_GPU * rank.world_size, losses, top1)


class TrainingLine(object):
    """The progress lines of an epoch, in the Ascend port's form, and their records.

    Loss and accuracies are those of the batch just trained on this rank. Time and Data are seconds a step, averaged since the
    last line: a device runs behind the host, so only the time between two points at which the host has waited for it counts.
    """

    def __init__(self, rank, recorder, epoch, steps):
        self._rank, self._recorder, self._epoch, self._steps = rank, recorder, epoch, steps
        self._restart()

    def _restart(self):
        self._since = self._step_began = time.time()
        self._waited, self._count, self._images = 0.0, 0, 0

    def batch_came(self):
        """Note that the loader has given a batch."""
        self._waited += time.time() - self._step_began

    def step_done(self, images):
        """Note that the host is through with a step over `images` images of this rank."""
        self._count += 1
        self._images += images * self._rank.world_size
        self._step_began = time.time()

    def show(self, step, loss, top1, top5, lr):
        """Print the line of a step and record it."""
        loss, top1, top5 = float(loss.detach()), float(top1), float(top5)  # waits for the device
        seconds = max(time.time() - self._since, 1e-9)
        say(self._rank, "Epoch: [%d][%d/%d]\t\tTime %.3fs\t\tFPS %.1f\t\tData %.3fs\t\tLoss %.5f\t\tAccuracy@1 %.3f\t\t"
                        "Accuracy@5 %.3f\t\t" % (self._epoch, step, self._steps, seconds / self._count, self._images / seconds,
                                               self._waited / self._count, loss, top1, top5))
        self._recorder.log((self._epoch, step), {"train.loss": loss, "train.top1": top1, "lr": lr,
                                                 "train.data_time": self._waited / self._count},
                           self._epoch * self._steps + step)
        self._restart()


def show_epoch(rank, throughput, global_batch, losses, top1):
    """Print the averages of an epoch (loss and accuracy of this rank; speed of all ranks over the run's steady steps)."""
    rate = throughput.images_per_second
    speed = "Time_Avg not measured\t\tFps_Avg not measured"
    if rate:
        speed = "Time_Avg %.3fs\t\tFps_Avg %.1f" % (global_batch / rate, rate)
    say(rank, "\nData Average :\t\t%s\t\tLoss %.5f\t\tAccuracy@1_Avg %.3f\t\t" % (speed, losses.avg, top1.avg))


def validate(batches, model, criterion, amp, rank):
    """Return (top-1 and top-5 in per cent, loss) over the validation set.

    In order, each image once; counts are summed over the ranks, so smaller last batches weigh what they should.
    """
    losses = meters.AverageMeter("Loss")
    top1, top5 = meters.AverageMeter("Accuracy@1"), meters.AverageMeter("Accuracy@5")
    distributed.broadcast_buffers(model, rank)
    network = distributed.unwrapped(model)  # a rank may get a batch fewer than the others: no collective in here
    network.eval()
    began = time.time()
    with torch.no_grad():
        for images, target in batches:
            with amp.autocast():
                output = network(images)
            losses.update(criterion(output.float(), target), len(target))
            for meter, value in zip((top1, top5), meters.accuracy(output, target, topk=(1, 5))):
                meter.update(value, len(target))
    images, loss, correct1, correct5 = distributed.sum_over_ranks(
        [losses.count, float(losses.sum), float(top1.sum), float(top5.sum)], rank)
    if images == 0:
        raise cli.UserError("no validation image could be read")
    loss, correct1, correct5 = loss / images, correct1 / images, correct5 / images
    say(rank, "Test: Time %.3f\tLoss %.4f\tError@1 %.3f\tError@5 %.3f\tAccuracy@1 %.3f\tAccuracy@5 %.3f\t" % (
        (time.time() - began) / len(batches), loss, 100 - correct1, 100 - correct5, correct1, correct5))
    return correct1, correct5, loss

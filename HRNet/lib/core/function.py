"""One epoch of training, and one pass over the validation set."""
import time

from common import evaluation


def train(batches, learner, run, args):
    """Train what is left of the epoch that the run is in."""
    model, criterion, optimizer, amp = learner
    rank, progress, clock, recorder = run
    config, tally = args.config, progress.tally
    model.train()
    for step, images, target in progress.steps(batches, learner, clock, args.accumulate):
        with amp.autocast():
            output = model(images)
        loss = criterion(output.float(), target)
        progress.update(amp, loss)

        tally.add(loss, output, target)
        clock.lap(len(target) * rank.world_size)
        if step % config.PRINT_FREQ == 0:
            progress.read(clock)
            seconds = clock.step_time.val
            rank.print("Epoch: [%d][%d/%d]\t\tTime %.3fs\t\tFPS %.1f\t\tData %.3fs\t\tLoss %.5f\t\t"
                       "Accuracy@1 %.3f\t\tAccuracy@5 %.3f\t\t"
                       % (progress.epoch, step, len(batches), seconds, len(target) * rank.world_size / seconds,
                          clock.data_time.val, tally.loss.val, tally.top1.val, tally.top5.val))
            recorder.step(progress, clock, optimizer.param_groups[0]["lr"])
    if tally.loss.count:
        show_epoch(rank, tally, clock, config.TRAIN.BATCH_SIZE_PER_GPU * rank.world_size)


def show_epoch(rank, tally, clock, step_images):
    """Print the averages of an epoch (loss and accuracy of this rank; speed of all ranks over the run's steady steps)."""
    rate = clock.images_per_second
    speed = "Time_Avg not measured\t\tFps_Avg not measured"
    if rate:
        speed = "Time_Avg %.3fs\t\tFps_Avg %.1f" % (step_images / rate, rate)
    rank.print("\nData Average :\t\t%s\t\tLoss %.5f\t\tAccuracy@1_Avg %.3f\t\t" % (speed, tally.loss.avg, tally.top1.avg))


def validate(batches, learner, rank):
    """Return the meters.Result over the validation set."""
    began = time.time()
    result = evaluation.evaluate(batches, learner, rank)
    seconds = (time.time() - began) / max(1, len(batches))  # a rank may have got no batch
    rank.print("Test: Time %.3f\tLoss %.4f\tError@1 %.3f\tError@5 %.3f\tAccuracy@1 %.3f\tAccuracy@5 %.3f\t"
               % (seconds, result.loss, 100 - result.top1, 100 - result.top5, result.top1, result.top5))
    return result

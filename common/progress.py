"""How far a training is, and how that survives an interruption.

`kill -9` at any moment and the same command with --resume give bit for bit the weights and the results of an undisturbed run (CPU,
fp32; GPU and NPU with --deterministic): batches and augmentation are functions of (seed, epoch, step), the other draws in a step are
functions of (seed, rank, epoch, step), and everything else that a step depends on is in the checkpoint.
"""
import os
import random
from collections import namedtuple

from common import bar, checkpoint, cli, device as devices, distributed, entries, meters, watchdog
from common.preemption import Preemption
from common.profiling import StepProfiler

# What takes training steps: the network (in DistributedDataParallel where there are several ranks), its loss, the optimizer, and
# precision's amp.
Learner = namedtuple("Learner", "model criterion optimizer amp")

# What a training is in: this process's distributed.Rank, its Progress, its meters.Clock, its records.Recorder.
Run = namedtuple("Run", "rank progress clock recorder")

# What the checkpoint says of the order of the images; another value would leave images out or show them twice.
_ORDER = {"global_batch": "images in an update", "train_images": "training images", "run_length": "pictures side by side (--shuffle_shards)"}


class Progress(object):
    """The epoch and step that come next, the results so far, and the checkpoint that holds them.

    `parts`: what has a state_dict, by its key in the checkpoint; the model is the part named `model_key`. `constants`: plain
    values that go into the checkpoint as they are, the seed among them. `tally`: loss and accuracies of the epoch, of this rank.
    `results`: the latest of each number that the summary of a run reports. The checkpoint at `path` is written at the end of each
    epoch, after every `every_steps` steps (0: not), and when SIGTERM comes; the last `keep` of them stay. `best_path` is a copy from the
    epoch with the best top-1 (None: no copy). `products`: these files, and what else the program writes. `best_key` holds the best top-1
    in the checkpoint, in per cent, or with `best_is_error` 100 minus it.
    """

    def __init__(self, rank, model_key, parts, path, best_path, constants=None, every_steps=0, best_key="best_acc1",
                 best_is_error=False, keep=1):
        self.epoch = self.step = self.steps_in_epoch = 0
        self.best, self.resumed, self.results = None, False, {}
        self.constants = constants or {}
        self.tally = meters.Tally("epoch 0")
        self._rank, self._model_key, self._parts = rank, model_key, parts
        self._path, self._best_path, self._every_steps = path, best_path, every_steps
        self._best_key, self._best_is_error = best_key, best_is_error
        self._is_best = False
        self._keep, self._newest_is_damaged, self._last_good = keep, False, "none yet"
        self.products = [path] + [best_path] * bool(best_path) + checkpoint.kept_paths(path, keep)
        self._profiler = StepProfiler(None, "", rank)
        self._preemption = Preemption(rank, self.save)

    # --- the steps of an epoch ---

    def start_clock(self, batches, epochs, usual_warmup=10, profile_steps=None):
        """Return the meters.Clock of what is left of a run of `epochs` epochs of the data.DeviceBatches `batches`. `profile_steps`: as
        profiling.StepProfiler's. From here on SIGTERM is answered by saving. Raises UserError where a resumed run had other batches."""
        self._go_on_with(batches, epochs)
        self._profiler = StepProfiler(profile_steps, os.path.join(os.path.dirname(os.path.abspath(self._path)), "profile"), self._rank)
        self._preemption.listen()
        bar.begin(self._rank, self, len(batches), epochs)
        return meters.Clock(self._rank.device, len(batches) * (epochs - self.epoch) - self.step, usual_warmup)

    def _go_on_with(self, batches, epochs):
        """Note what the checkpoint says of the order of the images, or see that it is what a resumed run had; find the step."""
        for key, value in zip(_ORDER, (batches.global_batch, batches.images, getattr(batches, "run_length", 1))):
            if self.constants.setdefault(key, value) != value:
                shares = key == "global_batch" and self.constants[key] % self._rank.world_size
                raise cli.UserError("this run has %d %s, the run to resume has %d" % (value, _ORDER[key], self.constants[key]) + (
                    ", which %d ranks cannot share evenly" % self._rank.world_size if shares else ""))
        if self.epoch > epochs:
            raise cli.UserError("this run has %d epochs, the run to resume has trained %d" % (epochs, self.epoch))
        # Where an update is now divided into more or fewer steps, the same images have been seen after another number of them.
        images = self.step * self.constants.get("step_images", batches.step_images)
        if images % batches.step_images or images > len(batches) * batches.step_images:
            raise cli.UserError("the run to resume has taken %d steps of its epoch, %d images; this run has %d steps of %d images"
                                % (self.step, images, len(batches), batches.step_images))
        self.step, self.steps_in_epoch = images // batches.step_images, len(batches)  # as the records say it
        self.constants["step_images"] = batches.step_images
        names = getattr(batches, "classes", [])  # in the order of the outputs
        if self.constants.setdefault("classes", names) != names:
            raise cli.UserError("this run has the classes %.99s, the run to resume has %.99s" % (names, self.constants["classes"]))

    def steps(self, batches, learner, clock, accumulate=1):
        """Iterate over what is left of the epoch: gives (step, images, target), and after the body of the loop, which has to call
        `clock.lap`, counts the step and saves when it is time to.

        The gradients of `accumulate` batches make one update; the last one of an epoch takes those that are left. In between
        nothing is saved: no checkpoint holds their gradients; nor do the ranks exchange them. Raises Terminated after saving when SIGTERM has come.
        """
        self._tell_errors()
        self.tally.name, self.tally.batches = "epoch %d" % self.epoch, self.step
        self._clock = clock
        for images, target in clock.over(batches.of_epoch(self.epoch, first_step=self.step)):
            first = self.step - self.step % accumulate  # of the batches of its update
            self.batches_in_update = min(accumulate, len(batches) - first)
            self.update_is_complete = self.step == first + self.batches_in_update - 1
            # What DistributedDataParallel.no_sync does. Under O2 each batch's gradients go to the master weights at once.
            learner.model.require_backward_grad_sync = self.update_is_complete or learner.amp.opt_level == "O2"
            self._seed_step()
            self._profiler.before(self.step, clock)
            bar.hide()
            yield self.step, images, target
            bar.show(self, clock)
            self._profiler.after(self.step, clock)
            self._end_step(clock)
        self._profiler.close(clock)
        self._note_training()
        self._check_weights()
        clock.stop()
        self._seed_step()  # for what is drawn between the epochs

    def _seed_step(self):
        """Make what a step draws (dropout and the like), and what is drawn after the last one, a function of (seed, rank, epoch, step),
        so that it survives a resume without saving generators."""
        seed = (self.constants["seed"] * 1000003 + self._rank.rank) * 1000003 ** 2 + self.epoch * 1000003 + self.step
        devices.seed(seed & 0x7FFFFFFFFFFFFFFF, self._rank.device)

    def update(self, amp, loss):
        """Add the gradients of `loss`, the mean over a batch, to those of its update, and take the update with the last of them."""
        self._clock.forward_is_over()
        amp.backward(loss / self.batches_in_update if self.batches_in_update > 1 else loss)
        if self.update_is_complete:
            amp.step()

    def read(self, clock):
        """Bring what the steps so far have given to the host: the one place in a loop where it waits for the device."""
        self.tally.read()
        clock.split()

    def _end_step(self, clock):
        self.step += 1
        if self._preemption.agreed(clock) and self.update_is_complete:
            self._preemption.leave()
        if self.update_is_complete and self._every_steps and self.step % self._every_steps == 0:
            with clock.paused():
                self.save()

    def _note_training(self):
        self.tally.fetch()
        tally = self.tally
        if tally.loss.count:
            self.results.update({"train.loss": tally.loss.val, "train.loss_mean": tally.loss.avg, "train.top1": tally.top1.avg,
                                 "train.top5": tally.top5.avg})

    def _check_weights(self):
        bad = entries.not_finite(self._parts[self._model_key].state_dict())
        if bad:
            raise cli.TrainingStopped("the weights are not finite numbers (first: %s) after step %d; a lower learning rate may help"
                                      % (bad, self.step))

    # --- the end of an epoch ---

    def is_best(self, top1):
        """Return whether `top1` (per cent) is better than all epochs before."""
        return self.best is None or top1 > self.best

    def note_evaluation(self, result):
        """Put the meters.Result of the epoch's evaluation into the results."""
        self._is_best = self.is_best(result.top1)
        self.best = result.top1 if self._is_best else self.best
        self.results.update({"val.top1": result.top1, "val.top5": result.top5, "val.loss": result.loss, "val.best_top1": self.best})

    def end_epoch(self, copy_to=()):
        """Count an epoch, and save, with further copies of the checkpoint at the paths `copy_to`."""
        self.epoch, self.step = self.epoch + 1, 0
        self.tally.reset()
        copies = list(copy_to) + ([self._best_path] if self._is_best and self._best_path else [])
        self._is_best = False
        self.save(copies)

    # --- the checkpoint ---

    def save(self, copy_to=()):
        """Write the checkpoint (rank 0; every rank has to call)."""
        self.tally.fetch()
        if self._rank.is_main:
            state = dict(self.constants, epoch=self.epoch, step=self.step, results=self.results, tally=self.tally.state_dict(),
                         world_size=self._rank.world_size)
            state[self._best_key] = self._accuracy_or_error(self.best)
            state.update((key, part.state_dict()) for key, part in self._parts.items())
            with watchdog.mark.within(watchdog.SAVING):
                checkpoint.save(state, self._path, copy_to, 1 if self._newest_is_damaged else self._keep)
            self._newest_is_damaged = False
        self._note_good(self._path)

    def _note_good(self, path):
        self._last_good = "%s (epoch %d, step %d)" % (path, self.epoch, self.step)
        self._tell_errors()

    def _tell_errors(self):
        cli.TrainingStopped.kept = "; epoch %d; last good checkpoint: %s" % (self.epoch, self._last_good)

    def _accuracy_or_error(self, value):
        """Turn the one into the other where the checkpoint holds errors."""
        if value is None:
            return None
        return 100.0 - float(value) if self._best_is_error else float(value)

    def resume(self, content, source):
        """Continue where the loaded checkpoint `content` was written; `source` is its file's name, for errors and for the log.

        Weights and epoch suffice: checkpoints of upstream hold no more; the log says what is not there and starts anew.
        """
        entries.check_run(content, source)
        checkpoint.load_weights(self._parts[self._model_key], content, source, use_ema="false")
        self.resumed = True
        self.epoch, self.step = int(content.get("epoch", 0)), int(content.get("step", 0))
        self.results = dict(content.get("results", {}))
        stored = self._accuracy_or_error(entries.percentage(content.get(self._best_key), source))
        self.best = self.results.get("val.best_top1", stored)  # an error need not give the very same accuracy
        self._note_good(source)
        # That file takes no place among the kept ones: the one that we go on from has it.
        self._newest_is_damaged = os.path.abspath(source).rpartition(".")[0] == os.path.abspath(self._path)
        constants = dict(content, run_length=content.get("run_length", 1))  # before there were others
        self.constants.update((key, constants[key]) for key in list(_ORDER) + ["step_images", "classes"] if key in constants)
        self._restore("tally", self.tally, content, source)
        absent = [key for key, part in self._parts.items() if key != self._model_key and not self._restore(key, part, content, source)]
        self._rank.print("%s holds no %s: starting anew with that" % (source, ", ".join(absent)) if absent else "")
        return absent

    def _restore(self, key, part, content, source):
        """Give a part its state; return whether there is one."""
        if key not in content:
            return False
        try:
            part.load_state_dict(content[key])
            if hasattr(part, "param_groups"):
                entries.check_optimizer(part)
        except Exception as error:  # what is no state of such a part can fail anywhere
            raise cli.UserError("%s was written by another kind of run: its %s does not fit (%s)" % (source, key, error))
        return True


def choose_seed(asked, resumed, rank):
    """Return the run's seed, the same on all ranks, after seeding everything with it: the one that was asked for (None: not), or
    that of `resumed` (a loaded checkpoint, or {}), or a random one. A seed changes no algorithm.

    Raises UserError where another one was asked for than the run to resume has.
    """
    entries.check_run(resumed, "the run to resume (--resume)")
    stored = resumed.get("seed")
    if None not in (asked, stored) and asked != stored:
        raise cli.UserError("this run has seed %d, the run to resume has %d" % (asked, stored))
    seed = stored if asked is None else asked
    if seed is None:
        drawn = random.SystemRandom().randrange(2 ** 24) if rank.is_main else 0  # exact in the float32 of an NPU's sum
        seed = int(distributed.sum_over_ranks([drawn], rank)[0])
    devices.seed(seed, rank.device)
    return seed

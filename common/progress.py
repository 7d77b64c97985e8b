"""How far a training is, and how that survives an interruption.

`kill -9` at any moment and the same command with --resume give bit for bit the weights of an uninterrupted run (CPU, fp32):
batches and augmentation are functions of (seed, epoch, step), and everything else that a step depends on is in the checkpoint.
"""
from common import checkpoint, cli, device as devices, distributed


class Progress(object):
    """The epoch and step that come next, the results so far, and the checkpoint that holds them.

    `parts`: what has a state_dict, by its key in the checkpoint; the model is the part named `model_key`. `constants`: plain
    values that go into the checkpoint as they are (architecture, seed). `results`: the latest of each number that the summary
    of a run reports. The checkpoint at `path` is written at the end of each epoch, after every `every_steps` steps (0: not),
    and when SIGTERM comes; `best_path` is a copy of it from the epoch with the best top-1 (None: no copy). `best_key` holds the
    best top-1 in the checkpoint, in per cent, or with `best_is_error` 100 minus it.
    """

    def __init__(self, rank, model_key, parts, path, best_path, constants=None, every_steps=0, best_key="best_acc1",
                 best_is_error=False):
        self.epoch = self.step = 0
        self.best = None
        self.results = {}
        self._rank, self._model_key, self._parts = rank, model_key, parts
        self._path, self._best_path = path, best_path
        self._best_key, self._best_is_error = best_key, best_is_error
        self._constants, self._every_steps = constants or {}, every_steps
        self._preemption = distributed.Preemption(rank)

    def end_step(self, resumable=True):
        """Count a step; save when it is time to. Raises Terminated after saving when SIGTERM has come.

        `resumable`: False between the batches of one update, whose gradients no checkpoint holds.
        """
        self.step += 1
        stop = self._preemption.agreed() and resumable
        if stop or (resumable and self._every_steps and self.step % self._every_steps == 0):
            self.save()
        if stop:
            self._leave()

    def _leave(self):
        distributed.barrier(self._rank)  # a launcher may end every rank as soon as one has ended
        raise cli.Terminated()

    def end_epoch(self, top1, copy_to=()):
        """Count an epoch that reached `top1` (per cent, None where it was not evaluated), and save. Raises Terminated as
        `end_step` does."""
        self.epoch, self.step = self.epoch + 1, 0
        copies = list(copy_to)
        if top1 is not None:
            self.results["val.top1"] = top1
            if self.best is None or top1 > self.best:
                self.best = top1
                copies += [self._best_path] if self._best_path else []
            self.results["val.best_top1"] = self.best
        self.save(copies)
        if self._preemption.agreed(at_once=True):
            self._leave()

    def save(self, copy_to=()):
        """Write the checkpoint (rank 0)."""
        if self._rank.is_main:
            state = dict(self._constants, epoch=self.epoch, step=self.step, results=self.results)
            state[self._best_key] = self._accuracy_or_error(self.best)
            state.update((key, part.state_dict()) for key, part in self._parts.items())
            checkpoint.save(state, self._path, copy_to)

    def _accuracy_or_error(self, value):
        """Turn the one into the other where the checkpoint holds errors."""
        if value is None:
            return None
        return 100.0 - float(value) if self._best_is_error else float(value)

    def resume(self, content, source):
        """Continue where the loaded checkpoint `content` was written; `source` is its file's name, for errors.

        Weights and epoch suffice: checkpoints of upstream hold no more. Returns the keys that were not there.
        """
        self.epoch, self.step = int(content.get("epoch", 0)), int(content.get("step", 0))
        self.results = dict(content.get("results", {}))
        stored = self._accuracy_or_error(content.get(self._best_key))
        self.best = self.results.get("val.best_top1", stored)  # an error need not give the very same accuracy
        checkpoint.load_weights(self._parts[self._model_key], content, source)
        absent = []
        for key, part in self._parts.items():
            if key == self._model_key:
                continue
            if key not in content:
                absent.append(key)
                continue
            try:
                part.load_state_dict(content[key])
            except (ValueError, KeyError) as error:
                raise cli.UserError("%s was written by another kind of run: its %s does not fit (%s)" % (source, key, error))
        return absent


def seed_step(seed, rank, epoch, step):
    """Make torch's draws in a step (dropout and the like) a function of (seed, rank, epoch, step), so that they survive a
    resume without saving generators."""
    value = (seed * 1000003 + rank.rank) * 1000003 ** 2 + epoch * 1000003 + step
    devices.seed_torch(value & 0x7FFFFFFFFFFFFFFF, rank.device)

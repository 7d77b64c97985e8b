"""Which image goes into which batch of which rank, for samplers that know one rank's sequence of an epoch."""


class SequenceBatches:
    """A batch sampler over `sampler.keys(epoch)`, able to start in the middle of an epoch. The last batch may be smaller.

    A key is (draw, index): the number of the image, and a number that no other use of the image in the run has, from which
    its augmentation follows. `sampler.steps(batch_size)` is the length of an epoch.
    """

    def __init__(self, sampler, batch_size):
        self._sampler, self._batch_size = sampler, batch_size
        self._epoch = self._first_step = 0

    def set_epoch(self, epoch, first_step=0):
        """Choose the epoch that the next iteration is of, and the step that it starts with."""
        self._epoch, self._first_step = epoch, first_step

    def __len__(self):
        """Return the steps of a whole epoch."""
        return self._sampler.steps(self._batch_size)

    def __iter__(self):
        keys = self._sampler.keys(self._epoch)
        for start in range(self._first_step * self._batch_size, len(self) * self._batch_size, self._batch_size):
            yield [(int(draw), int(index)) for draw, index in keys[start:start + self._batch_size]]

"""Learning rate and optimizer of the two phases that train."""
from common.optimizer import SGD, set_rate

STEP_EPOCHS = 30
DECAY = 0.1


def base_learning_rate(flag, batch_size, num_tasks, scaled=True):
    """Return the rate of epoch 0 for the rate that was asked for.

    Upstream's rule, 8 * rate * batch * tasks / 512, is linear in the global batch and leaves the rate alone at 64 images a
    card on one card. `scaled=False` leaves it alone everywhere.
    """
    return 8 * flag * batch_size * num_tasks / 512 if scaled else flag


def learning_rate(base, epoch):
    """Return the rate of a whole epoch, counted from 0: a tenth after every 30 epochs."""
    return base * DECAY ** (epoch // STEP_EPOCHS)


class Schedule(object):
    """Sets an optimizer's rate at the start of each epoch. Its state has the entries that upstream's StepLR writes."""

    def __init__(self, optimizer, base):
        self._optimizer, self._base, self._epoch = optimizer, base, 0

    def start_epoch(self, epoch):
        """Set the rate of `epoch`, and return it."""
        self._epoch, rate = epoch, learning_rate(self._base, epoch)
        set_rate(self._optimizer, rate)
        return rate

    def state_dict(self):
        return {"step_size": STEP_EPOCHS, "gamma": DECAY, "base_lrs": [self._base], "last_epoch": self._epoch}

    def load_state_dict(self, state):
        """Restore nothing: the rate follows from the flags and the epoch."""


def sgd(model, rate):
    """Return SGD over all parameters in one group, as upstream: momentum 0.9, weight decay 1e-4 on BatchNorm and biases too.

    Frozen parameters are listed as well. They never have a gradient, so SGD neither moves nor decays them, and the optimizer's
    state has upstream's layout.
    """
    return SGD(model.parameters(), rate, momentum=0.9, weight_decay=1e-4)

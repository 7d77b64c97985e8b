"""Learning rates of the two training phases, and the optimizer that takes them."""
import torch

MILESTONE_EPOCHS = 30
DECAY = 0.1


def base_learning_rate(flag, batch_size, num_tasks, scaled=True):
    """Return the rate of epoch 0 for the rate that was asked for.

    Upstream's rule is linear in the global batch and multiplies by one at 64 images a card on one card: 8 * rate * batch *
    tasks / 512. `scaled=False` takes the rate as it is.
    """
    return 8 * flag * batch_size * num_tasks / 512 if scaled else flag


def learning_rate(base, epoch):
    """Return the rate for a whole epoch, counted from 0: a tenth after every 30 epochs."""
    return base * DECAY ** (epoch // MILESTONE_EPOCHS)


def sgd(model, rate):
    """Return SGD over all parameters in one group, as upstream: momentum 0.9, weight decay 1e-4 on BatchNorm and biases too.

    Frozen parameters are listed as well. They never have a gradient, so SGD neither moves nor decays them, and the optimizer's
    state has upstream's layout.
    """
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)

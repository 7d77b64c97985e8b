"""What the weights are moved by: learning rate of an epoch, and the optimizer."""
import torch

from common.optimizer import SGD


def learning_rate(config, base, epoch):
    """Return the learning rate of an epoch, counted from 0: base * LR_FACTOR ** (milestones of LR_STEP reached).

    It is computed from the epoch alone, so a resumed run cannot decay twice, and the decay falls on epochs 30, 60 and 90 on
    every PyTorch version. (Upstream steps a scheduler before each epoch. That gives the same on the PyTorch 0.4 that it
    names, but from 1.1 on the scheduler is one epoch ahead: 29, 59, 89.)
    """
    return base * config.TRAIN.LR_FACTOR ** sum(milestone <= epoch for milestone in config.TRAIN.LR_STEP)


def get_optimizer(config, model, rate):
    """Return the optimizer that TRAIN.OPTIMIZER names, over one group of all parameters.

    BatchNorm parameters and biases are decayed like all others. As upstream, adam takes only the learning rate. Raises
    ValueError for another name.
    """
    train = config.TRAIN
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if train.OPTIMIZER == "sgd":
        return SGD(parameters, rate, momentum=train.MOMENTUM, weight_decay=train.WD, nesterov=train.NESTEROV)
    if train.OPTIMIZER == "adam":
        return torch.optim.Adam(parameters, lr=rate)
    if train.OPTIMIZER == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=rate, momentum=train.MOMENTUM, weight_decay=train.WD,
                                   alpha=train.RMSPROP_ALPHA, centered=train.RMSPROP_CENTERED)
    raise ValueError("TRAIN.OPTIMIZER is %r, it should be one of sgd, adam, rmsprop" % train.OPTIMIZER)

"""What is particular to the recipes of this model: losses, learning rate, weight decay groups, mixup."""
import math

import torch
from torch import nn


class SmoothedCrossEntropy(nn.Module):
    """Cross entropy with label smoothing s over K classes, mean over the batch.

    form "uniform" (https://arxiv.org/abs/1512.00567): the target is 1 - s + s/K for the true class and s/K for the others.
    form "off-class" (the eight-card Ascend recipe): 1 - s for the true class and s/(K-1) for the others.
    Targets are class numbers (N,), or, in the uniform form, probabilities (N, K) as mixup makes them.
    """

    def __init__(self, smoothing=0.0, form="uniform"):
        super().__init__()
        self.smoothing, self.form = smoothing, form

    def forward(self, logits, target):
        log_p = torch.log_softmax(logits, dim=1)
        classes = logits.shape[1]
        # The two forms are one family: off-class(s) = uniform(s K / (K - 1)).
        smoothing = self.smoothing * (classes / (classes - 1.0) if self.form == "off-class" else 1.0)
        if target.dim() == 1:
            of_target = -log_p.gather(1, target.unsqueeze(1)).squeeze(1)
        else:
            of_target = -(target * log_p).sum(1)
        if smoothing == 0.0:
            return of_target.mean()
        return ((1 - smoothing) * of_target - smoothing * log_p.mean(1)).mean()


def mixed_up(images, target, classes, alpha, rng):
    """Return (images, probabilities) mixed with a shuffled copy of the batch (https://arxiv.org/abs/1710.09412).

    One share, drawn from Beta(alpha, alpha), for the whole batch. `rng` is a random.Random. images (N, 3, H, W), target (N,).
    """
    share = rng.betavariate(alpha, alpha)
    order = list(range(len(target)))
    rng.shuffle(order)
    order = torch.tensor(order, device=images.device)
    one_hot = torch.zeros(len(target), classes, device=images.device).scatter_(1, target.unsqueeze(1), 1.0)
    return share * images + (1 - share) * images[order], share * one_hot + (1 - share) * one_hot[order]


# What is left of the base rate in an epoch, counted from 0, before which the share `done` of the epochs after the warm-up lies.
SCHEDULES = {
    "step30": lambda epoch, done: 0.1 ** (epoch // 30),  # of pytorch/examples
    "step": lambda epoch, done: 0.1 ** sum(epoch >= milestone for milestone in (30, 60, 80)),
    "linear": lambda epoch, done: 1 - done,
    "cosine": lambda epoch, done: 0.5 * (1 + math.cos(math.pi * done)),
    "exponential": lambda epoch, done: 0.001 ** done,
}


def learning_rate(epoch, schedule, base, warmup, epochs):
    """Return the learning rate of a whole epoch: it rises linearly to `base` in the first `warmup` epochs, and then follows
    `schedule`, a key of SCHEDULES."""
    if epoch < warmup:
        return base * (epoch + 1) / warmup
    return base * SCHEDULES[schedule](epoch, (epoch - warmup) / float(epochs - warmup))


# Which parameters are spared weight decay, by name. "bn" is the eight-card recipe to the letter: the BatchNorms of the
# shortcuts are called downsample.1, so they do decay.
NO_DECAY = {
    "none": lambda name: False,
    "bias": lambda name: name.endswith("bias"),
    "bn": lambda name: "bn" in name,
}


def parameter_groups(model, no_decay, weight_decay):
    """Return the optimizer's groups: the parameters that `no_decay` (a key of NO_DECAY) spares, and the rest."""
    spared = NO_DECAY[no_decay]
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [{"params": [p for name, p in named if spared(name)], "weight_decay": 0.0},
              {"params": [p for name, p in named if not spared(name)], "weight_decay": weight_decay}]
    return [group for group in groups if group["params"]]

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
        self.smoothing = smoothing
        self.form = form

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


def learning_rate(epoch, schedule, base, warmup, epochs):
    """Return the learning rate of an epoch (counted from 0); iterations play no part.

    The first `warmup` epochs rise linearly to `base`. Then: cosine and linear go towards 0 over the remaining epochs; step
    divides by 10 at epochs 30, 60 and 80; step30 divides by 10 every 30 epochs (pytorch/examples); exponential ends at 1/1000.
    """
    if epoch < warmup:
        return base * (epoch + 1) / warmup
    done = (epoch - warmup) / float(epochs - warmup)
    if schedule == "cosine":
        return 0.5 * base * (1 + math.cos(math.pi * done))
    if schedule == "linear":
        return base * (1 - done)
    if schedule == "exponential":
        return base * 0.001 ** done
    if schedule == "step":
        return base * 0.1 ** sum(epoch >= milestone for milestone in (30, 60, 80))
    if schedule == "step30":
        return base * 0.1 ** (epoch // 30)
    raise ValueError("unknown schedule %r" % schedule)


SCHEDULES = ("step30", "step", "linear", "cosine", "exponential")

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

"""SGD with pycls' parameter groups, and the learning rate of an epoch."""
import math

from common.optimizer import SGD
from pycls.core.config import cfg


def parameter_groups(model):
    """Return the groups for SGD: one with everything, or BN tensors (by name) first with their own decay, then the rest."""
    if not cfg.BN.USE_CUSTOM_WEIGHT_DECAY:
        return [{"params": list(model.parameters()), "weight_decay": cfg.OPTIM.WEIGHT_DECAY}]
    named = list(model.named_parameters())
    return [
        {"params": [p for name, p in named if "bn" in name], "weight_decay": cfg.BN.CUSTOM_WEIGHT_DECAY},
        {"params": [p for name, p in named if "bn" not in name], "weight_decay": cfg.OPTIM.WEIGHT_DECAY},
    ]


def construct_optimizer(model):
    """Return SGD over the parameters of `model`.

    With g = gradient + weight_decay * p: v = momentum * v + g (v = g at the first step), p -= lr * (g + momentum * v).
    """
    return SGD(
        parameter_groups(model),
        lr=cfg.OPTIM.BASE_LR,
        momentum=cfg.OPTIM.MOMENTUM,
        dampening=cfg.OPTIM.DAMPENING,
        nesterov=cfg.OPTIM.NESTEROV,
    )


def _cos(epoch):
    base = 0.5 * (1.0 + math.cos(math.pi * epoch / cfg.OPTIM.MAX_EPOCH))
    return (1.0 - cfg.OPTIM.MIN_LR) * base + cfg.OPTIM.MIN_LR


def _lin(epoch):
    return (1.0 - cfg.OPTIM.MIN_LR) * (1.0 - epoch / cfg.OPTIM.MAX_EPOCH) + cfg.OPTIM.MIN_LR


def _exp(epoch):
    return math.pow(cfg.OPTIM.MIN_LR, epoch / cfg.OPTIM.MAX_EPOCH)


def _steps(epoch):
    passed = sum(1 for step in cfg.OPTIM.STEPS if step <= epoch)
    return math.pow(cfg.OPTIM.LR_MULT, passed - 1)


_POLICIES = {"cos": _cos, "lin": _lin, "exp": _exp, "steps": _steps}


def get_epoch_lr(epoch):
    """Return the learning rate of a whole 0-based epoch. Warm-up multiplies the rate that has already decayed."""
    lr = cfg.OPTIM.BASE_LR * _POLICIES[cfg.OPTIM.LR_POLICY](epoch)
    if epoch < cfg.OPTIM.WARMUP_EPOCHS:
        alpha = epoch / cfg.OPTIM.WARMUP_EPOCHS
        lr *= cfg.OPTIM.WARMUP_FACTOR * (1.0 - alpha) + alpha
    return lr

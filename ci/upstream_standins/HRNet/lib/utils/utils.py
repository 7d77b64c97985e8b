import config  # noqa: F401 (which knows where the port is)
from lib.core import optimizer


def get_optimizer(cfg, model):
    return optimizer.get_optimizer(cfg, model, cfg.TRAIN.LR)

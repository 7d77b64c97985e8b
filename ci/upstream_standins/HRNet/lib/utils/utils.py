import config as knows_where_the_port_is  # noqa: F401
from lib.core import optimizer


def get_optimizer(cfg, model):
    return optimizer.get_optimizer(cfg, model, cfg.TRAIN.LR)

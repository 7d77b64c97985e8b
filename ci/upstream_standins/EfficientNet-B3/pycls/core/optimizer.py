import pycls
from common.optimizer import set_rate

port = pycls.port("core/optimizer.py")
construct_optimizer, get_epoch_lr = port.construct_optimizer, port.get_epoch_lr


def set_lr(optimizer, rate):
    set_rate(optimizer, rate)

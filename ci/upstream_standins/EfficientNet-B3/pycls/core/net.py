import itertools

import numpy as np
import pycls
import torch
from pycls.core import losses
from pycls.core.config import cfg

port = pycls.port("core/net.py")


def complexity(model):
    return port.complexity(model, cfg.TRAIN.IM_SIZE)


def smooth_one_hot_labels(labels):
    return losses.smooth_one_hot(labels, cfg.MODEL.NUM_CLASSES, cfg.TRAIN.LABEL_SMOOTHING)


def mixup(inputs, labels):
    weight, partners = np.random.beta(cfg.TRAIN.MIXUP_ALPHA, cfg.TRAIN.MIXUP_ALPHA), torch.randperm(len(labels)).cuda()
    mixed = losses.mixup(labels, weight, partners)
    return losses.mixup(inputs, weight, partners), mixed, mixed.argmax(1)


def compute_precise_bn_stats(model, loader):
    count = min(cfg.BN.NUM_SAMPLES_PRECISE // loader.batch_size, len(loader))
    port.compute_precise_bn_stats(model, (inputs.cuda() for inputs, _ in itertools.islice(loader, count)))

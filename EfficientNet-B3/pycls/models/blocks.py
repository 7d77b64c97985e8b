"""The layers that EfficientNet is built from, and how they are initialised."""
import math

import torch
import torch.nn as nn

from common.network import GlobalAverage
from pycls.core.config import cfg


class _SiLU(nn.Module):
    """x * sigmoid(x), for PyTorch below 1.7, which has no nn.SiLU."""

    def forward(self, x):
        return x * torch.sigmoid(x)


def activation():
    """Return the configured activation layer; swish is another name of SiLU."""
    if cfg.MODEL.ACTIVATION_FUN.lower() == "relu":
        return nn.ReLU(inplace=cfg.MODEL.ACTIVATION_INPLACE)
    return nn.SiLU() if hasattr(nn, "SiLU") else _SiLU()


def conv2d(w_in, w_out, k, stride=1, groups=1, bias=False):
    """Return a k x k convolution padded by (k - 1) / 2 on every side (not TensorFlow's one-sided SAME); k is odd."""
    return nn.Conv2d(w_in, w_out, k, stride=stride, padding=(k - 1) // 2, groups=groups, bias=bias)


def norm2d(w):
    """Return a batch normalisation with the configured epsilon and momentum."""
    return nn.BatchNorm2d(w, eps=cfg.BN.EPS, momentum=cfg.BN.MOM)


class SE(nn.Module):
    """Squeeze-and-excitation (https://arxiv.org/abs/1709.01507): scale each channel by a gate in (0, 1)."""

    def __init__(self, w, w_se):
        super().__init__()
        self.avg_pool = GlobalAverage()
        self.f_ex = nn.Sequential(
            conv2d(w, w_se, 1, bias=True),
            activation(),
            conv2d(w_se, w, 1, bias=True),
            nn.Sigmoid(),
        )

    def forward(self, x):
        return x * self.f_ex(self.avg_pool(x))


def drop_connect(x, ratio):
    """Zero whole samples of x (N, C, H, W) with probability `ratio` and divide the others by 1 - ratio.

    Called in training only; evaluation uses x as it is.
    """
    keep = torch.empty((x.shape[0], 1, 1, 1), dtype=x.dtype, device=x.device).bernoulli_(1.0 - ratio)
    return x / (1.0 - ratio) * keep


def init_weights(module):
    """Initialise one module; give it to `Module.apply`.

    Convolutions: normal, variance 2 / (k * k * output channels), depth-wise ones too (their output channels are not
    divided by the groups); their biases, which only SE has, keep PyTorch's default. Linear: normal, std 0.01, bias 0.
    """
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
        module.weight.data.normal_(mean=0.0, std=math.sqrt(2.0 / fan_out))
    elif isinstance(module, nn.BatchNorm2d):
        module.weight.data.fill_(1.0)
        module.bias.data.zero_()
    elif isinstance(module, nn.Linear):
        module.weight.data.normal_(mean=0.0, std=0.01)
        module.bias.data.zero_()

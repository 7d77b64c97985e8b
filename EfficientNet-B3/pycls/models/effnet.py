"""EfficientNet (https://arxiv.org/abs/1905.11946) as pycls builds it; the names of the modules are checkpoint keys."""
import torch.nn as nn

from common.network import GlobalAverage
from pycls.core.config import cfg
from pycls.models.blocks import SE, activation, conv2d, drop_connect, init_weights, norm2d


class StemIN(nn.Module):
    """3 x 3 convolution of stride 2, BN, activation."""

    def __init__(self, w_in, w_out):
        super().__init__()
        self.conv = conv2d(w_in, w_out, 3, stride=2)
        self.bn = norm2d(w_out)
        self.af = activation()

    def forward(self, x):
        return self.af(self.bn(self.conv(x)))


class MBConv(nn.Module):
    """Inverted residual block: expansion, depth-wise convolution, SE, projection, and the input added where it fits."""

    def __init__(self, w_in, exp_r, k, stride, w_out):
        super().__init__()
        w_exp = int(w_in * exp_r)
        self.exp = None
        if w_exp != w_in:
            self.exp = conv2d(w_in, w_exp, 1)
            self.exp_bn = norm2d(w_exp)
            self.exp_af = activation()
        self.dwise = conv2d(w_exp, w_exp, k, stride=stride, groups=w_exp)
        self.dwise_bn = norm2d(w_exp)
        self.dwise_af = activation()
        self.se = SE(w_exp, int(w_in * cfg.EN.SE_R))  # of the block's input width, as in the paper's code
        self.lin_proj = conv2d(w_exp, w_out, 1)
        self.lin_proj_bn = norm2d(w_out)
        self.has_skip = stride == 1 and w_in == w_out

    def forward(self, x):
        f_x = self.exp_af(self.exp_bn(self.exp(x))) if self.exp is not None else x
        f_x = self.se(self.dwise_af(self.dwise_bn(self.dwise(f_x))))
        f_x = self.lin_proj_bn(self.lin_proj(f_x))
        if not self.has_skip:
            return f_x
        if self.training and cfg.EN.DC_RATIO > 0.0:
            f_x = drop_connect(f_x, cfg.EN.DC_RATIO)
        return x + f_x


class EffStage(nn.Module):
    """`d` blocks b1 … bd; the first has the stride and changes the width."""

    def __init__(self, w_in, exp_r, k, stride, w_out, d):
        super().__init__()
        for i in range(d):
            block = MBConv(w_in if i == 0 else w_out, exp_r, k, stride if i == 0 else 1, w_out)
            self.add_module("b%d" % (i + 1), block)

    def forward(self, x):
        for block in self.children():
            x = block(x)
        return x


class EffHead(nn.Module):
    """1 x 1 convolution, BN, activation, global average pool, dropout (if any), classifier."""

    def __init__(self, w_in, w_out, num_classes):
        super().__init__()
        dropout_ratio = cfg.EN.DROPOUT_RATIO
        self.conv = conv2d(w_in, w_out, 1)
        self.conv_bn = norm2d(w_out)
        self.conv_af = activation()
        self.avg_pool = GlobalAverage()
        self.dropout = nn.Dropout(p=dropout_ratio) if dropout_ratio > 0 else None
        self.fc = nn.Linear(w_out, num_classes, bias=True)

    def forward(self, x):
        x = self.avg_pool(self.conv_af(self.conv_bn(self.conv(x))))
        x = x.view(x.size(0), -1)
        x = self.dropout(x) if self.dropout is not None else x
        return self.fc(x)


class EffNet(nn.Module):
    """The network of the global configuration: (N, 3, H, W) float in BGR order to (N, MODEL.NUM_CLASSES) logits."""

    def __init__(self):
        super().__init__()
        en, w_in = cfg.EN, cfg.EN.STEM_W
        self.stem = StemIN(3, w_in)
        stages = zip(en.DEPTHS, en.WIDTHS, en.EXP_RATIOS, en.STRIDES, en.KERNELS)
        for i, (d, w, exp_r, stride, k) in enumerate(stages):
            self.add_module("s%d" % (i + 1), EffStage(w_in, exp_r, k, stride, w, d))
            w_in = w
        self.head = EffHead(w_in, en.HEAD_W, cfg.MODEL.NUM_CLASSES)
        self.apply(init_weights)

    def forward(self, x):
        for module in self.children():
            x = module(x)
        return x

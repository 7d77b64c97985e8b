"""PNASNet-5-Large (Liu et al., "Progressive Neural Architecture Search", arXiv 1712.00559).

Every cell takes two inputs and concatenates five sums of two branches. Module names are those of the published weights
(`pnasnet5large-bf079911.pth` and FixRes' `PNASNet.pth`), which load without renaming.
"""
from collections import OrderedDict

import torch
from torch import nn


def _batch_norm(channels):
    return nn.BatchNorm2d(channels, eps=0.001)


class MaxPool(nn.Module):
    """3x3 maximum, padding 1. `zero_pad` shifts the grid by one pixel, as TensorFlow's "same" padding does."""

    def __init__(self, stride, zero_pad=False):
        super().__init__()
        self.zero_pad = nn.ZeroPad2d((1, 0, 1, 0)) if zero_pad else None
        self.pool = nn.MaxPool2d(3, stride=stride, padding=1)

    def forward(self, x):
        if self.zero_pad is None:
            return self.pool(x)
        return self.pool(self.zero_pad(x))[:, :, 1:, 1:]


class SeparableConv2d(nn.Module):
    """A depthwise kernel x kernel convolution, then a pointwise one."""

    def __init__(self, inputs, outputs, kernel, stride):
        super().__init__()
        self.depthwise_conv2d = nn.Conv2d(inputs, inputs, kernel, stride=stride, padding=kernel // 2, groups=inputs, bias=False)
        self.pointwise_conv2d = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x):
        return self.pointwise_conv2d(self.depthwise_conv2d(x))


class BranchSeparables(nn.Module):
    """ReLU, separable convolution, BatchNorm, twice. Only the first convolution has the stride."""

    def __init__(self, inputs, outputs, kernel, stride=1, stem=False, zero_pad=False):
        super().__init__()
        middle = outputs if stem else inputs
        self.relu_1 = nn.ReLU()
        self.zero_pad = nn.ZeroPad2d((1, 0, 1, 0)) if zero_pad else None
        self.separable_1 = SeparableConv2d(inputs, middle, kernel, stride)
        self.bn_sep_1 = _batch_norm(middle)
        self.relu_2 = nn.ReLU()
        self.separable_2 = SeparableConv2d(middle, outputs, kernel, 1)
        self.bn_sep_2 = _batch_norm(outputs)

    def forward(self, x):
        x = self.relu_1(x)
        if self.zero_pad is None:
            x = self.separable_1(x)
        else:
            x = self.separable_1(self.zero_pad(x))[:, :, 1:, 1:].contiguous()
        return self.bn_sep_2(self.separable_2(self.relu_2(self.bn_sep_1(x))))


class ReluConvBn(nn.Module):
    """ReLU, convolution without padding, BatchNorm."""

    def __init__(self, inputs, outputs, kernel=1, stride=1):
        super().__init__()
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, bias=False)
        self.bn = _batch_norm(outputs)

    def forward(self, x):
        return self.bn(self.conv(self.relu(x)))


class FactorizedReduction(nn.Module):
    """Halve the resolution with two 1x1 convolutions that look at pixels one step apart."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.relu = nn.ReLU()
        self.path_1 = nn.Sequential(OrderedDict([
            ("avgpool", nn.AvgPool2d(1, stride=2, count_include_pad=False)),
            ("conv", nn.Conv2d(inputs, outputs // 2, 1, bias=False)),
        ]))
        self.path_2 = nn.Sequential(OrderedDict([
            ("pad", nn.ZeroPad2d((0, 1, 0, 1))),
            ("avgpool", nn.AvgPool2d(1, stride=2, count_include_pad=False)),
            ("conv", nn.Conv2d(inputs, outputs // 2, 1, bias=False)),
        ]))
        self.final_path_bn = _batch_norm(outputs)

    def forward(self, x):
        x = self.relu(x)
        shifted = self.path_2.pad(x)[:, :, 1:, 1:]
        second = self.path_2.conv(self.path_2.avgpool(shifted))
        return self.final_path_bn(torch.cat([self.path_1(x), second], dim=1))


class _FiveSums(nn.Module):
    """The wiring that all cells share."""

    def combine(self, left, right):
        """Return the concatenation of the five sums, from the two prepared inputs."""
        sum_0 = self.comb_iter_0_left(left) + self.comb_iter_0_right(left)
        sum_1 = self.comb_iter_1_left(right) + self.comb_iter_1_right(right)
        sum_2 = self.comb_iter_2_left(right) + self.comb_iter_2_right(right)
        sum_3 = self.comb_iter_3_left(sum_2) + self.comb_iter_3_right(right)
        skip = right if self.comb_iter_4_right is None else self.comb_iter_4_right(right)
        return torch.cat([sum_0, sum_1, sum_2, sum_3, self.comb_iter_4_left(left) + skip], dim=1)


class CellStem0(_FiveSums):
    """The first cell: both its inputs are made from the stem convolution. 96 channels in, 270 out, half the resolution."""

    def __init__(self, inputs=96, outputs=54):
        super().__init__()
        self.conv_1x1 = ReluConvBn(inputs, outputs)
        self.comb_iter_0_left = BranchSeparables(inputs, outputs, 5, stride=2, stem=True)
        self.comb_iter_0_right = nn.Sequential(OrderedDict([
            ("max_pool", MaxPool(2)),
            ("conv", nn.Conv2d(inputs, outputs, 1, bias=False)),
            ("bn", _batch_norm(outputs)),
        ]))
        self.comb_iter_1_left = BranchSeparables(outputs, outputs, 7, stride=2)
        self.comb_iter_1_right = MaxPool(2)
        self.comb_iter_2_left = BranchSeparables(outputs, outputs, 5, stride=2)
        self.comb_iter_2_right = BranchSeparables(outputs, outputs, 3, stride=2)
        self.comb_iter_3_left = BranchSeparables(outputs, outputs, 3)
        self.comb_iter_3_right = MaxPool(2)
        self.comb_iter_4_left = BranchSeparables(inputs, outputs, 3, stride=2, stem=True)
        self.comb_iter_4_right = ReluConvBn(outputs, outputs, stride=2)

    def forward(self, x):
        return self.combine(x, self.conv_1x1(x))


class Cell(_FiveSums):
    """Every other cell. `match`: the left input has twice the resolution of the right one and is reduced first."""

    def __init__(self, left, right, width, reduction=False, zero_pad=False, match=False):
        super().__init__()
        stride = 2 if reduction else 1
        self.conv_prev_1x1 = FactorizedReduction(left, width) if match else ReluConvBn(left, width)
        self.conv_1x1 = ReluConvBn(right, width)
        self.comb_iter_0_left = BranchSeparables(width, width, 5, stride, zero_pad=zero_pad)
        self.comb_iter_0_right = MaxPool(stride, zero_pad)
        self.comb_iter_1_left = BranchSeparables(width, width, 7, stride, zero_pad=zero_pad)
        self.comb_iter_1_right = MaxPool(stride, zero_pad)
        self.comb_iter_2_left = BranchSeparables(width, width, 5, stride, zero_pad=zero_pad)
        self.comb_iter_2_right = BranchSeparables(width, width, 3, stride, zero_pad=zero_pad)
        self.comb_iter_3_left = BranchSeparables(width, width, 3)
        self.comb_iter_3_right = MaxPool(stride, zero_pad)
        self.comb_iter_4_left = BranchSeparables(width, width, 3, stride, zero_pad=zero_pad)
        self.comb_iter_4_right = ReluConvBn(width, width, stride=stride) if reduction else None

    def forward(self, left, right):
        return self.combine(self.conv_prev_1x1(left), self.conv_1x1(right))


# name: (channels of the left input, of the right input, width of a branch, further arguments)
_CELLS = OrderedDict([
    ("cell_stem_1", (96, 270, 108, {"reduction": True, "match": True})),
    ("cell_0", (270, 540, 216, {"match": True})),
    ("cell_1", (540, 1080, 216, {})),
    ("cell_2", (1080, 1080, 216, {})),
    ("cell_3", (1080, 1080, 216, {})),
    ("cell_4", (1080, 1080, 432, {"reduction": True, "zero_pad": True})),
    ("cell_5", (1080, 2160, 432, {"match": True})),
    ("cell_6", (2160, 2160, 432, {})),
    ("cell_7", (2160, 2160, 432, {})),
    ("cell_8", (2160, 2160, 864, {"reduction": True})),
    ("cell_9", (2160, 4320, 864, {"match": True})),
    ("cell_10", (4320, 4320, 864, {})),
    ("cell_11", (4320, 4320, 864, {})),
])


class PNASNet5Large(nn.Module):
    """(batch, 3, height, width) to (batch, num_classes) logits; any resolution from about 64 pixels on.

    The two inputs of a cell are the outputs of the two modules before it.
    """

    def __init__(self, num_classes=1000):
        super().__init__()
        self.conv_0 = nn.Sequential(OrderedDict([
            ("conv", nn.Conv2d(3, 96, 3, stride=2, bias=False)),
            ("bn", _batch_norm(96)),
        ]))
        self.cell_stem_0 = CellStem0()
        for name, (left, right, width, options) in _CELLS.items():
            self.add_module(name, Cell(left, right, width, **options))
        self.relu = nn.ReLU()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.5)
        self.last_linear = nn.Linear(4320, num_classes)

    def forward(self, x):
        left = self.conv_0(x)
        right = self.cell_stem_0(left)
        for name in _CELLS:
            left, right = right, getattr(self, name)(left, right)
        pooled = torch.flatten(self.avg_pool(self.relu(right)), 1)
        return self.last_linear(self.dropout(pooled))


def without_background(state_dict):
    """Return the 1000-class form of the original 1001-class weights, whose class 0 is "background"."""
    heads = ("last_linear.weight", "last_linear.bias")
    return OrderedDict((key, value[1:] if key in heads and value.dim() else value) for key, value in state_dict.items())

"""Building blocks: the gather and excite operators and the pre-activation residual block that holds them.

Gather-Excite: Hu, Shen, Albanie, Sun, Vedaldi, NeurIPS 2018, arXiv 1810.12348.
Wide residual networks: Zagoruyko, Komodakis, BMVC 2016, arXiv 1605.07146.
Parameter names and their order are those of BayesWatch/pytorch-GENet, so its checkpoints load as they are.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

from common.network import GlobalAverage

EXTENTS = (0, 2, 4, 8)
MLP_REDUCTION = 16


def conv(in_channels, out_channels, kernel, stride=1, padding=0, groups=1):
    """A convolution without bias: every convolution of this network is one."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)


class GatherUnit(nn.Module):
    """Depthwise convolution, BatchNorm and, in all units of a gather but its last, ReLU."""

    def __init__(self, channels, kernel, stride, padding, activate):
        super().__init__()
        self.dwconv = conv(channels, channels, kernel, stride, padding, groups=channels)
        self.bn = nn.BatchNorm2d(channels)
        self.activate = activate

    def forward(self, x):
        x = self.bn(self.dwconv(x))
        return F.relu(x, inplace=True) if self.activate else x


def gather(channels, side, extent, extra_params):
    """The gather operator for maps of (batch, channels, side, side).

    extent: how many pixels, to each direction, one gathered value stands for: 2, 4 or 8, or 0 for the whole map.
    Without parameters it is the mean over each extent x extent tile. (Other implementations of the paper overlap
    windows of 2 * extent - 1; upstream's tiles do not overlap.) With parameters it is log2(extent) depthwise 3x3
    convolutions of stride 2, or for extent 0 one depthwise convolution as large as the map.
    Raises ValueError for another extent.
    """
    if extent not in EXTENTS:
        raise ValueError("extent must be 0 (the whole map), 2, 4 or 8, not {!r}".format(extent))
    if not extra_params:
        return nn.AvgPool2d(extent) if extent else GlobalAverage()
    if extent == 0:
        return GatherUnit(channels, side, 1, 0, activate=False)
    count = extent.bit_length() - 1
    units = [GatherUnit(channels, 3, 2, 1, activate=index < count - 1) for index in range(count)]
    return units[0] if count == 1 else nn.Sequential(*units)


def excite_mlp(channels, mlp):
    """The 1x1-convolution pair of GE-theta-plus (identity if not `mlp`); it works on the gathered map."""
    if not mlp:
        return nn.Identity()
    hidden = channels // MLP_REDUCTION
    return nn.Sequential(conv(channels, hidden, 1), nn.ReLU(inplace=True), conv(hidden, channels, 1))


def excite(x, gathered):
    """Scale x (batch, channels, side, side) by the sigmoid of the gathered map, brought to x's size by repetition.

    The sigmoid comes before the repetition (nearest neighbour): the values are the same and there are fewer of them.
    A 1x1 map is not even repeated: broadcasting does that without a copy.
    """
    gate = torch.sigmoid(gathered)
    if gate.shape[-1] > 1:
        gate = F.interpolate(gate, size=x.shape[-2:], mode="nearest")
    return x * gate


class GatherExciteBlock(nn.Module):
    """BN-ReLU-conv twice, the result excited by its own context, plus a shortcut.

    side: height and width of the block's output map. The shortcut convolution exists only where the number of
    channels changes, and reads the activated input; the identity shortcut passes the raw input on.
    Input (batch, in_channels, side * stride, side * stride), output (batch, out_channels, side, side).
    """

    def __init__(self, in_channels, out_channels, stride, side, extent=0, extra_params=False, mlp=False, drop_rate=0.0):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, out_channels, 3, stride, 1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3, 1, 1)
        if in_channels != out_channels:
            self.convShortcut = conv(in_channels, out_channels, 1, stride)
        else:
            self.convShortcut = None
        self.downop = gather(out_channels, side, extent, extra_params)
        self.mlp = excite_mlp(out_channels, mlp)
        self.drop_rate = drop_rate

    def forward(self, x):
        activated = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        out = F.relu(self.bn2(self.conv1(activated)), inplace=True)
        if self.drop_rate > 0:
            out = F.dropout(out, self.drop_rate, self.training)
        out = self.conv2(out)
        return shortcut + excite(out, self.mlp(self.downop(out)))


class Stage(nn.Module):
    """`depth` blocks, of which the first changes channels and resolution."""

    def __init__(self, depth, in_channels, out_channels, stride, side, **block_options):
        super().__init__()
        blocks = [GatherExciteBlock(in_channels, out_channels, stride, side, **block_options)]
        for _ in range(depth - 1):
            blocks.append(GatherExciteBlock(out_channels, out_channels, 1, side, **block_options))
        self.layer = nn.Sequential(*blocks)

    def forward(self, x):
        return self.layer(x)

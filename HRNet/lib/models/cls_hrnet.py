"""HRNet for image classification: arXiv 1908.07919 (the network), arXiv 1904.04514 (the classification head).

How to read it. A *stage* keeps k branches side by side; branch b has C_b channels and 1/(4 * 2**b) of the input's height and
width. A stage is a chain of `HighResolutionModule`s: each is one exchange unit, that is, k parallel branches followed by the
fuse layers through which every branch receives what all the others computed. A *transition* between two stages adds one
branch. The head merges the four branches of the last stage from the finest to the coarsest.

Module names and their order are those of github.com/HRNet/HRNet-Image-Classification (MIT, Copyright (c) Microsoft
Corporation, 2019), so that its weights load as they are.
"""
from functools import reduce
from operator import add

import torch.nn as nn

STEM_CHANNELS = 64
HEAD_CHANNELS = (32, 64, 128, 256)  # planes of the head's bottlenecks; each gives four times as many channels
FINAL_CHANNELS = 2048


def conv_bn(c_in, c_out, kernel=3, stride=1, bias=False):
    """Return [convolution that keeps H and W (up to the stride), BatchNorm]."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=bias)
    return [conv, nn.BatchNorm2d(c_out)]


def conv_bn_relu(c_in, c_out, kernel=3, stride=1, bias=False):
    """Return a sequence convolution, BatchNorm, ReLU."""
    return nn.Sequential(*conv_bn(c_in, c_out, kernel, stride, bias), nn.ReLU(inplace=True))


def make_shortcut(c_in, c_out):
    """Return the projection of a block's shortcut, or None where the identity fits."""
    return nn.Sequential(*conv_bn(c_in, c_out, kernel=1)) if c_in != c_out else None


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, c_in, H, W) -> (N, planes, H, W)."""

    expansion = 1

    def __init__(self, c_in, planes):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(c_in, planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = conv_bn(planes, planes)
        self.downsample = make_shortcut(c_in, planes)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut: (N, c_in, H, W) -> (N, 4 * planes, H, W)."""

    expansion = 4

    def __init__(self, c_in, planes):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(c_in, planes, kernel=1)
        self.conv2, self.bn2 = conv_bn(planes, planes)
        self.conv3, self.bn3 = conv_bn(planes, planes * self.expansion, kernel=1)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = make_shortcut(c_in, planes * self.expansion)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


BLOCKS = {"BASIC": BasicBlock, "BOTTLENECK": Bottleneck}


def make_blocks(block, c_in, planes, count):
    """Return `count` blocks in a row; only the first may change the number of channels."""
    c_out = planes * block.expansion
    return nn.Sequential(*[block(c_in if k == 0 else c_out, planes) for k in range(count)])


def make_fuse_layer(channels, source, target):
    """Return f_ij: what brings branch j = `source` to the channels and the size of branch i = `target`."""
    if source == target:
        return nn.Identity()
    if source > target:  # coarser: fewer channels, then enlarged
        scale = 2 ** (source - target)
        return nn.Sequential(*conv_bn(channels[source], channels[target], kernel=1),
                             nn.Upsample(scale_factor=scale, mode="nearest"))
    # Finer: halved step by step. The last step changes the channels and has no ReLU, because the sum is rectified.
    steps = [conv_bn_relu(channels[source], channels[source], stride=2) for _ in range(target - source - 1)]
    return nn.Sequential(*steps, nn.Sequential(*conv_bn(channels[source], channels[target], stride=2)))


def make_fuse_layers(channels):
    """Return the table f: row i makes output i, its column j takes branch j; an empty table for a single branch."""
    everyone = range(len(channels)) if len(channels) > 1 else ()
    return nn.ModuleList(nn.ModuleList(make_fuse_layer(channels, source=j, target=i) for j in everyone) for i in everyone)


class HighResolutionModule(nn.Module):
    """One exchange unit: k parallel branches, then y_i = ReLU(sum over j of f_ij(x_j)).

    Takes and returns a list of k tensors, branch b of shape (N, channels[b], H / 2**b, W / 2**b). With a single branch
    there is nothing to exchange, and the branch's own output is returned.
    """

    def __init__(self, block, channels, num_blocks, num_channels):
        super().__init__()
        self.branches = nn.ModuleList(
            make_blocks(block, c_in, planes, count) for c_in, planes, count in zip(channels, num_channels, num_blocks))
        self.fuse_layers = make_fuse_layers(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, inputs):
        branches = [branch(x) for branch, x in zip(self.branches, inputs)]  # each at its own resolution
        if len(branches) == 1:
            return branches
        return [self._exchange(layers, branches) for layers in self.fuse_layers]  # each from all of them

    def _exchange(self, layers, branches):
        """Return y_i for the layers f_i0, f_i1, ... of one output."""
        # The sum is a new tensor, so rectifying it in place leaves the branch that other outputs still need as it is.
        return self.relu(reduce(add, [layer(x) for layer, x in zip(layers, branches)]))


def make_transition(before, now):
    """Return one layer for each branch of the next stage, from the channels `before` and `now` of the branches.

    A branch that stays as it is passes through; one whose channels change gets a 3x3 convolution; a new one comes from the
    coarsest branch before, halved once for each step that it lies below.
    """
    layers = []
    for i, c_out in enumerate(now):
        if i >= len(before):
            c_in, steps = before[-1], i + 1 - len(before)
            widths = [c_in] * steps + [c_out]
            layers.append(nn.Sequential(*[conv_bn_relu(*pair, stride=2) for pair in zip(widths, widths[1:])]))
        elif before[i] != c_out:
            layers.append(conv_bn_relu(before[i], c_out))
        else:
            layers.append(nn.Identity())
    return nn.ModuleList(layers)


def apply_transition(layers, branches):
    """Return the inputs of the next stage: branch i from branch i, a new branch from the last (coarsest) one."""
    sources = branches + branches[-1:] * (len(layers) - len(branches))
    return [layer(x) for layer, x in zip(layers, sources)]


def read_stage(extra, name, keys=("BLOCK", "NUM_MODULES", "NUM_BRANCHES", "NUM_BLOCKS", "NUM_CHANNELS")):
    """Return MODEL.EXTRA's node `name`; raise ValueError where it is missing or describes no network."""
    stage = extra.get(name, {})
    missing = [key for key in keys if not hasattr(stage, key)]
    if missing:
        raise ValueError("MODEL.EXTRA.%s lacks %s" % (name, ", ".join(missing)))
    if stage.BLOCK not in BLOCKS:
        raise ValueError("%s.BLOCK is %r, it should be one of %s" % (name, stage.BLOCK, ", ".join(BLOCKS)))
    if stage.get("FUSE_METHOD", "SUM") != "SUM":
        raise ValueError("%s.FUSE_METHOD is %r, but branches are always added: write SUM" % (name, stage.FUSE_METHOD))
    for key in [key for key in keys if key != "BLOCK"]:
        check_counts(name, key, stage[key])
    return stage


def check_counts(name, key, value):
    """Raise ValueError unless `value` is a positive integer, or for a key of branches a list of them."""
    per_branch = key in ("NUM_BLOCKS", "NUM_CHANNELS")
    counts = value if per_branch and isinstance(value, (list, tuple)) else [value]
    if isinstance(value, (list, tuple)) != per_branch or not all(type(count) is int and count > 0 for count in counts):
        raise ValueError("%s.%s is %r, it should be a positive integer%s"
                         % (name, key, value, " for each branch, in a list" if per_branch else ""))


def check_branches(name, stage):
    """Raise ValueError unless each list of a stage has one entry for each branch."""
    for key in ("NUM_BLOCKS", "NUM_CHANNELS"):
        if len(stage[key]) != stage.NUM_BRANCHES:
            raise ValueError("%s.NUM_BRANCHES is %d, but %s has %d entries"
                             % (name, stage.NUM_BRANCHES, key, len(stage[key])))


class HighResolutionNet(nn.Module):
    """The network that `config.MODEL` describes: (N, 3, H, W) -> logits (N, MODEL.NUM_CLASSES).

    H and W: any sizes that `check_image_size` accepts; they need not be equal. Raises ValueError for a description that is
    no network.
    """

    def __init__(self, config):
        super().__init__()
        extra = config.MODEL.EXTRA
        self.conv1, self.bn1 = conv_bn(3, STEM_CHANNELS, stride=2)
        self.conv2, self.bn2 = conv_bn(STEM_CHANNELS, STEM_CHANNELS, stride=2)
        self.relu = nn.ReLU(inplace=True)
        self.layer1, channels = self._make_layer1(extra)
        self.transition1, self.stage2, channels = self._make_stage(extra, "STAGE2", channels)
        self.transition2, self.stage3, channels = self._make_stage(extra, "STAGE3", channels)
        self.transition3, self.stage4, channels = self._make_stage(extra, "STAGE4", channels)
        self.incre_modules, self.downsamp_modules, self.final_layer = self._make_head(channels)
        self.classifier = nn.Linear(FINAL_CHANNELS, config.MODEL.NUM_CLASSES)

    @staticmethod
    def _make_layer1(extra):
        """Return the blocks of stage 1, which has one branch and so no fusion, and the list of its channels."""
        stage = read_stage(extra, "STAGE1", ("BLOCK", "NUM_BLOCKS", "NUM_CHANNELS"))
        block, planes = BLOCKS[stage.BLOCK], stage.NUM_CHANNELS[0]
        blocks = make_blocks(block, STEM_CHANNELS, planes, stage.NUM_BLOCKS[0])
        return blocks, [planes * block.expansion]

    @staticmethod
    def _make_stage(extra, name, before):
        """Return the transition into a stage, its exchange units in a row, and the list of its channels."""
        stage = read_stage(extra, name)
        check_branches(name, stage)
        block = BLOCKS[stage.BLOCK]
        channels = [planes * block.expansion for planes in stage.NUM_CHANNELS]
        units = [HighResolutionModule(block, channels, stage.NUM_BLOCKS, stage.NUM_CHANNELS)
                 for _ in range(stage.NUM_MODULES)]
        return make_transition(before, channels), nn.Sequential(*units), channels

    @staticmethod
    def _make_head(channels):
        if len(channels) != len(HEAD_CHANNELS):
            raise ValueError("STAGE4.NUM_BRANCHES is %d, but the head takes %d" % (len(channels), len(HEAD_CHANNELS)))
        incre = nn.ModuleList(make_blocks(Bottleneck, c, planes, 1) for c, planes in zip(channels, HEAD_CHANNELS))
        widths = [planes * Bottleneck.expansion for planes in HEAD_CHANNELS]
        downsamp = nn.ModuleList(conv_bn_relu(*pair, stride=2, bias=True) for pair in zip(widths, widths[1:]))
        return incre, downsamp, conv_bn_relu(widths[-1], FINAL_CHANNELS, kernel=1, bias=True)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        branches = [self.layer1(x)]
        branches = self.stage2(apply_transition(self.transition1, branches))
        branches = self.stage3(apply_transition(self.transition2, branches))
        branches = self.stage4(apply_transition(self.transition3, branches))
        x = self.final_layer(self._merge(branches))
        return self.classifier(x.mean(dim=(2, 3)))

    def _merge(self, branches):
        """Head: walk from the finest branch to the coarsest, halving the sum so far at each step."""
        widened = [incre(x) for incre, x in zip(self.incre_modules, branches)]
        merged = widened[0]
        for downsamp, x in zip(self.downsamp_modules, widened[1:]):
            merged = x + downsamp(merged)
        return merged

    def init_weights(self):
        """Draw convolution weights from N(0, 2 / (c_out * k**2)); biases and classifier keep PyTorch's own start."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)


def check_image_size(size):
    """Raise ValueError for an image height or width (pixels) at which branches of different sizes would meet.

    The stem quarters the size, rounding up twice; three more halvings must then be exact for the enlarged coarse branches
    to fit the fine ones.
    """
    quarter = (size + 3) // 4
    if quarter % 8:
        fits = max(32, 32 * round(size / 32.0))
        raise ValueError("an image of %d pixels a side does not fit this network; %d does, and so does any other "
                         "multiple of 32" % (size, fits))


def get_cls_net(config):
    """Return an initialised HighResolutionNet for a config tree (upstream's entry point)."""
    model = HighResolutionNet(config)
    model.init_weights()
    return model

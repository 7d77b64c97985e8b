"""ResNeXt (Xie et al., "Aggregated Residual Transformations", arXiv 1611.05431).

ResNeXt-101 32x48d is the network of the weakly supervised Instagram weights (Mahajan et al., arXiv 1805.00932). The torchvision
that goes with PyTorch 1.5 has no groups in its ResNet, hence this file; names and numbers are torchvision's.
"""
import torch
from torch import nn

EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, grouped 3x3 with the stride, 1x1; the identity is projected where the shape changes."""

    def __init__(self, inputs, planes, stride, groups, base_width, project):
        super().__init__()
        width = int(planes * base_width / 64) * groups
        outputs = planes * EXPANSION
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if project:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + identity)


class ResNeXt(nn.Module):
    """(batch, 3, height, width) to (batch, num_classes) logits. `layers`: the number of blocks of the four stages."""

    def __init__(self, layers, groups, base_width, num_classes=1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = 64
        for stage, blocks in enumerate(layers):
            planes = 64 * 2 ** stage
            self.add_module("layer%d" % (stage + 1), _stage(inputs, planes, blocks, 1 if stage == 0 else 2, groups, base_width))
            inputs = planes * EXPANSION
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _stage(inputs, planes, blocks, stride, groups, base_width):
    outputs = planes * EXPANSION
    first = Bottleneck(inputs, planes, stride, groups, base_width, project=True)
    rest = [Bottleneck(outputs, planes, 1, groups, base_width, project=False) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def resnext101_32x48d(num_classes=1000):
    """Return the network that FixRes calls IGAM_Resnext101_32x48d: 828 million parameters, 3.3 GB in fp32."""
    return ResNeXt([3, 4, 23, 3], groups=32, base_width=48, num_classes=num_classes)

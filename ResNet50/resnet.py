"""The residual networks of torchvision (v1.5: the stride of a bottleneck is in its 3x3 convolution), with its keys.

"Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385. Weights published for torchvision's
networks of the same name load without renaming.
"""
import math

from torch import nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut. Input (N, inputs, H, W), output (N, width, H/stride, W/stride)."""

    expansion = 1

    def __init__(self, inputs, width, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out.add_(x if self.downsample is None else self.downsample(x)))

    @property
    def last_norm(self):
        return self.bn2


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut. Input (N, inputs, H, W), output (N, 4 width, H/stride, W/stride)."""

    expansion = 4

    def __init__(self, inputs, width, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, 4 * width, stride)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out.add_(x if self.downsample is None else self.downsample(x)))

    @property
    def last_norm(self):
        return self.bn3


def _shortcut(inputs, outputs, stride):
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """Input (N, 3, H, W), output logits (N, num_classes)."""

    def __init__(self, block, depths, num_classes=1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(block, 64, 64, depths[0], stride=1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, depths[1], stride=2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, depths[2], stride=2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * block.expansion, num_classes)
        initialize_convolutions(self)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def _stage(block, inputs, width, depth, stride):
    blocks = [block(inputs, width, stride)]
    blocks += [block(width * block.expansion, width) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


def initialize_convolutions(model, mode="fan_out"):
    """He's normal initialisation with the gain of ReLU, https://arxiv.org/abs/1502.01852."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")


def zero_last_gammas(model):
    """Start each residual block as the identity: the weight of its last BatchNorm is 0 (https://arxiv.org/abs/1706.02677)."""
    for module in model.modules():
        if isinstance(module, (BasicBlock, Bottleneck)):
            nn.init.zeros_(module.last_norm.weight)


def normal_classifier(model):
    """Draw the weights of the classifier, the last linear layer (`fc` of a ResNet), as the single-card Ascend recipe does: normal,
    std sqrt(1 / (3 inputs)), He's rule at slope sqrt(5). A network without one stays as it is."""
    for layer in [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]:
        nn.init.kaiming_normal_(layer.weight, a=math.sqrt(5), nonlinearity="leaky_relu")


def resnet18(num_classes=1000):
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes)


def resnet34(num_classes=1000):
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes)


def resnet50(num_classes=1000):
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes)


def resnet101(num_classes=1000):
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes)


def resnet152(num_classes=1000):
    return ResNet(Bottleneck, (3, 8, 36, 3), num_classes)

"""MobileNetV2 (https://arxiv.org/abs/1801.04381) with torchvision's keys: its published weights load without renaming."""
from torch import nn

# Stages, table 2 of the paper: by how much a block widens its input, outputs, blocks, stride of the first.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _unit(inputs, outputs, kernel, stride=1, groups=1):
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Widen, filter each map, narrow without an activation. Input (N, inputs, H, W), output (N, outputs, H/stride, W/stride)."""

    def __init__(self, inputs, outputs, stride, expansion):
        super().__init__()
        width, self.has_shortcut = inputs * expansion, stride == 1 and inputs == outputs
        widen = [_unit(inputs, width, 1)] if expansion > 1 else []
        self.conv = nn.Sequential(*widen, _unit(width, width, 3, stride, groups=width),
                                  nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """Input (N, 3, H, W), output logits (N, num_classes)."""

    def __init__(self, num_classes=1000):
        super().__init__()
        units, inputs = [_unit(3, 32, 3, stride=2)], 32
        for expansion, outputs, blocks, stride in STAGES:
            for block in range(blocks):
                units.append(InvertedResidual(inputs, outputs, 1 if block else stride, expansion))
                inputs = outputs
        self.features = nn.Sequential(*units, _unit(inputs, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))
        for conv in [module for module in self.modules() if isinstance(module, nn.Conv2d)]:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out")
        nn.init.normal_(self.classifier[1].weight, std=0.01)
        nn.init.zeros_(self.classifier[1].bias)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))

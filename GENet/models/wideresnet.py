"""Wide residual network for 32x32 images with a gather-excite operator in every block (WRN-depth-width)."""
import math

import torch.nn as nn
import torch.nn.functional as F

from models.blocks import Stage, conv

IMAGE_SIZE = 32


class WideResNet(nn.Module):
    """WRN-depth-width with gather-excite, for CIFAR.

    depth: 6 * n + 4 with n >= 1 blocks in each of the three stages (10, 16, 22, 28, ...).
    width: factor on the channels 16, 32, 64 of the stages, 1 or more.
    extent, extra_params, mlp: the gather-excite variant. The defaults are the parameter-free GE-theta-minus with global
    extent, which is what upstream's command line gives (its constructor defaults to the opposite).
        GE-theta-minus: neither; GE-theta: extra_params; GE-theta-plus: extra_params and mlp.
    drop_rate: dropout between a block's convolutions, in training only.
    Raises ValueError for a depth, a width or an extent that makes no network.
    """

    def __init__(self, depth=16, width=8, num_classes=10, extent=0, extra_params=False, mlp=False, drop_rate=0.0):
        super().__init__()
        blocks = blocks_per_stage(depth)
        if width < 1:
            raise ValueError("width must be 1 or more, not {}".format(width))
        options = {"extent": extent, "extra_params": extra_params, "mlp": mlp, "drop_rate": drop_rate}
        channels = [16 * width, 32 * width, 64 * width]
        self.conv1 = conv(3, 16, 3, 1, 1)
        self.block1 = Stage(blocks, 16, channels[0], stride=1, side=32, **options)
        self.block2 = Stage(blocks, channels[0], channels[1], stride=2, side=16, **options)
        self.block3 = Stage(blocks, channels[1], channels[2], stride=2, side=8, **options)
        self.bn1 = nn.BatchNorm2d(channels[2])
        self.fc = nn.Linear(channels[2], num_classes)
        self.reset_parameters()

    def reset_parameters(self):
        """Overwrite PyTorch's default initialisation, module by module in the order of registration.

        Convolutions (the depthwise ones too: groups are not divided out): normal with std
        sqrt(2 / (kernel area * out_channels)). The linear weight keeps PyTorch's default, uniform in
        +-1/sqrt(in_features). Creating first and overwriting after draws upstream's numbers for a given seed.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, x):
        """Images (batch, 3, 32, 32), normalised, to logits (batch, num_classes).

        Raises ValueError for another image size: the variants with parameters have kernels as large as the maps of a
        32x32 image, and the parameter-free ones would silently use a part of a larger image.
        """
        if tuple(x.shape[-2:]) != (IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError("GENet takes images of 32x32 pixels, not {}x{}".format(x.shape[-2], x.shape[-1]))
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = F.relu(self.bn1(x), inplace=True)
        return self.fc(x.mean((2, 3)))


def blocks_per_stage(depth):
    """n of depth = 6 * n + 4; raises ValueError where there is no such n >= 1."""
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise ValueError("depth must be 6 * n + 4 with n >= 1, such as 10, 16, 22 or 28, not {}".format(depth))
    return blocks

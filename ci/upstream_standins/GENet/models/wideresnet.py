"""Upstream's names and signature, the port's network."""
import sys

from ports import load

sys.modules["models.blocks"] = load("GENet/models/blocks.py")  # which the port's network imports by this name


class WideResNet(load("GENet/models/wideresnet.py").WideResNet):
    def __init__(self, depth, widen_factor, num_classes=10, extent=0, extra_params=True, mlp=True, dropRate=0.0):
        super().__init__(depth, widen_factor, num_classes, extent, extra_params, mlp, dropRate)

"""Upstream's names and signature, the port's network."""
import importlib.util
import os
import sys

PORT = os.path.join(os.path.dirname(os.path.abspath(__file__)), *[os.pardir] * 4 + ["GENet", "models"])


def _load(name, file):
    spec = importlib.util.spec_from_file_location(name, os.path.join(PORT, file))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_load("models.blocks", "blocks.py")


class WideResNet(_load("port_wideresnet", "wideresnet.py").WideResNet):
    def __init__(self, depth, widen_factor, num_classes=10, extent=0, extra_params=True, mlp=True, dropRate=0.0):
        super().__init__(depth, widen_factor, num_classes, extent, extra_params, mlp, dropRate)

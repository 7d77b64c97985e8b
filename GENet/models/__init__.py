"""Gather-Excite networks for CIFAR."""
from .wideresnet import WideResNet

__all__ = ["WideResNet"]

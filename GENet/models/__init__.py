"""Gather-Excite networks for CIFAR."""
from models.wideresnet import IMAGE_SIZE, WideResNet

__all__ = ["IMAGE_SIZE", "WideResNet"]

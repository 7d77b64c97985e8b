"""Lets scripts import a torchvision whose compiled half does not load beside a CPU build of PyTorch.

The wheels of the registry for x86 are for CUDA. Without their library `import torchvision` stops with "operator
torchvision::nms does not exist", where it registers what the operator does on fake tensors. Declared, it can be imported;
who calls an operator is told that it has no kernel.
"""

import ctypes
import importlib.util
import os
import sys

import torch

_OPERATORS = ("nms", "qnms")
_declared = []  # a Library takes its declarations back when it is collected


def declare_operators():
    """Declares the operators that importing torchvision needs, where it is installed without a library that loads."""
    found = None if "torchvision" in sys.modules else importlib.util.find_spec("torchvision")
    if found is None or not found.origin:
        return
    library = os.path.join(os.path.dirname(found.origin), "_C.so")
    try:
        ctypes.CDLL(library)  # as torchvision does; it registers the operators
    except OSError:
        _declared.append(torch.library.Library("torchvision", "FRAGMENT"))
        for name in _OPERATORS:
            _declared[0].define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

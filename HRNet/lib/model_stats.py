"""Count the parameters and the multiply-adds of a network, with forward hooks."""
import copy
from collections import namedtuple

import torch
import torch.nn as nn


class ModelStats(namedtuple("ModelStats", "parameters multiply_adds calls")):
    """What one forward pass of one image costs.

    parameters: number of trainable and other parameters; multiply_adds: of the convolution and linear weights, without
    biases, normalisation and additions; calls: {name of a layer class: number of its calls}, layers without children only.
    """

    @property
    def giga_multiply_adds(self):
        """Multiply-adds / 1024**3, the unit in which HRNet's tables say GFLOPs."""
        return self.multiply_adds / 1024.0 ** 3

    def summary(self):
        """Return a few lines for a log."""
        counts = ", ".join("%s %d" % item for item in sorted(self.calls.items()))
        return ("Total Parameters: {:,}\n"
                "Total Multiply Adds (for Convolution and Linear Layers only): {:.4f} GFLOPs (/ 1024^3)\n"
                "Number of Layers: {}").format(self.parameters, self.giga_multiply_adds, counts)


def model_stats(model, height, width):
    """Return the ModelStats of one image (3, height, width).

    The pass is made by a copy in evaluation mode, on zeros: the model's mode, its BatchNorm statistics and the random state
    stay as they are. Where PyTorch can, the copy is on the meta device, which knows shapes only and computes nothing.
    """
    try:
        return _trace(copy.deepcopy(model).to("meta"), torch.zeros(1, 3, height, width, device="meta"))
    except (RuntimeError, NotImplementedError):  # older PyTorch: no meta device, or not for every layer
        return _trace(copy.deepcopy(model).cpu().float(), torch.zeros(1, 3, height, width))


def _trace(model, image):
    multiply_adds, calls = [], {}

    def count(module, _, output):
        name = type(module).__name__
        calls[name] = calls.get(name, 0) + 1
        multiply_adds.append(layer_multiply_adds(module, output))

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
    with torch.no_grad():
        model.float().eval()(image)
    return ModelStats(sum(p.numel() for p in model.parameters()), sum(multiply_adds), calls)


def layer_multiply_adds(module, output):
    """Return the multiply-adds of a convolution or linear layer that gave `output` for one image, 0 for other layers."""
    if isinstance(module, nn.Conv2d):
        return module.weight.numel() * output[0, 0].numel()
    if isinstance(module, nn.Linear):
        return module.weight.numel() * (output.numel() // module.out_features)
    return 0

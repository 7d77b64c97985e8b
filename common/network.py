"""What is done to a network before it trains, so that a step costs the device and the host the least; the average of its weights."""
import copy
import os
import shutil

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from common import device as devices, tensors
from common.cli import UserError


def place(model, device, batch=None, side=None, train=nn.Module.train):
    """Move `model` to `device`, with its weights in the layout that is fast there, and return it. Where it is to train, `batch` is the
    number of images of a step on this rank, `side` their size and `train` what sets its mode. Raises UserError where the network cannot
    train on those: rank 0 tries it."""
    if batch and not (dist.is_available() and dist.is_initialized() and dist.get_rank()):
        _try_out(model, batch, side, train)
    model.to(device)
    if devices.memory_format(device) == torch.channels_last:
        model.to(memory_format=torch.channels_last)
    count_batches_at_once(model)
    return model


def _try_out(model, batch, side, train):
    trial = copy.deepcopy(model)
    train(trial)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = trial(torch.zeros(min(batch, 2), 3, side, side))
        why = "" if torch.is_tensor(output) else "it gives a %s, not one tensor" % type(output).__name__
    except (RuntimeError, ValueError, AssertionError) as error:
        why = str(error).split("\n")[0]
        if "alloc" in why:  # is told as memory that is short
            raise
    if batch == 1 and "than 1 value per channel" in why:
        raise UserError("BatchNorm cannot train on a batch of one image of %d pixels, whose last maps have one: there is no variance; take "
                        "a larger batch size for each rank, or a larger image size" % side)
    if why:
        raise UserError("the network cannot train on images of %d x %d pixels: %s" % (side, side, why))


def compile_forward(model, device, mode):
    """Let torch.compile make one graph of what `model` does in training; evaluation, checkpoints and hooks stay as they are.

    `mode`: torch.compile's, or None not to compile. On an NPU the plug-in's own compiler does it. Raises UserError where this PyTorch,
    or this machine, cannot compile.
    """
    if mode is None:
        return
    if not hasattr(torch, "compile"):
        raise UserError("--compile: PyTorch %s has no compiler; PyTorch 2 has" % torch.__version__)
    if device.type == "cpu" and not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        raise UserError("--compile: a CPU needs a C++ compiler, such as g++")
    if device.type == "cpu" and set(" $") & set(torch.__file__):
        raise UserError("--compile: on a CPU, PyTorch's compiler does not work where its path has a blank or a $: %s" % torch.__file__)
    eager = model.forward
    compiler = {"backend": "npu"} if device.type == "npu" else {"mode": mode}
    compiled = torch.compile(eager, fullgraph=True, dynamic=False, **compiler)
    model.forward = lambda images: (compiled if model.training else eager)(images)


class GlobalAverage(nn.Module):
    """The mean of each map: (N, C, H, W) to (N, C, 1, 1). nn.AdaptiveAvgPool2d(1) takes the same mean, and with channels last three
    operators more to give its result strides that say the same."""

    def forward(self, x):
        return x.mean((2, 3), keepdim=True)


def update_average(average, newest, share):
    """Move the network `average` by `share` (0 to 1) towards the network `newest`, parameters and buffers alike; counters are copied."""
    newest, floats, counters = newest.state_dict(), [], []
    for key, value in average.state_dict().items():
        (floats if value.is_floating_point() else counters).append((value, newest[key].to(value.dtype)))
    tensors.each("lerp_", [value for value, _ in floats], [new for _, new in floats], share)
    tensors.each("copy_", [value for value, _ in counters], [new for _, new in counters])


def count_batches_at_once(model):
    """Let the BatchNorms of `model` count their batches in one operator for all instead of one for each."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.momentum is not None]
    counting = []  # the counters of the pass in hand, kept from the layers, which count only what they have

    def before(*_):
        for norm in norms:
            if norm.training and norm.num_batches_tracked is not None:
                counting.append((norm, norm.num_batches_tracked))
                norm.num_batches_tracked = None

    def after(*_):
        for norm, counter in counting:
            norm.num_batches_tracked = counter
        tensors.each("add_", [counter for _, counter in counting], 1)
        del counting[:]

    model.register_forward_pre_hook(before)
    model.register_forward_hook(after)

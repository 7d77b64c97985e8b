"""npu, cuda and cpu behind one small vocabulary.

`kind` is what a user types: npu, gpu (or cuda), cpu, auto. A torch.device is what the code carries.
"""
import os
import random
import sys

import numpy as np
import torch

from common.cli import UserError

KINDS = ("auto", "npu", "gpu", "cuda", "cpu")
_BACKENDS = {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}


def resolve(kind):
    """Return the torch device type for a user's `kind`; auto: npu, else cuda, else cpu.

    Raises UserError where that kind of device is not there.
    """
    wanted = {"gpu": "cuda"}.get(kind, kind)
    if wanted == "auto":
        return next(kind for kind in ("npu", "cuda", "cpu") if count(kind) > 0)
    if wanted not in _BACKENDS:
        raise UserError("--device %s: choose one of %s" % (kind, ", ".join(KINDS)))
    if count(wanted) == 0:
        raise UserError("--device %s: no such device on this machine; --device cpu runs everywhere" % kind)
    return wanted


def pick(kind, index=0):
    """Return the torch.device number `index` of that kind and make it current. Raises UserError where it is absent."""
    device_type = resolve(kind)
    require(device_type, [index])
    device = torch.device(device_type, index) if device_type != "cpu" else torch.device("cpu")
    set_current(device)
    return device


def require(device_type, indices):
    """Raise UserError unless every device of `indices` exists. A CPU takes any number of ranks."""
    available = count(device_type)
    if device_type != "cpu" and max(indices) >= available:
        raise UserError("device %d was asked for, but this machine has %d %s device(s); name those to use with --device_list "
                        "(or --device_id for one)" % (max(indices), available, device_type))


def count(device_type):
    """Return how many devices of a torch device type are there (cpu: 1)."""
    if device_type == "cpu":
        return 1
    api = _api(device_type)
    return api.device_count() if api is not None and api.is_available() else 0


def _api(device_type):
    """Return torch.npu or torch.cuda, or None where it is not installed."""
    if device_type == "npu" and not hasattr(torch, "npu"):  # PyTorch 1.5's Ascend build has torch.npu built in
        try:
            import torch_npu  # noqa: F401  (registers torch.npu)
        except ImportError:
            return None
    return getattr(torch, device_type, None)


def set_current(device):
    """Make `device` current and set the options that its speed depends on."""
    if device.type == "cpu":
        return
    api = _api(device.type)
    api.set_device(device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # shapes are fixed, so the search pays
        return
    npu_modes(device)
    # Let Python run ahead of the device.
    os.environ.setdefault("TASK_QUEUE_ENABLE", "1")


def npu_modes(device, graph_mode=False, private_formats=True):
    """Set how an NPU executes; does nothing on other devices, and leaves out what a plug-in does not have."""
    if device.type != "npu":
        return
    api = _api("npu")
    # Use the precompiled operators: compiling each shape on line makes the first steps take minutes.
    if hasattr(api, "set_compile_mode"):
        api.set_compile_mode(jit_compile=False)
    # The device's private formats save a transposition in every convolution.
    if hasattr(api, "config"):  # its allow_internal_format can be set, not read
        api.config.allow_internal_format = private_formats
    if graph_mode and hasattr(api, "enable_graph_mode"):
        api.enable_graph_mode()


def seed(value, device):
    """Seed Python, NumPy and PyTorch (CPU and device)."""
    random.seed(value)
    np.random.seed(value % 2 ** 32)
    seed_torch(value, device)


def seed_torch(value, device):
    """Seed PyTorch alone (CPU and device)."""
    torch.manual_seed(value)
    if device.type == "npu":  # torch.manual_seed reaches CUDA by itself, the NPU only in newer plug-ins
        _api("npu").manual_seed_all(value)


def synchronize(device):
    """Wait until everything queued on the device has been done."""
    if device.type != "cpu":
        _api(device.type).synchronize()


def peak_memory(device):
    """Return the largest number of bytes that tensors have taken on the device, None on a CPU."""
    return _api(device.type).max_memory_allocated() if device.type != "cpu" else None


def backend(device_type):
    """Return the name of the collective library of a device type: hccl, nccl or gloo."""
    return _BACKENDS[device_type]


def import_torchvision():
    """Import torchvision where its compiled part does not load, and return the module.

    The wheels on PyPI hold operators for CUDA. Beside a CPU or NPU build of torch they do not load, and registering the
    meta kernel of an operator that was never declared then stops the import with "operator torchvision::nms does not
    exist". Declaring the operators first is enough; nothing in classification calls them.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        global _declarations  # a Library takes its declarations back when it is collected
        _declarations = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            _declarations.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision

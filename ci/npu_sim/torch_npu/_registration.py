"""Makes PyTorch know the device: torch.npu, Tensor.npu(), hccl, and what must happen when the process ends."""

import atexit
import sys

import torch
from torch.utils.checkpoint import DefaultDeviceType

from torch_npu import _C, _clock, _faults, _overflow, _report, _sync_batch_norm, distributed


def register(npu):
    """`npu` is the module that becomes torch.npu. Called once, after the backend has its name."""
    torch._register_device_module("npu", npu)
    torch.utils.generate_methods_for_privateuse1_backend(
        for_tensor=True, for_module=True, for_storage=True,
        unsupported_dtype=[torch.quint8, torch.quint4x2, torch.quint2x4, torch.qint32, torch.qint8])
    npu._make_default_generators()
    _sync_batch_norm.register()
    distributed._register()
    _clock.start()
    _overflow.register()
    _faults.start()
    _report.start()
    DefaultDeviceType.set_device_type("npu")  # for torch.utils.checkpoint
    # Models here run without apex: PyTorch's own autocast and GradScaler are what the device offers.
    sys.modules.setdefault("apex", None)
    atexit.register(_leave)


def _leave():
    if not torch.npu._is_in_bad_fork():
        _report.finish()
    _C._sim_drain_autograd_threads()  # last: it runs operators of its own

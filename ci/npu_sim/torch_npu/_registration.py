"""Makes PyTorch know the device: torch.npu, Tensor.npu(), hccl, and what must happen when the process ends."""

import atexit
import json
import os
import sys

import torch
from torch.utils.checkpoint import DefaultDeviceType

from torch_npu import _C, _clock, _faults, _overflow, _sync_batch_norm, distributed


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
    DefaultDeviceType.set_device_type("npu")  # for torch.utils.checkpoint
    # Models here run without apex: PyTorch's own autocast and GradScaler are what the device offers.
    sys.modules.setdefault("apex", None)
    atexit.register(_leave)


def _leave():
    directory = os.environ.get("NPU_SIM_REPORT")
    if directory and not torch.npu._is_in_bad_fork():
        _write_report(directory)
    _C._sim_drain_autograd_threads()  # last: it runs operators of its own


def _write_report(directory):
    """What this process did on its NPUs, as `directory`/<process id>.json: for tests that must know it was there."""
    peaks = [_C._sim_memory(device)[1] for device in range(_C._npu_getDeviceCount())]
    report = {"arguments": sys.argv, "operators": _C._sim_op_counts(), "peak_memory_bytes": peaks}
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, f"{os.getpid()}.json"), "w") as handle:
        json.dump(report, handle, indent=1)

"""Devices and streams of torch.npu."""

import math
import warnings

import torch

from torch_npu import _C, _overflow, _settings
from torch_npu.npu import streams as _streams


def _get_device_index(device, optional=True):
    """The index of an int, "npu:1", torch.device or npu.device; None and "npu" are the current device."""
    if device is None:
        return current_device()
    if isinstance(device, int):
        return device
    if isinstance(device, _Device):
        return device.idx
    device = torch.device(device)
    if device.type != "npu":
        raise ValueError(f"Expected a npu device, but got: {device}")
    return current_device() if device.index is None else device.index


def _checked_index(device):
    index = _get_device_index(device)
    if not 0 <= index < _C._npu_getDeviceCount():
        raise AssertionError(f"Invalid device id: {index} (this process sees {_C._npu_getDeviceCount()} NPUs)")
    return index


def current_device():
    torch.npu._lazy_init()
    return _C._npu_getDevice()


def set_device(device):
    index = _get_device_index(device)
    if index >= 0:
        torch.npu._lazy_init()
        _C._npu_setDevice(index)


def synchronize(device=None):
    torch.npu._lazy_init()
    _C._sim_wait_for_device("synchronize", _checked_index(device))


class device:
    """Context manager: makes a device the current one. None and negative indices change nothing."""

    def __init__(self, device):
        self.idx = -1 if device is None else _get_device_index(device)
        self.prev_idx = -1

    def __enter__(self):
        if self.idx >= 0:
            self.prev_idx = current_device()
            set_device(self.idx)

    def __exit__(self, *exception):
        if self.idx >= 0:
            _C._npu_setDevice(self.prev_idx)
        return False


_Device = device  # "device" is also the name of arguments here


class device_of(device):
    """Context manager: makes the device of a tensor or storage the current one, if it is an NPU."""

    def __init__(self, obj):
        super().__init__(obj.get_device() if obj.is_npu else None)


def get_soc_version():
    return 221  # Ascend910B2


def is_support_inf_nan():
    """False in the saturating mode of fp16."""
    torch.npu._lazy_init()
    return not _settings.saturates()


def get_npu_overflow_flag():
    """Whether something overflowed on the current device since the flag was cleared; RuntimeError in INF_NAN mode."""
    if is_support_inf_nan():
        raise RuntimeError("Unsupported api when soc_version >= Ascend910B1, please use npu_check_overflow")
    return bool(_overflow.npu_get_float_status(torch.zeros(8).npu()).cpu()[0] != 0)


def clear_npu_overflow_flag():
    if is_support_inf_nan():
        warnings.warn("When soc_version >= Ascend910B1, clear_npu_overflow_flag is useless. Please remove it.")
        return
    _overflow.npu_clear_float_status(torch.zeros(8).npu())


def npu_check_overflow(grad):
    """In INF_NAN mode, whether the sum of a tensor (or a float) is infinite or NaN; else the flag, which it clears."""
    if is_support_inf_nan():
        return not math.isfinite(float(grad.float().sum()) if isinstance(grad, torch.Tensor) else grad)
    overflowed = get_npu_overflow_flag()
    if overflowed:
        clear_npu_overflow_flag()
    return overflowed


def is_bf16_supported():
    return True


def current_stream(device=None):
    return _streams._as_npu_stream(torch._C._accelerator_getStream(_checked_index(device)))


def default_stream(device=None):
    index = _checked_index(device)
    return _streams.Stream(stream_id=0, device_index=index, device_type=current_stream(index).device_type)


def set_stream(stream):
    if stream is not None:
        torch._C._accelerator_setStream(stream)


class StreamContext:
    """Context manager: makes a stream the current one; None changes nothing."""

    def __init__(self, stream_ctx):
        self.stream = stream_ctx

    def __enter__(self):
        if self.stream is not None:
            self._previous = current_stream()
            set_stream(self.stream)

    def __exit__(self, *exception):
        if self.stream is not None:
            set_stream(self._previous)


def stream(stream):
    return StreamContext(stream)

"""Memory of torch.npu: bytes held by NPU tensors. There is no cache, so reserved is allocated."""

import torch

from torch_npu import _C


def _index(device):
    return torch.npu._get_device_index(device)


def memory_allocated(device=None):
    return _C._sim_memory(_index(device))[0]


def max_memory_allocated(device=None):
    return _C._sim_memory(_index(device))[1]


def memory_reserved(device=None):
    return memory_allocated(device)


def max_memory_reserved(device=None):
    return max_memory_allocated(device)


def memory_stats(device=None):
    allocated, peak, _ = _C._sim_memory(_index(device))
    return {f"{kind}_bytes.all.{figure}": value for kind in ("allocated", "reserved")
            for figure, value in (("current", allocated), ("peak", peak))}


def memory_summary(device=None, abbreviated=False):
    return "\n".join(f"{name}: {value}" for name, value in memory_stats(device).items())


def reset_peak_memory_stats(device=None):
    _C._sim_reset_peak_memory(_index(device))


def reset_max_memory_allocated(device=None):
    reset_peak_memory_stats(device)


def empty_cache():
    pass

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


_COUNTS, _BYTES = ("allocation", "segment", "active"), ("allocated_bytes", "reserved_bytes", "active_bytes")
_NEVER = ("inactive_split", "inactive_split_bytes")  # blocks are not divided
_OVERSIZE = ("oversize_allocations", "oversize_segments")


def memory_stats_as_nested_dict(device=None):
    """{statistic: {pool: {"current", "peak", "allocated", "freed"}}}, and single numbers; a block of 1 MiB is "large"."""
    blocks, sizes, ooms = _C._sim_memory_stats(_index(device))
    none = dict.fromkeys(("current", "peak", "allocated", "freed"), 0)
    stats = {name: blocks for name in _COUNTS}
    stats.update((name, sizes) for name in _BYTES)
    stats.update((name, dict.fromkeys(blocks, none)) for name in _NEVER)
    stats.update((name, none) for name in _OVERSIZE)
    return dict(stats, num_alloc_retries=0, num_ooms=ooms, max_split_size=-1)


def memory_stats(device=None):
    """The same with one key for each number, such as "allocated_bytes.all.peak"."""
    return dict(sorted(_flat("", memory_stats_as_nested_dict(device))))


def _flat(prefix, value):
    if not isinstance(value, dict):
        return [(prefix, value)]
    return [pair for name in value for pair in _flat(f"{prefix}.{name}" if prefix else name, value[name])]


def memory_summary(device=None, abbreviated=False):
    return "\n".join(f"{name}: {value}" for name, value in memory_stats(device).items())


def reset_peak_memory_stats(device=None):
    _C._sim_reset_peak_memory(_index(device))


def reset_accumulated_memory_stats(device=None):
    _C._sim_reset_accumulated_memory(_index(device))



reset_max_memory_allocated = reset_max_memory_cached = reset_peak_memory_stats
memory_cached, max_memory_cached = memory_reserved, max_memory_reserved


def empty_cache():
    pass

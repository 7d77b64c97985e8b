"""torch_npu.distributed: the backend 'hccl' for torch.distributed."""

import torch.distributed as dist

from torch_npu import _C, _settings, _steps

__all__ = ["is_hccl_available"]


def is_available():
    return dist.is_available()


def is_hccl_available():
    return True


def _create_process_group(options, process_group_options=None):
    _steps.found_rank(options.group_rank, options.group_size)
    timeout = _settings.execution_timeout(options.timeout)
    gloo = dist.ProcessGroupGloo(options.store, options.group_rank, options.group_size, timeout)
    return _C.ProcessGroupHCCL(gloo, options.store, _settings.npu_names(), int(timeout.total_seconds() * 1e3))


def _register():
    dist.Backend.register_backend("hccl", _create_process_group, extended_api=True, devices=["npu"])
    dist.is_hccl_available = is_hccl_available

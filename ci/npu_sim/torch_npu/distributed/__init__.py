"""torch_npu.distributed: the backend 'hccl' for torch.distributed."""

import types

import torch.distributed as dist

from torch_npu import _C, _names, _settings, _steps

__all__ = ["is_hccl_available"]
__getattr__ = _names.getter(__name__)


def is_available():
    return dist.is_available()


def is_hccl_available():
    return True


class _Options:
    """ProcessGroupHCCL.Options: what new_group(pg_options=) takes. Its settings have no effect."""

    backend = "hccl"

    def __init__(self, is_high_priority_stream=False):
        self.is_high_priority_stream = is_high_priority_stream
        self.hccl_config, self.op_timeout, self.global_ranks_in_group, self.group_id = {}, None, [], ""


def _create_process_group(options, process_group_options=None):
    _steps.found_rank(options.group_rank, options.group_size)
    timeout = _settings.execution_timeout(options.timeout)
    gloo = dist.ProcessGroupGloo(options.store, options.group_rank, options.group_size, timeout)
    return _C.ProcessGroupHCCL(gloo, options.store, _settings.npu_names(), int(timeout.total_seconds() * 1e3))


def _register():
    dist.Backend.register_backend("hccl", _create_process_group, extended_api=True, devices=["npu"])
    dist.is_hccl_available = is_hccl_available
    _C.ProcessGroupHCCL.Options = _Options
    _C._distributed_c10d = types.SimpleNamespace(ProcessGroupHCCL=_C.ProcessGroupHCCL)

"""torch.npu: the functions of the real module that a training script calls, under their real names.

ci/test_npu_sim_names.py holds the names against the real package; ../../README.md says what is not simulated.
"""

import os
import warnings
from multiprocessing.util import register_after_fork

from torch_npu import _C, _names

default_generators = ()
_initialized = False
_initialized_in = None  # process id
_in_bad_fork = False


def _make_default_generators():
    global default_generators
    default_generators = tuple(_C._npu_getDefaultGenerator(i) for i in range(device_count()))


def is_available():
    return device_count() > 0


def device_count():
    return _C._npu_getDeviceCount()


def is_initialized():
    return _initialized and not _in_bad_fork


def init():
    _lazy_init()


def _lazy_init():
    global _initialized, _initialized_in
    if _initialized:
        return
    _C._npu_init()  # raises in a forked child of a process that has used an NPU
    _initialized, _initialized_in = True, os.getpid()


def _lazy_call(callback):
    callback()


def _is_in_bad_fork():
    return _in_bad_fork


def _after_fork(_):
    global _initialized, _in_bad_fork
    if _initialized and _initialized_in != os.getpid():
        _initialized, _in_bad_fork = False, True


register_after_fork(_after_fork, _after_fork)

from torch_npu.npu import amp, autocast_utils, memory, npu_config, random, streams, utils
from torch_npu.npu.autocast_utils import (
    get_amp_supported_dtype,
    get_autocast_dtype,
    is_autocast_enabled,
    set_autocast_dtype,
    set_autocast_enabled,
)
from torch_npu.npu.memory import (
    empty_cache,
    max_memory_allocated,
    max_memory_cached,
    max_memory_reserved,
    memory_allocated,
    memory_cached,
    memory_reserved,
    memory_stats,
    memory_stats_as_nested_dict,
    memory_summary,
    reset_accumulated_memory_stats,
    reset_max_memory_allocated,
    reset_max_memory_cached,
    reset_peak_memory_stats,
)
from torch_npu.npu.npu_config import is_jit_compile_false, set_compile_mode, set_option
from torch_npu.npu.random import (
    get_rng_state,
    get_rng_state_all,
    initial_seed,
    manual_seed,
    manual_seed_all,
    seed,
    seed_all,
    set_rng_state,
    set_rng_state_all,
)
from torch_npu.npu.streams import Event, Stream
from torch_npu.npu.utils import (
    StreamContext,
    _checked_index,
    _get_device_index,
    clear_npu_overflow_flag,
    current_device,
    current_stream,
    default_stream,
    device,
    device_of,
    get_npu_overflow_flag,
    get_soc_version,
    is_bf16_supported,
    set_device,
    set_stream,
    stream,
    synchronize,
)


def get_device_name(device_name=None):
    _checked_index(device_name)
    return "Ascend910B2"


class _DeviceProperties:
    def __init__(self, index):
        self.name = get_device_name(index)
        self.total_memory = _C._sim_memory(index)[2]

    def __repr__(self):
        return f"_NPUDeviceProperties(name='{self.name}', total_memory={self.total_memory >> 20}MB)"


def get_device_properties(device_name=None):
    return _DeviceProperties(_checked_index(device_name))


def get_device_capability(device=None):
    warnings.warn("get_device_capability says nothing about an NPU and returns None")


def mem_get_info(device=None):
    """(free bytes, total bytes)."""
    allocated, _, total = _C._sim_memory(_get_device_index(device))
    return total - allocated, total


config = npu_config._Config()
matmul = npu_config._AllowHf32(False)
conv = npu_config._AllowHf32(True)


def can_device_access_peer(device_id, peer_device_id):
    """True for two different NPUs, which are all of one host here."""
    return _checked_index(device_id) != _checked_index(peer_device_id)


def is_current_stream_capturing():
    return False  # there are no graphs


__getattr__ = _names.getter(__name__)

"""Lets a script that is written for CUDA run on the NPU: torch.cuda and the device "cuda" become torch.npu and "npu".

Off unless NPU_SIM_TRANSFER=1, because it hides the very mistakes that the simulator is there for. It replaces what training
scripts use of what the real module replaces: not the profiler, graphs, torch.compile, nor single functions of libraries.
"""

import functools as _functools
import types as _types
import warnings

import torch
import torch.distributed.fsdp
import torch.utils._device
import torch_npu
from torch_npu import _settings

if not _settings.transfer():
    raise ImportError("torch_npu.contrib.transfer_to_npu is not simulated by default, because it hides CUDA calls: write the NPU "
                      "code out, or set NPU_SIM_TRANSFER=1 (see ci/npu_sim/README.md)")

device_kwargs_list = ["device", "device_type", "map_location", "device_id"]
_NOT_REPLACED = {"asarray", "empty_permuted", "sparse_bsc_tensor", "sparse_bsr_tensor", "sparse_csc_tensor"}  # by the real module
_constructors = {function.__name__ for function in torch.utils._device._device_constructors()}
torch_fn_white_list = sorted(_constructors - _NOT_REPLACED) + [
    "empty_like", "frombuffer", "full_like", "from_file", "get_device_module", "load", "normal", "ones_like", "rand_like",
    "randint_like", "randn_like", "set_default_device", "zeros_like"]
torch_tensor_fn_white_list = [
    "new_empty", "new_empty_strided", "new_full", "new_ones", "new_tensor", "new_zeros", "pin_memory", "to"]
torch_module_fn_white_list = ["to", "to_empty"]
torch_cuda_fn_white_list = [
    "current_stream", "default_stream", "get_device_capability", "get_device_name", "get_device_properties", "get_rng_state",
    "max_memory_allocated", "max_memory_reserved", "mem_get_info", "memory_allocated", "memory_reserved", "memory_stats",
    "memory_summary", "reset_max_memory_allocated", "reset_peak_memory_stats", "set_device", "set_rng_state", "synchronize"]
torch_distributed_fn_white_list = ["__init__"]


def _npu(value, numbers=False):
    """The value with "cuda" replaced by "npu": in a text, a device, and a dictionary as map_location takes one. A number
    is an NPU's where `numbers` is true. Texts are replaced whatever they mean, as by the real module."""
    if isinstance(value, str):
        return value.replace("cuda", "npu")
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("npu" if value.index is None else f"npu:{value.index}")
    if type(value) is dict:
        return {key: _npu(item) for key, item in zip(map(_npu, value), value.values())}
    return f"npu:{value}" if numbers and type(value) is int else value


def _on_npu(function):
    """The function with the devices among its arguments replaced."""
    numbers = function.__name__ in torch_module_fn_white_list

    @_functools.wraps(function)
    def wrapper(*args, **kwargs):
        args = [_npu(value, numbers) for value in args]
        for name in set(device_kwargs_list).intersection(kwargs):
            kwargs[name] = _npu(kwargs[name], numbers=True)
        if isinstance(kwargs.get("device_ids"), (list, tuple)):
            kwargs["device_ids"] = [_npu(device) for device in kwargs["device_ids"]]
        return function(*args, **kwargs)

    return wrapper


def _on_hccl(function):
    """The function with devices and backends among its arguments replaced."""
    @_functools.wraps(function)
    def wrapper(*args, **kwargs):
        if "backend" in kwargs:
            kwargs["backend"] = _hccl(kwargs["backend"])
        return _on_npu(function)(*map(_hccl, args), **kwargs)

    return wrapper


def _hccl(value):
    return _npu(value).replace("nccl", "hccl") if isinstance(value, str) else value


def _replace(owner, names, wrap=_on_npu):
    for name in names:
        if hasattr(owner, name):
            setattr(owner, name, wrap(getattr(owner, name)))


def _replace_cuda():
    """torch.cuda stays the module that scripts may have imported names from; its contents become torch.npu's."""
    for source, target in ((torch.npu, torch.cuda), (torch.npu.amp, torch.cuda.amp), (torch.npu.random, torch.cuda.random)):
        for name in dir(source):
            if not name.startswith("_") and not isinstance(getattr(source, name), _types.ModuleType):
                setattr(target, name, getattr(source, name))
    _replace(torch.cuda, torch_cuda_fn_white_list)
    torch.cuda.device.__init__ = _on_npu(torch.cuda.device.__init__)
    torch.cuda.amp.autocast_mode = torch_npu.npu.amp.autocast_mode
    torch.cuda.amp.common.amp_definitely_not_available = lambda: not torch.npu.is_available()
    if hasattr(torch.npu, "FloatTensor"):
        torch.cuda.DoubleTensor = torch.npu.FloatTensor


class _GeneratorType(type(torch.Generator)):
    def __instancecheck__(cls, instance):
        return isinstance(instance, cls.__mro__[1])


class _Generator(torch.Generator, metaclass=_GeneratorType):
    def __new__(cls, device="cpu"):
        return super().__new__(cls, _npu(device))


def _replace_autocast():
    enabled, set_enabled = _on_npu(torch.is_autocast_enabled), _on_npu(torch.set_autocast_enabled)
    torch.is_autocast_enabled = lambda device_type="npu": enabled(device_type)
    torch.set_autocast_enabled = lambda *args: set_enabled(*(["npu", *args] if len(args) == 1 else args))
    torch.get_autocast_gpu_dtype = torch.npu.get_autocast_dtype
    torch.set_autocast_gpu_dtype = torch.npu.set_autocast_dtype
    _replace(torch, ("get_autocast_dtype", "set_autocast_dtype"))
    _replace(torch.amp.autocast_mode.autocast, ("__init__",))
    _replace(torch.amp, ("custom_fwd", "custom_bwd"))


def _replace_distributed():
    dist = torch.distributed
    _replace(dist, ("init_process_group",), _on_hccl)
    _replace(dist.distributed_c10d, ("_new_group_with_tag",), _on_hccl)  # of dist.new_group
    dist.is_nccl_available = dist.is_hccl_available
    dist.Backend.default_device_backend_map.pop("cuda", None)
    for owner in (torch.nn.parallel.DistributedDataParallel, dist.fsdp.FullyShardedDataParallel, dist.device_mesh.DeviceMesh):
        _replace(owner, torch_distributed_fn_white_list)
    _replace(dist.device_mesh, ("init_device_mesh",))


def _init():
    warnings.warn("torch.cuda, the device 'cuda' and the backend 'nccl' now stand for torch.npu, 'npu' and 'hccl'; "
                  "torch.jit.script is disabled", ImportWarning)
    _replace_cuda()
    _replace(torch, torch_fn_white_list)
    _replace(torch.fft, ("fftfreq", "rfftfreq"))
    _replace(torch.Tensor, torch_tensor_fn_white_list)
    _replace(torch.nn.Module, torch_module_fn_white_list)
    _replace(torch.utils._device.DeviceContext, ("__init__",))
    torch.Tensor.cuda, torch.Tensor.is_cuda, torch.nn.Module.cuda = torch.Tensor.npu, torch.Tensor.is_npu, torch.nn.Module.npu
    torch.Generator = _Generator
    _replace_autocast()
    _replace_distributed()
    torch.jit.script = lambda obj, *args, **kwargs: obj
    torch.jit.script_method = lambda function: function


_init()

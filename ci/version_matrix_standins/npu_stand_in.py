"""Stands in for an Ascend build of PyTorch where there is none, as soon as a process has imported torch (sitecustomize.py).

What is called `npu` here is the CPU's memory and arithmetic: names, signatures and the order of calls are proved, not numbers.
With NPU_BUILT_IN=1 torch.npu is there from the start (PyTorch 1.5), otherwise `import torch_npu` brings it (from 1.8 on).
Each call is a line in the file that STANDIN_CALLS names.
"""
import collections
import contextlib
import functools
import os
import time
import types

import torch
import torch.distributed
import torch.nn.parallel

RealDevice = torch.device
DEVICES = 8


def note(*words):
    """Add one line to the record of calls."""
    with open(os.environ["STANDIN_CALLS"], "a") as stream:
        stream.write(" ".join(str(word) for word in words) + "\n")


class Npu(collections.namedtuple("Npu", "type index")):
    def __str__(self):
        return "npu:%d" % self.index


class _IsDevice(type):
    def __instancecheck__(cls, value):
        return isinstance(value, (RealDevice, Npu))


class Device(metaclass=_IsDevice):
    """torch.device, which knows the type `npu` too."""

    def __new__(cls, kind, *index):
        if isinstance(kind, Npu):
            return kind
        if str(kind).split(":")[0] != "npu":
            return RealDevice(kind, *index)
        return Npu("npu", index[0] if index else int((str(kind) + ":0").split(":")[1]))


def _on_cpu(value):
    is_npu = isinstance(value, Npu) or (isinstance(value, str) and value.split(":")[0] == "npu")
    return RealDevice("cpu") if is_npu else value


def takes_npus(function):
    """Return `function` with every npu among its arguments replaced by the CPU."""
    @functools.wraps(function)
    def call(*args, **kwargs):
        return function(*[_on_cpu(value) for value in args], **{name: _on_cpu(value) for name, value in kwargs.items()})
    return call


def _hccl(init_process_group):
    @functools.wraps(init_process_group)
    def call(backend, *args, **kwargs):
        note("init_process_group", backend)
        return init_process_group({"hccl": "gloo"}[backend], *args, **kwargs)
    return call


def _with_device_ids(init):
    @functools.wraps(init)
    def call(self, module, device_ids=None, **kwargs):
        note("DistributedDataParallel", device_ids)
        init(self, module, **kwargs)
    return call


class Stream(object):
    """A stream of a device that does everything at once."""

    def __init__(self, device=None):
        pass

    def record_event(self, event=None):
        return event

    def wait_event(self, event):
        pass


class Event(object):
    """A moment of a stream: that of the call."""

    def __init__(self, enable_timing=False):
        self._time = time.perf_counter()

    def elapsed_time(self, later):
        return 1000 * (later._time - self._time)


def _prepare_torch():
    torch.device = Device
    for name in ("tensor", "as_tensor", "zeros", "ones", "full", "empty", "arange", "rand", "randn", "randint", "randperm", "load"):
        setattr(torch, name, takes_npus(getattr(torch, name)))
    torch.Tensor.to = takes_npus(torch.Tensor.to)
    torch.Tensor.pin_memory = lambda self, device=None: self  # the loader may ask for the device's own, from 1.12 to 2.6
    torch.nn.Module.to = takes_npus(torch.nn.Module.to)
    torch.distributed.init_process_group = _hccl(torch.distributed.init_process_group)
    parallel = torch.nn.parallel.DistributedDataParallel
    parallel.__init__ = _with_device_ids(parallel.__init__)


def install_npu():
    """Make torch.npu: what both the build for 1.5 and the plug-in have of it."""
    npu = types.ModuleType("torch.npu")
    current = [0]

    def set_device(device):
        current[0] = Device(device).index if isinstance(device, (str, Npu)) else int(device)
        assert 0 <= current[0] < DEVICES
        note("npu.set_device", current[0])

    npu.is_available = lambda: True
    npu.device_count = lambda: DEVICES
    npu.current_device = lambda: current[0]
    npu.set_device = set_device
    npu.synchronize = lambda device=None: None
    npu.manual_seed = npu.manual_seed_all = lambda seed: note("npu.manual_seed_all", int(seed))
    npu.max_memory_allocated = npu.memory_allocated = lambda device=None: 1 << 20
    npu.empty_cache = npu.enable_graph_mode = lambda: None
    npu.Stream = npu.current_stream = Stream
    npu.Event = Event
    npu.stream = contextlib.contextmanager(lambda stream: iter([None]))
    torch.npu = npu


_prepare_torch()
if os.environ.get("NPU_BUILT_IN") == "1":
    install_npu()

"""Makes PyTorch know the device: torch.npu, Tensor.npu(), hccl, and what must happen when the process ends."""

import atexit
import functools

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
    _refuse_inductor()
    atexit.register(_leave)


def _refuse_inductor():
    """torch.compile's own compiler has no code for this device, and would say so from its depths."""
    wrapper = torch._TorchCompileInductorWrapper
    compile_graph = wrapper.__call__

    @functools.wraps(compile_graph)
    def checked(self, graph, inputs):
        if any(isinstance(value, torch.Tensor) and value.is_npu for value in [*inputs, *graph.parameters(), *graph.buffers()]):
            raise NotImplementedError("torch.compile with the backend 'inductor' is not simulated for NPUs; the backends 'eager' "
                                      "and 'aot_eager' are, and compile nothing (see ci/npu_sim/README.md)")
        return compile_graph(self, graph, inputs)

    wrapper.__call__ = checked


def _leave():
    if not torch.npu._is_in_bad_fork():
        _report.finish()
    _C._sim_drain_autograd_threads()  # last: it runs operators of its own

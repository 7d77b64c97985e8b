"""The vendor's fused optimizers, which are torch_npu.optim's."""

from torch_npu.optim import (
    NpuFusedAdadelta,
    NpuFusedAdam,
    NpuFusedAdamW,
    NpuFusedLamb,
    NpuFusedRMSprop,
    NpuFusedRMSpropTF,
    NpuFusedSGD,
)

__all__ = ["NpuFusedAdadelta", "NpuFusedAdam", "NpuFusedAdamW", "NpuFusedLamb", "NpuFusedRMSprop", "NpuFusedRMSpropTF", "NpuFusedSGD"]


def __getattr__(name):
    raise AttributeError(f"module 'apex.optimizers' has no attribute {name!r}: the simulator's stand-in has {', '.join(__all__)}")

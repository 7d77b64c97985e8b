"""torch_npu.optim: the fused optimizers, as PyTorch's own with the rules of the fused ones."""

from torch_npu import _names
from torch_npu.optim._fused import (
    NpuFusedAdadelta,
    NpuFusedAdam,
    NpuFusedAdamW,
    NpuFusedLamb,
    NpuFusedOptimizerBase,
    NpuFusedRMSprop,
    NpuFusedRMSpropTF,
    NpuFusedSGD,
)

__all__ = ["NpuFusedOptimizerBase", "NpuFusedSGD", "NpuFusedAdadelta", "NpuFusedLamb", "NpuFusedAdam", "NpuFusedAdamW",
           "NpuFusedRMSprop", "NpuFusedRMSpropTF"]
__getattr__ = _names.getter(__name__)

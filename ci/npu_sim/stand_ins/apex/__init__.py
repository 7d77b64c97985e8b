"""A small stand-in for the vendor's apex, for scripts that import it: apex.amp and apex.optimizers, with real arithmetic.

On the search path where NPU_SIM_APEX=1. What of apex it has: ../../README.md.
"""

from apex import amp, optimizers

__all__ = ["amp", "optimizers"]


def __getattr__(name):
    raise AttributeError(f"module 'apex' has no attribute {name!r}: the simulator's stand-in has amp and optimizers "
                         "(see ci/npu_sim/README.md)")

"""Where a training is: its step, the phase of it, and the rank of the process.

A step is what happens between two calls of an optimizer's step(), this one included; what comes before the first call is
step 1. A step that a GradScaler skips does not end one, and two optimizers that take turns make two.
"""

import os

from torch.optim import optimizer as _optimizer

from torch_npu import _C

_callbacks = []
_done = 0
_hooked = False
_rank = int(os.environ["RANK"]) if os.environ.get("RANK", "").isdigit() else None
_ranks = int(os.environ["WORLD_SIZE"]) if os.environ.get("WORLD_SIZE", "").isdigit() else 1


def on_begin(callback):
    """`callback(step)` is called at once for the step that the process is in, and when each later one begins.

    It is called again for the same step when the rank of the process becomes known.
    """
    global _hooked
    if not _hooked:
        _hooked = True
        _optimizer.register_optimizer_step_pre_hook(lambda *_: _C._sim_enter_optimizer(True))
        _optimizer.register_optimizer_step_post_hook(_ended)
    _callbacks.append(callback)
    callback(_done + 1)


def _ended(*_):
    global _done
    _C._sim_enter_optimizer(False)
    _done += 1
    _begun()


def _begun():
    for callback in _callbacks:
        callback(_done + 1)


def rank():
    """The rank of this process in its job, or None where it is not known (yet)."""
    return _rank


def ranks():
    """How many ranks the job has, as far as is known."""
    return _ranks


def found_rank(number, size):
    """The process has this rank in a group. The first group is that of the job; the callbacks hear the step once more."""
    global _rank, _ranks
    _ranks = max(_ranks, size)
    if _rank is None:
        _rank = number
        _begun()

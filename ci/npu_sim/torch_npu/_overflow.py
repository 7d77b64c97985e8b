"""What torch_npu has for overflow in fp16: the status operators, and how a GradScaler's check uses them.

In INF_NAN mode (the default, as on a 910B) an overflow is an infinity. In the saturating mode of the first 910 it is not
to be seen in the numbers: a flag of the device says so, and the operator below, by which a GradScaler looks for
infinities, asks that flag and no gradient.
"""

import torch

from torch_npu import _C, _settings

_FLOATS = 8  # of a status; the first says whether there was an overflow


def npu_alloc_float_status(input):
    """A status of 8 floats on the device of `input`."""
    return torch.zeros(_FLOATS, device=input.device)


def npu_get_float_status(input, mode=0):
    """A status that says in its first number whether something overflowed on the device of `input` since it was cleared."""
    status = torch.zeros(_FLOATS, device=input.device)
    flag = _C._sim_exchange_overflow_flag(input.device.index, False)
    _C._sim_exchange_overflow_flag(input.device.index, flag)
    status[0] = float(flag)
    return status


def npu_clear_float_status(input, mode=0):
    """Clears the flag of the device of `input`."""
    _C._sim_exchange_overflow_flag(input.device.index, False)
    return torch.zeros(_FLOATS, device=input.device)


def _check_and_unscale(gradients, found_inf, inv_scale):
    """aten::_amp_foreach_non_finite_check_and_unscale_ in saturating mode: it clears the flag that it finds."""
    if not gradients:
        return
    status = npu_get_float_status(gradients[0])
    if status[0].item() != 0:
        npu_clear_float_status(status)
        found_inf.add_(1)
        return
    for gradient in gradients:
        gradient.mul_(inv_scale)


_library = None


def register():
    """Called once. In INF_NAN mode nothing is to be done."""
    global _library
    if _settings.saturates():
        _C._sim_saturate()
        _library = torch.library.Library("aten", "IMPL")
        _library.impl("_amp_foreach_non_finite_check_and_unscale_", _check_and_unscale, "PrivateUse1")

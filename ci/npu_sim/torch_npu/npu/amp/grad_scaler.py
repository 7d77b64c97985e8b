"""torch.amp.GradScaler with the device filled in, a static mode, and what saturating fp16 needs."""

import torch
import torch.distributed as dist


class GradScaler(torch.amp.GradScaler):
    """dynamic=False keeps the scale at init_scale and neither looks for infinite or NaN gradients nor skips a step.

    In saturating mode (_overflow.py) the flag of overflow is one rank's own, and stays until it is cleared: this scaler clears
    it before the first backward pass of a step, and all ranks skip a step if one must. PyTorch's does neither.
    """

    def __init__(self, init_scale=2.0**16, growth_factor=2.0, backoff_factor=0.5, growth_interval=2000, dynamic=True,
                 enabled=True):
        super().__init__("npu", init_scale=init_scale, growth_factor=growth_factor, backoff_factor=backoff_factor,
                         growth_interval=growth_interval, enabled=enabled)
        self._dynamic = dynamic
        self._flag_is_clear = False

    def scale(self, outputs):
        if self._enabled and self._dynamic and not self._flag_is_clear and not torch.npu.utils.is_support_inf_nan():
            torch.npu.utils.clear_npu_overflow_flag()
            self._flag_is_clear = True
        if self._enabled and isinstance(outputs, torch.Tensor) and not outputs.is_npu:
            raise ValueError("Device type of outputs should be npu.")
        return super().scale(outputs)

    def _unscale_grads_(self, optimizer, inv_scale, found_inf, allow_fp16):
        if self._dynamic:
            found = super()._unscale_grads_(optimizer, inv_scale, found_inf, allow_fp16)
            if dist.is_initialized() and not torch.npu.utils.is_support_inf_nan():
                for tensor in found.values():
                    dist.all_reduce(tensor)
            return found
        for parameter in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
            if parameter.grad.dtype == torch.float16 and not allow_fp16:
                raise TypeError("Attempting to unscale FP16 gradients.")
            parameter.grad.mul_(inv_scale)
        return {found_inf.device: found_inf}

    def update(self, new_scale=None):
        if self._enabled and not self._dynamic and new_scale is None:
            new_scale = self.get_scale()
        super().update(new_scale)
        self._flag_is_clear = False

    def state_dict(self):
        state = super().state_dict()
        return dict(state, dynamic=self._dynamic) if self._enabled else state

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        if self._enabled:
            self._dynamic = state_dict["dynamic"]

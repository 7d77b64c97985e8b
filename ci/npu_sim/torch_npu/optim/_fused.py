"""The fused optimizers. On the device they gather all gradients into one piece of memory at the first step, and from then on
read that; so their rules are the device's, and their arithmetic is that of PyTorch's optimizers."""

import torch
from torch.optim.optimizer import required


class NpuFusedOptimizerBase(torch.optim.Optimizer):
    def __init__(self, params, *options, **defaults):
        super().__init__(params, *options, **defaults)
        self.is_fused_optimizer = True
        self._gathered = None  # {parameter: its gradient} of the first step

    def zero_grad(self, set_to_none=False):
        if set_to_none:
            raise ValueError("set_to_none is not supported in fused optimizers")
        super().zero_grad(set_to_none=False)

    def step(self, closure=None):
        if closure is not None:
            with torch.enable_grad():
                closure_loss = closure()
        self._gather()
        super().step()
        return None if closure is None else closure_loss

    def clip_grad_norm_fused_(self, max_norm, norm_type=2):
        """Scales the gradients of all parameters to a norm of at most `max_norm`; returns the norm that they had."""
        self._gather()
        return torch.nn.utils.clip_grad_norm_(list(self._gathered), max_norm, norm_type)

    def _gather(self):
        parameters = [p for group in self.param_groups for p in group["params"]]
        for p in parameters:
            if p.grad is not None and p.dtype not in (torch.float32, torch.float16):
                raise TypeError(f"Fused optimizer's parameters must be either float32 or float16, but received {p.dtype}")
        if self._gathered is None:
            self._gathered = {p: p.grad for p in parameters if p.grad is not None}
        for p in parameters:
            known = self._gathered.get(p)
            if (known is None) != (p.grad is None) or (known is not None and known.data_ptr() != p.grad.data_ptr()):
                raise RuntimeError(f"{type(self).__name__} reads the gradients that were there at its first step, and one is "
                                   "another now (model.zero_grad() sets them to None): the device would go on with the old ones. "
                                   "Use optimizer.zero_grad() (npu_sim)")

    def __getstate__(self):
        return dict(super().__getstate__(), is_fused_optimizer=True, _gathered=None)


class NpuFusedSGD(NpuFusedOptimizerBase, torch.optim.SGD):
    def __init__(self, params, lr=required, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
        if lr is required:
            raise ValueError("parameter group didn't specify a value of required optimization parameter lr")
        super().__init__(params, lr, momentum, dampening, weight_decay, nesterov)


class NpuFusedAdam(NpuFusedOptimizerBase, torch.optim.Adam):
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, amsgrad=False):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad)


class NpuFusedAdamW(NpuFusedOptimizerBase, torch.optim.AdamW):
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad)


class NpuFusedAdadelta(NpuFusedOptimizerBase, torch.optim.Adadelta):
    def __init__(self, params, lr=1.0, rho=0.9, eps=1e-6, weight_decay=0):
        super().__init__(params, lr, rho, eps, weight_decay)


class NpuFusedRMSprop(NpuFusedOptimizerBase, torch.optim.RMSprop):
    def __init__(self, params, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0, momentum=0, centered=False):
        super().__init__(params, lr, alpha, eps, weight_decay, momentum, centered)


class _RMSpropTF(torch.optim.Optimizer):
    """RMSprop as TensorFlow has it: eps inside the root, averages that begin with 1, the learning rate inside the momentum."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)

    def _update(self, p, group):
        state, grad, decay = self.state[p], p.grad, group["weight_decay"]
        if not state:
            state.update(step=0, square_avg=torch.ones_like(p), momentum_buffer=torch.zeros_like(p), grad_avg=torch.zeros_like(p))
        state["step"] += 1
        if group["decoupled_decay"]:
            p.mul_(1 - decay)
        elif decay:
            grad = grad + decay * p
        average = state["square_avg"].lerp_(grad.square(), 1 - group["alpha"])
        if group["centered"]:
            average = average - state["grad_avg"].lerp_(grad, 1 - group["alpha"]).square()
        update = grad / (average + group["eps"]).sqrt()
        if group["lr_in_momentum"]:
            update = update * group["lr"]
        if group["momentum"]:
            update = state["momentum_buffer"].mul_(group["momentum"]).add_(update)
        p.sub_(update if group["lr_in_momentum"] else update * group["lr"])


class NpuFusedRMSpropTF(NpuFusedOptimizerBase, _RMSpropTF):
    def __init__(self, params, lr=1e-2, alpha=0.9, eps=1e-10, weight_decay=0, momentum=0.0, centered=False,
                 decoupled_decay=False, lr_in_momentum=True):
        super().__init__(params, dict(lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum, centered=centered,
                                      decoupled_decay=decoupled_decay, lr_in_momentum=lr_in_momentum))


class _Lamb(torch.optim.Optimizer):
    """Adam without bias correction, its step scaled by the norm of the weight (at most 10) over that of the step."""

    @torch.no_grad()
    def step(self):
        parameters = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        shrink = 1.0
        if self.use_global_grad_norm:
            shrink = max(1.0, torch.nn.utils.get_total_norm([p.grad for p, _ in parameters]).item())
        for p, group in parameters:
            self._update(p, p.grad / shrink, group)

    def _update(self, p, grad, group):
        state, (first, second) = self.state[p], group["betas"]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        state["step"] += 1
        mean = state["exp_avg"].lerp_(grad, 1 - first)
        square = state["exp_avg_sq"].lerp_(grad.square(), 1 - second)
        update = mean / (square.sqrt() + group["eps"]) + group["weight_decay"] * p
        weight, size = p.norm().clamp(max=10).item(), update.norm().item()
        trust = 1.0 if self.adam or 0 in (weight, size) else weight / size
        p.sub_(update, alpha=group["lr"] * trust)


class NpuFusedLamb(NpuFusedOptimizerBase, _Lamb):
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0, adam=False, use_global_grad_norm=False):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))
        self.adam, self.use_global_grad_norm = adam, use_global_grad_norm

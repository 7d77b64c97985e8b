"""apex.amp for NPUs: initialize, scale_loss, master_params and the state, at the levels O0 to O3.

O1 is an autocast that stays on from initialize(), for apex patches PyTorch's functions for good. O2 and O3 cast the model;
the optimizer of O2 has fp32 copies of its half parameters, the master weights. combine_grad and the like make no difference.
"""

import contextlib
import types

import torch
from torch.nn.modules.batchnorm import _BatchNorm

import torch_npu  # noqa: F401  (registers torch.npu)

__all__ = ["initialize", "scale_loss", "master_params", "state_dict", "load_state_dict"]

# level: (dtype of the model, autocast, fp32 BatchNorm, master weights, loss scale), as apex documents them
_LEVELS = {"O0": (torch.float32, False, False, False, 1.0), "O1": (None, True, False, False, "dynamic"),
           "O2": (torch.float16, False, True, True, "dynamic"), "O3": (torch.float16, False, False, False, 1.0)}
_scalers = []  # one for each loss; empty where amp is off
_autocast = None


class _Scaler:
    def __init__(self, loss_scale, init, growth, backoff, window, least, most):
        self.dynamic = loss_scale == "dynamic"
        self.scale = min(most, init) if self.dynamic else float(loss_scale)
        self.growth, self.backoff, self.window, self.least, self.most = growth, backoff, window, least or 0.0, most
        self.unskipped = 0

    def update(self, overflow):
        """Returns whether the step is to be skipped."""
        if not self.dynamic:
            return False
        if overflow:
            self.scale, self.unskipped = max(self.least, self.scale * self.backoff), 0
            return True
        self.unskipped += 1
        if self.unskipped == self.window:
            self.scale, self.unskipped = min(self.most, self.scale * self.growth), 0
        return False


def initialize(models, optimizers=None, enabled=True, opt_level="O1", cast_model_type=None, patch_torch_functions=None,
               keep_batchnorm_fp32=None, master_weights=None, loss_scale=None, cast_model_outputs=None, num_losses=1, verbosity=1,
               dynamic_init_scale=2.0 ** 16, scale_growth_factor=2.0, scale_backoff_factor=0.5, scale_window=2000,
               min_loss_scale=None, max_loss_scale=2.0 ** 24, combine_grad=None, combine_ddp=None, ddp_replica_count=4,
               user_cast_preferred=None, check_combined_tensors=None):
    """Returns the models, and the optimizers where there are any, changed in place; lists where lists were given."""
    if opt_level not in _LEVELS:
        raise RuntimeError(f"Unexpected optimization level {opt_level}: options are 'O0', 'O1', 'O2', 'O3'")
    dtype, patch, batchnorm, masters, scale = _LEVELS[opt_level]
    dtype = dtype if cast_model_type is None else cast_model_type
    _scalers.clear()
    if enabled:
        options = (dynamic_init_scale, scale_growth_factor, scale_backoff_factor, scale_window, min_loss_scale, max_loss_scale)
        _scalers.extend(_Scaler(scale if loss_scale is None else loss_scale, *options) for _ in range(num_losses))
        _patch_functions(patch if patch_torch_functions is None else patch_torch_functions)
        for model in _listed(models) if dtype is not None else ():
            _cast_model(model, dtype, _chosen(keep_batchnorm_fp32, batchnorm), cast_model_outputs or torch.float32)
        for optimizer in _listed(optimizers):
            _adopt(optimizer, _chosen(master_weights, masters))
    return models if optimizers is None else (models, optimizers)


def _listed(value):
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _chosen(value, default):
    return default if value is None else value in (True, "True")


def _patch_functions(enabled):
    global _autocast
    if _autocast is not None:
        _autocast.__exit__(None, None, None)
    _autocast = torch.autocast("npu", dtype=torch.float16, cache_enabled=False) if enabled else None  # weights change
    if _autocast is not None:
        _autocast.__enter__()


# ---- O2 and O3 ---------------------------------------------------------------------------------------------------

def _cast_model(model, dtype, keep_batchnorm, output_dtype):
    for module in model.modules():
        if not (keep_batchnorm and isinstance(module, _BatchNorm)):
            for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
                tensor.data = _to(tensor.data, dtype)
    model.register_forward_pre_hook(lambda _, args, kwargs: (_to(args, dtype), _to(kwargs, dtype)), with_kwargs=True)
    model.register_forward_hook(lambda _, args, output: _to(output, output_dtype))
    model.register_state_dict_post_hook(_widen)


def _to(value, dtype):
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        return type(value)(_to(item, dtype) for item in value)
    return {key: _to(item, dtype) for key, item in value.items()} if isinstance(value, dict) else value


def _widen(module, state, prefix, _):
    """A checkpoint is in fp32, whatever the level."""
    for name in [name for name in state if name.startswith(prefix)]:
        if isinstance(state[name], torch.Tensor):
            state[name] = state[name].float() if state[name].dtype == torch.float16 else state[name]


def _adopt(optimizer, masters):
    """Gives an optimizer its master weights, and a step that can be skipped."""
    optimizer._amp_masters = {}  # half parameter of the model: fp32 parameter of the optimizer
    optimizer._amp_skip = optimizer._amp_scaled = False
    for group in optimizer.param_groups if masters else ():
        for p in group["params"]:
            if p.dtype == torch.float16:
                optimizer._amp_masters[p] = p.detach().float().requires_grad_(p.requires_grad)
        group["params"] = [optimizer._amp_masters.get(p, p) for p in group["params"]]
    for p, master in optimizer._amp_masters.items():
        if p in optimizer.state:
            optimizer.state[master] = optimizer.state.pop(p)
    step, zero_grad = optimizer.step, optimizer.zero_grad

    def amp_step(optimizer, *arguments, **options):
        skip, optimizer._amp_skip = optimizer._amp_skip, False
        if skip:
            return None
        result = step(*arguments, **options)
        with torch.no_grad():
            for p, master in optimizer._amp_masters.items():
                p.copy_(master)
        return result

    def amp_zero_grad(optimizer, *arguments, **options):
        zero_grad(*arguments, **options)
        for p in optimizer._amp_masters:
            p.grad = None

    optimizer.step = types.MethodType(amp_step, optimizer)  # methods, as learning rate schedulers expect
    optimizer.zero_grad = types.MethodType(amp_zero_grad, optimizer)


# ---- backward ----------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def scale_loss(loss, optimizers, loss_id=0, model=None, delay_unscale=False, delay_overflow_check=False):
    """Gives the scaled loss; after its backward() the gradients are unscaled, and on overflow the next step is skipped."""
    if not _scalers:
        yield loss
        return
    scaler, optimizers = _scalers[loss_id], _listed(optimizers)
    for optimizer in optimizers:
        if not optimizer._amp_scaled:
            _multiply(_gradients(optimizer), scaler.scale)  # what was added up before
    yield loss.float() * scaler.scale
    for optimizer in optimizers:
        optimizer._amp_scaled = delay_unscale
        _hand_over(optimizer)
    if delay_unscale:
        return
    gradients = [gradient for optimizer in optimizers for gradient in _gradients(optimizer)]
    overflow = scaler.dynamic and bool(gradients) and not torch.stack([g.isfinite().all() for g in gradients]).all().item()
    _multiply(gradients, 1 / scaler.scale)
    if scaler.update(overflow):
        print(f"Gradient overflow.  Skipping step, loss scaler {loss_id} reducing loss scale to {scaler.scale}")
        for optimizer in optimizers:
            optimizer._amp_skip = True


def _gradients(optimizer):
    return [p.grad for p in master_params(optimizer) if p.grad is not None]


def _multiply(gradients, factor):
    if gradients and factor != 1:
        with torch.no_grad():
            torch._foreach_mul_(gradients, factor)


@torch.no_grad()
def _hand_over(optimizer):
    """Adds the gradients of half parameters to those of their masters, in place."""
    for p, master in optimizer._amp_masters.items():
        if p.grad is not None:
            master.grad = p.grad.float() if master.grad is None else master.grad.add_(p.grad)
            p.grad = None


def master_params(optimizer):
    """The parameters that the optimizer steps: fp32 under O2."""
    for group in optimizer.param_groups:
        yield from group["params"]


# ---- state -------------------------------------------------------------------------------------------------------

def state_dict(destination=None):
    state = {} if destination is None else destination
    for number, scaler in enumerate(_scalers):
        state[f"loss_scaler{number}"] = {"loss_scale": scaler.scale, "unskipped": scaler.unskipped}
    return state


def load_state_dict(state):
    for scaler, saved in zip(_scalers, state.values()):
        scaler.scale, scaler.unskipped = saved["loss_scale"], saved["unskipped"]

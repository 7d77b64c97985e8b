"""Mixed precision at apex's opt levels, with apex where it is installed and with PyTorch's own means elsewhere.

O0  everything in fp32.
O1  fp32 weights; autocast chooses half precision for the operators that gain from it.
O2  half weights and inputs, fp32 BatchNorm, fp32 master weights in the optimizer.

Half is fp16 on npu and cuda and bf16 on a CPU, unless the user says which. See https://nvidia.github.io/apex/amp.html for the levels.
"""
import contextlib
import functools
import re

import torch
import torch.distributed as dist
import torch.nn.functional as functional
from torch.nn.modules.batchnorm import _BatchNorm

from common import ranges, tensors

OPT_LEVELS = ("O0", "O1", "O2")
DTYPES = ("fp16", "bf16")

# How PyTorch and its plug-ins say that they have no operator for a dtype on a device; out of memory, say, is another matter.
_NO_OPERATOR = "(?i)not implemented|could not run|(not|only) support|unsupported|scalar type|mixed dtype"


def initialize(model, optimizer, opt_level, loss_scale=None, device=torch.device("cpu"), dtype=None):
    """Return (model, optimizer, amp) ready to train at `opt_level`; call it before DistributedDataParallel.

    `loss_scale`: a number (static; as in apex, no step is ever skipped), "dynamic", or None for the level's default
    (dynamic for O1 and O2). `dtype`: the name of the half precision, fp16 or bf16, None for the device's; bf16 that was asked for
    needs no loss scale, and gets none. Where the level cannot run on this device with this PyTorch, amp.opt_level is O0 and amp.note
    says why. `optimizer` may be None for evaluation.
    """
    apex_amp = _apex_amp() if device.type != "cpu" and dtype != "bf16" else None
    if apex_amp is not None:
        made = apex_amp.initialize(model, optimizer, opt_level=opt_level, loss_scale=loss_scale)
        model, optimizer = (made, None) if optimizer is None else made
        return model, optimizer, ApexAmp(apex_amp, optimizer, opt_level)
    note = None
    half = half_dtype(device, dtype)
    if opt_level != "O0" and not _runs(opt_level, device, half):
        note = "opt level %s%s cannot run on %s with PyTorch %s without apex: running O0" % (
            opt_level, " in " + dtype if dtype else "", device.type, torch.__version__)
        opt_level = "O0"
    scaler = StaticScaler(1.0) if opt_level == "O0" or dtype == "bf16" else _scaler(loss_scale, device)
    amp = NativeAmp(model, optimizer, opt_level, scaler, (device, half), note)
    if not isinstance(scaler, StaticScaler) and device.type != "npu" and hasattr(optimizer, "fuse"):
        optimizer.fuse()
    return model, optimizer, amp


def half_dtype(device, name=None):
    """Return the half precision called `name`, fp16 or bf16; without it that of a device: fp16 on npu and cuda, bf16 on a CPU (which
    has no fast fp16)."""
    name = name or ("bf16" if device.type == "cpu" else "fp16")
    return {"fp16": torch.float16, "bf16": torch.bfloat16}[name]


class NativeAmp(object):
    """Forward in `autocast()`, then `backward(loss)` any number of times, then `step()`.

    Under O2 the model's state_dict holds the fp32 master weights, and loading one sets them: a checkpoint of any level
    loads at any other, and loses nothing.
    """

    def __init__(self, model, optimizer, opt_level, scaler, half, note=None):
        """`scaler`: a StaticScaler or a GradScaler; `half`: (device, dtype)."""
        device, dtype = half
        self.opt_level, self.note = opt_level, note
        self._optimizer, self._scaler = optimizer, scaler
        self._masters = {}  # name -> (half parameter of the model, fp32 parameter of the optimizer)
        self.autocast = contextlib.suppress  # with no arguments: a context that does nothing, in Python 3.7 too
        if opt_level == "O1":
            self.autocast = functools.partial(_autocast, device.type, dtype)
        if opt_level == "O2":
            self._to_half(model, dtype)

    def backward(self, loss):
        """Add the gradients of `loss` (a scalar, in fp32) to those of the optimizer's parameters."""
        self._scaler.scale(loss).backward()
        if self._masters:
            self._gradients_to_masters()

    def step(self):
        """Take one optimizer step with the gradients that have been added up, and clear them."""
        self._scaler.step(self._optimizer)
        self._scaler.update()
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        with torch.no_grad():
            tensors.each("copy_", *_columns(self._masters.values()))

    def _gradients_to_masters(self):
        pairs = [pair for pair in self._masters.values() if pair[0].grad is not None]
        first = [(master, parameter.grad) for parameter, master in pairs if master.grad is None]
        further = [(master.grad, parameter.grad) for parameter, master in pairs if master.grad is not None]
        for master, _ in first:
            master.grad = torch.empty_like(master)
        tensors.each("copy_", *_columns((master.grad, gradient) for master, gradient in first))
        tensors.each("add_", *_columns(further))
        for parameter, _ in pairs:
            parameter.grad = None

    def state_dict(self):
        """Return the loss scaler's state; the master weights are in the model's state_dict."""
        return self._scaler.state_dict()

    def load_state_dict(self, state):
        """Restore what `state_dict` has returned, here, on another kind of device, or under apex."""
        own, saved = self._scaler.state_dict(), _native_scale(state)
        if own and saved:  # the plug-in's scaler wants an entry that PyTorch's does not have
            self._scaler.load_state_dict(dict(own, **{key: saved[key] for key in own if key in saved}))

    def _to_half(self, model, half):
        names = dict((parameter, name) for name, parameter in model.named_parameters())
        masters = {}
        for module in model.modules():
            if not isinstance(module, _BatchNorm):
                _floats_to(module, half, masters)
        for group in self._optimizer.param_groups if self._optimizer else ():
            group["params"] = [masters.get(parameter, parameter) for parameter in group["params"]]
        self._masters = dict((names[parameter], (parameter, master)) for parameter, master in masters.items())
        model.register_forward_pre_hook(lambda _, inputs: _cast(inputs, half))
        model.register_forward_hook(lambda _, inputs, output: _cast(output, torch.float32))
        model._register_state_dict_hook(self._save_masters)
        model._register_load_state_dict_pre_hook(self._load_masters)

    def _save_masters(self, module, state_dict, prefix, local_metadata):
        for name, (_, master) in self._masters.items():
            state_dict[prefix + name] = master.detach()

    def _load_masters(self, state_dict, prefix, *_):
        with torch.no_grad():
            for name, (_, master) in self._masters.items():
                if prefix + name in state_dict and state_dict[prefix + name].shape == master.shape:
                    master.copy_(state_dict[prefix + name])


class StaticScaler(object):
    """A constant loss scale with GradScaler's methods. Like apex's, it never skips a step."""

    def __init__(self, scale):
        self._scale = float(scale)

    def scale(self, loss):
        """Return the loss times the constant."""
        return loss if self._scale == 1.0 else loss * self._scale

    def step(self, optimizer):
        """Divide the gradients by the constant, and take an optimizer step."""
        if self._scale != 1.0:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            tensors.each("mul_", gradients, 1.0 / self._scale)
        optimizer.step()

    def update(self):
        """Nothing: the scale is constant."""

    def state_dict(self):
        return {}


class ApexAmp(object):
    """The same three calls on top of apex.amp."""

    note = None

    def __init__(self, apex_amp, optimizer, opt_level):
        self.opt_level = opt_level
        self.autocast = contextlib.suppress  # apex has patched the model or the functions already
        self._apex_amp, self._optimizer = apex_amp, optimizer

    def backward(self, loss):
        """As NativeAmp's."""
        with self._apex_amp.scale_loss(loss, self._optimizer) as scaled_loss:
            scaled_loss.backward()

    def step(self):
        """As NativeAmp's."""
        self._optimizer.step()
        self._optimizer.zero_grad()

    def state_dict(self):
        return self._apex_amp.state_dict()

    def load_state_dict(self, state):
        own, saved = self.state_dict(), _native_scale(state)
        if own and saved:
            scale = {"loss_scale": saved["scale"], "unskipped": saved["_growth_tracker"]}
            self._apex_amp.load_state_dict({"loss_scaler0": dict(own.get("loss_scaler0", {}), **scale)})


def _native_scale(state):
    """Return the state of a loss scale, {} for none, with GradScaler's names, whether it is GradScaler's or apex's."""
    if "loss_scaler0" in state:
        state = {"scale": float(state["loss_scaler0"]["loss_scale"]), "_growth_tracker": state["loss_scaler0"]["unskipped"]}
    if state.get("scale", 1) not in ranges.positive or state.get("_growth_tracker", 0) not in ranges.count:
        raise ValueError("a loss scale of %.99r" % (state,))
    return state


def _apex_amp():
    try:
        from apex import amp  # the package of that name on PyPI is another one, and has no amp
    except ImportError:
        return None
    return amp if hasattr(amp, "initialize") else None


def _scaler(loss_scale, device):
    if loss_scale is not None and loss_scale != "dynamic":
        return StaticScaler(loss_scale)
    own, general = (getattr(getattr(module, "amp", None), "GradScaler", None)
                    for module in (getattr(torch, device.type, None), torch))
    # On an NPU the plug-in's own: the first 910 has no infinities but a flag of overflow, which it clears before and asks of all ranks.
    if own is not None and (device.type == "npu" or general is None):
        return own()
    if general is not None:
        return general(device.type)
    return StaticScaler(1.0)  # a CPU before PyTorch 2.3: bf16 has the range of fp32


def _autocast(device_type, dtype):
    if hasattr(torch, "autocast"):
        return torch.autocast(device_type, dtype=dtype)
    if dtype != torch.float16:
        raise TypeError("this PyTorch's autocast has fp16 alone")
    return getattr(torch, device_type).amp.autocast()


def _runs(opt_level, device, half):
    """Return whether this PyTorch can do one convolution and BatchNorm, forward and backward, at this level there."""
    try:
        autocast = _autocast(device.type, half) if opt_level == "O1" else contextlib.suppress()
        dtype = torch.float32 if opt_level == "O1" else half
        weight = torch.ones(2, 1, 1, 1, dtype=dtype, device=device, requires_grad=True)
        zeros, ones = torch.zeros(2, device=device), torch.ones(2, device=device)
        with autocast:
            output = functional.conv2d(torch.ones(2, 1, 2, 2, dtype=dtype, device=device), weight)
            output = functional.batch_norm(output, zeros, ones, ones, zeros, training=True)
        output.float().sum().backward()
        if opt_level == "O2" and dist.is_available() and dist.is_initialized():
            dist.all_reduce(torch.zeros(1, dtype=half, device=device))  # gloo of PyTorch 2.1 has no bf16
        return True
    except (AttributeError, TypeError):  # this PyTorch has no such autocast
        return False
    except RuntimeError as error:
        if not re.search(_NO_OPERATOR, str(error)):
            raise
        return False


def _floats_to(module, dtype, masters):
    """Convert a module's own floating-point parameters and buffers in place; note an fp32 copy of each parameter."""
    for parameter in module.parameters(recurse=False):
        if parameter.is_floating_point():
            masters[parameter] = parameter.detach().clone().requires_grad_(parameter.requires_grad)
            parameter.data = parameter.data.to(dtype)
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.is_floating_point():
            setattr(module, name, buffer.to(dtype))


def _cast(value, dtype):
    if isinstance(value, (tuple, list)):
        return type(value)(_cast(item, dtype) for item in value)
    return value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value


def _columns(pairs):
    """Return the two lists of the first and of the second parts of pairs."""
    pairs = list(pairs)
    return [first for first, _ in pairs], [second for _, second in pairs]

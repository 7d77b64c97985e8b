"""What each layer did on a device, and the same in float64 on the CPU from the same inputs.

From the same inputs, so that an error stays in the layer that makes it. A layer is a module without children, as called (a ReLU that
is called twice is two). Its bound is what the CPU's own arithmetic in that precision loses on these very inputs, times FACTOR, and what
another order of adding may lose: see `bounds`.
"""
import copy
import math
from collections import namedtuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

FACTOR = 8  # by how much a device's rounding may exceed that of the CPU in the same precision
WINOGRAD = 8  # by how much more a convolution by Winograd's method rounds than a sum (https://arxiv.org/abs/1509.09308, section 5)
ROUNDOFF = {torch.float64: 2.0 ** -53, torch.float32: 2.0 ** -24, torch.float16: 2.0 ** -11, torch.bfloat16: 2.0 ** -8}

# A layer's call. inputs, output, gradient (of the output), back (the gradient of the input): tensors on the device, or None;
# weights: {parameter: gradient}; statistics: {buffer: value after the step}; training: its mode.
Call = namedtuple("Call", "step name inputs output gradient back weights statistics training")
# A comparison: which layer, in which phase (forward, backward, gradient of weight, running_mean, update of weight, ...), the relative
# l2 error and its bound.
Row = namedtuple("Row", "step layer phase error bound")

_RANDOM = (nn.Dropout, nn.Dropout2d, nn.Dropout3d)


def leaves(model):
    """Return [(name, module)] of the modules that have no children, identities and what draws left out."""
    return [(name, module) for name, module in model.named_modules()
            if name and not list(module.children()) and not isinstance(module, _RANDOM + (nn.Identity,))]


def on_cpu(model):
    """Return the layers of `model` as they are, in float64 on the CPU, by name."""
    return {name: copy.deepcopy(module).cpu().double() for name, module in leaves(model)}


# --- watching ---------------------------------------------------------------------------------------------------------

class Watch(object):
    """Notes what every layer of a network does in a training step. `calls`: the Calls of the steps that are kept."""

    def __init__(self, model):
        self.calls, self._open, self._pending, self._step = [], [], {}, 0
        self._of_parameters = []  # hooks that would stay with a parameter
        self._is_watching = True
        self._leaves = leaves(model)
        for name, module in self._leaves:
            module.register_forward_pre_hook(self._before(name))
            module.register_forward_hook(self._after(name))

    def _before(self, name):
        def hook(module, inputs):
            if not (self._is_watching and torch.is_grad_enabled()):
                return None
            # Copies of its own: a layer that works in place may not change what is noted, nor see gradients that other layers give.
            call = {"name": name, "training": module.training, "weights": {}, "inputs": inputs[0].detach().clone()}
            own = inputs[0].clone()
            _note_gradient(own, call, "back")
            for key, parameter in module.named_parameters(recurse=False):
                self._of_parameters.append(_note_gradient(parameter, call["weights"], key))
            self._pending[name] = call
            return (own,) + tuple(inputs[1:])
        return hook

    def _after(self, name):
        def hook(module, inputs, output):
            call = self._pending.pop(name, None)
            if call is None or not torch.is_tensor(output):
                return None
            call["output"] = output.detach().clone()
            own = output.clone()
            _note_gradient(output, call, "gradient")
            call["module"] = module
            self._open.append(call)
            return own
        return hook

    def end_step(self, keep):
        """Close the step; go on watching with `keep`."""
        for call in self._open:
            module = call["module"]
            statistics = {key: value.detach().clone() for key, value in module.named_buffers(recurse=False)
                          if value.is_floating_point() and call["training"]}
            self.calls.append(Call(self._step, call["name"], call["inputs"], call["output"], call.get("gradient"), call.get("back"),
                                   call["weights"], statistics, call["training"]))
        for hook in filter(None, self._of_parameters):
            hook.remove()
        self._open, self._of_parameters, self._step, self._is_watching = [], [], self._step + 1, keep


def _note_gradient(tensor, where, key):
    if not tensor.requires_grad:
        return None
    return tensor.register_hook(lambda gradient: where.__setitem__(key, gradient.detach().clone()))


# --- rounding ---------------------------------------------------------------------------------------------------------

def rounded(tensor, dtype):
    """Return `tensor` with the mantissas of `dtype`, its largest value well inside that type's range, as a good loss scale has it."""
    if dtype == tensor.dtype or not tensor.numel():
        return tensor
    largest = float(tensor.abs().max())
    if not 0 < largest < float("inf"):
        return tensor
    scale = 2.0 ** (12 - math.frexp(largest)[1])
    return (tensor * scale).to(dtype).to(tensor.dtype) / scale


class _Rounding(torch.autograd.Function):
    """What a layer's result loses in a precision, and the gradient on its way back; `lose` does it."""

    @staticmethod
    def forward(context, tensor, lose):
        context.lose = lose
        return lose(tensor)

    @staticmethod
    def backward(context, gradient):
        return context.lose(gradient), None


def _loss_of(module, dtype):
    """Return the function that takes from a result what `dtype` loses. Half types: by rounding it. float32, in which all types are
    summed: FACTOR times what rounding it loses, and the order of adding its n products (a random walk of n roundings, u * sqrt(n) of
    the result; half types lose far more by rounding). The effect of so much is not FACTOR times that of one rounding: whether a
    ReLU's input changes its sign is a matter of chance, which in float32 happens in few runs, and moves the result by any amount."""
    if dtype != torch.float32:
        return lambda tensor: rounded(tensor, dtype)
    terms = module.weight[0].numel() if isinstance(module, (_ConvNd, nn.Linear)) else 0
    generator = torch.Generator()
    generator.manual_seed(0)

    def lose(tensor):
        if terms:
            size = FACTOR * ROUNDOFF[dtype] * math.sqrt(terms) * float(tensor.norm()) / math.sqrt(tensor.numel())
            tensor = tensor + size * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        split = tensor * (2.0 ** 53 * FACTOR * ROUNDOFF[dtype] + 1)  # Veltkamp's: of the 53 bits of float64 so many go
        return split - (split - tensor)
    return lose


def round_outputs(model, dtype):
    """Let the result of each layer, and its gradient, lose what the precision `dtype` loses; return the hooks."""
    def hook(lose):
        return lambda _, inputs, output: _Rounding.apply(output, lose) if torch.is_tensor(output) else output
    return [module.register_forward_hook(hook(_loss_of(module, dtype))) for _, module in leaves(model)]


# --- the same in float64 ----------------------------------------------------------------------------------------------

def compare(trace):
    """Yield the Rows of a watched Trace: layers in the order of the forward pass, then updates."""
    network, step = trace.network, 0
    for call in trace.calls:
        if call.step != step:
            step = call.step
            _take_updates(network, trace.updates, step - 1)
        yield from _compare_call(call, network[call.name])
    for update in trace.updates:
        yield _compare_update(update, [other for other in trace.updates if other.name == update.name and other.step < update.step])


def _take_updates(network, updates, step):
    """Let the reference have the weights that the device has after a step, so that errors do not add up over steps."""
    for update in updates:
        layer, _, key = update.name.rpartition(".")
        if update.step == step and layer in network:
            getattr(network[layer], key).data.copy_(update.after.double())


def _compare_call(call, layer):
    exact = _replay(call, copy.deepcopy(layer), None)
    usual = _replay(call, copy.deepcopy(layer).float(), call.output.dtype)
    found = {"forward": call.output, "backward": call.back}
    found.update(("gradient of " + key, value) for key, value in call.weights.items())
    found.update(call.statistics)
    if call.training:  # the statistics of one call follow on those of the call before
        for key, value in call.statistics.items():
            getattr(layer, key).copy_(value.cpu().double())
    for phase, value in found.items():
        if value is not None and phase in exact:
            usual_error = relative_error(usual[phase].double(), exact[phase])
            own = value.dtype if phase in call.statistics else call.output.dtype
            bound = FACTOR * usual_error + _growth(call, layer, phase, exact) + 2 * ROUNDOFF[own]
            yield Row(call.step, call.name, phase, relative_error(value.cpu().double(), exact[phase]), bound)


def _replay(call, layer, dtype):
    """Return {phase: value} of the call in the layer's type, with what that precision rounds rounded to `dtype` (None: nothing)."""
    kind = next((parameter.dtype for parameter in layer.parameters()), torch.float64 if dtype is None else torch.float32)
    multiplies = isinstance(layer, (_ConvNd, nn.Linear))

    def round_(tensor, to=dtype):
        return tensor if dtype is None or to in (None, torch.float32) else tensor.to(to).to(tensor.dtype)
    layer.train(call.training)
    inputs = call.inputs.cpu().to(kind)
    inputs = (round_(inputs) if multiplies else inputs).requires_grad_()
    if multiplies:
        for parameter in layer.parameters():
            parameter.data = round_(parameter.data)
    output = layer(inputs.clone())
    found = {"forward": round_(output.detach())}
    found.update(dict(layer.named_buffers(recurse=False)) if call.training else {})
    if call.gradient is not None and output.requires_grad:
        wanted = [("backward", inputs)] + [("gradient of " + key, parameter) for key, parameter in layer.named_parameters(recurse=False)
                                          if key in call.weights]
        gradients = torch.autograd.grad(output, [tensor for _, tensor in wanted], call.gradient.cpu().to(kind), allow_unused=True)
        for (phase, _), gradient in zip(wanted, gradients):
            if gradient is not None:
                found[phase] = round_(gradient, dtype if multiplies else call.inputs.dtype if phase == "backward" else torch.float32)
    return found


def _growth(call, layer, phase, exact):
    """Return what adding n products in fp32 in another order than the CPU's may lose: u * sqrt(n), and of a bias' sum as much more as
    its terms cancel. Kernels larger than 1x1 may be computed by Winograd's method, which rounds several times as much."""
    unit = 4 * ROUNDOFF[torch.float32]
    if phase == "gradient of bias" and call.gradient is not None:
        gradient = call.gradient.cpu().double()
        axes = [axis for axis in range(gradient.dim()) if axis != (1 if gradient.dim() > 1 else 0)]
        return unit * min(float(gradient.abs().sum(axes).norm()) / max(float(exact[phase].norm()), 1e-300), 1 / unit)
    is_fast = isinstance(layer, _ConvNd) and max(layer.kernel_size) > 1
    return unit * math.sqrt(_terms(call, layer, phase)) * (WINOGRAD if is_fast else 1)


def _terms(call, layer, phase):
    """Return how many products one number of the result adds up."""
    if phase in ("forward", "backward") and isinstance(layer, (_ConvNd, nn.Linear)):
        weight = layer.weight
        return weight[0].numel() if phase == "forward" else weight.numel() // weight.shape[1]
    channels = call.output.shape[1] if call.output.dim() > 1 else 1
    if phase.startswith("gradient") or isinstance(layer, _BatchNorm):
        return max(1, call.output.numel() // channels)
    return max(1, call.inputs.numel() // max(1, call.output.numel()))


def relative_error(found, exact):
    """Return the l2 norm of the difference over that of `exact`; infinity for what is not finite."""
    difference = float((found.reshape(exact.shape) - exact).norm())
    size = float(exact.norm())
    if not math.isfinite(difference):
        return float("inf")
    return difference / size if size else difference


# --- updates ----------------------------------------------------------------------------------------------------------

def _compare_update(update, earlier):
    """Return the Row of a parameter's update: SGD in float64 from the device's gradients, with the optimizer's settings."""
    group, momentum = update.group, None
    for past in earlier + [update]:
        gradient = past.gradient.double() + past.group["weight_decay"] * past.before.double()
        momentum = gradient if momentum is None else past.group["momentum"] * momentum + (1 - past.group["dampening"]) * gradient
    direction = gradient + group["momentum"] * momentum if group.get("nesterov") else momentum
    wanted = -group["lr"] * direction
    moved = update.after.double() - update.before.double()
    size = float(wanted.norm())
    # A weight in fp32 is rounded once; what is added to it has a few roundings of its own.
    bound = ROUNDOFF[torch.float32] * (float(update.before.double().norm()) / max(size, 1e-300) + FACTOR * (2 + len(earlier)))
    layer, _, key = update.name.rpartition(".")
    return Row(update.step, layer, "update of " + key, float((moved - wanted).norm()) / size if size else float(moved.norm()), bound)

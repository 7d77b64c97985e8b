"""Training steps of a model's own program on golden pictures, watched.

The program runs as `python PROGRAM WORDS --dummy` does: its network, loss, optimizer, precision, learning rate and loop are its own.
Put in its way are only the weights, the pictures, and what watches them. float64 is the program on a CPU with its network, and what it
makes of the logits (`.float()`), in double.
"""
import contextlib
import os
import tempfile
from collections import namedtuple

import torch

from benchmarks import _program
from common import device as devices, precision, synthetic
from comparison import _golden, _layers

# What steps have shown. losses: float of each; rates: the learning rate of each; logits: of the golden images, float64 on the CPU, or
# None; gradients: {parameter: l2} of the first step; norms: l2 of parameters and statistics after the last one; level: that the program
# really ran at; keys: [[key, shape, type]] of the state dict; types: of what the optimizer moves; calls: what _layers.Watch has noted;
# updates: [Update]; network: the start of it all, on the CPU, for the layers' reference; note: why the level is another; skipped: steps
# with gradients that are not finite; scale: of the loss; state: {name: float64 on the CPU} after the last step.
Trace = namedtuple("Trace", "losses rates logits gradients norms level keys types calls updates network note skipped scale state")
# Of a step and a parameter: what it was, the gradient without loss scale, what it became; group: the optimizer's settings.
Update = namedtuple("Update", "step name before gradient after group")

_SCALE = {"FixRes": ["--loss-scale=128"]}  # its dynamic scale skips its first steps, which are those that are looked at


class Enough(BaseException):
    """Ends the program once all steps are taken; nothing in it may catch this."""


def run(recipe, device="cpu", level="O0", dtype=None, steps=5, reference=False, rounded=None, watch=False, mutate=None):
    """Take `steps` steps and return the Trace.

    `device`: as --device has it, with a number after a colon. `dtype`: bf16 or fp16 for O1 and O2, None for the device's. `reference`:
    in float64, on the CPU. `rounded`: a torch.dtype; every layer's output and gradient is rounded to its precision, which is what that
    precision costs at least. `watch`: note what each layer did in the first step (True) or in all ("all"). `mutate(model, optimizer,
    amp)`: a defect, for tests.
    """
    taker = _Taker(recipe, steps, reference, rounded, watch, mutate)
    with tempfile.TemporaryDirectory() as out, taker.in_the_way(), contextlib.suppress(Enough):
        program, *words = recipe.words
        _program.run(os.path.join(_golden.ROOT, program), _words(recipe, words, device, level, dtype, out))
    if taker.done < steps:
        raise RuntimeError("%s took %d of %d steps" % (recipe.words[0], taker.done, steps))
    return taker.trace()


def _words(recipe, words, device, level, dtype, out):
    """Return the program's arguments: flags first, and KEY VALUE pairs last, as some of them want it."""
    flags = [word for word in words if word.startswith("--")]
    pairs = words[len(flags):]
    kind, _, number = str(device).partition(":")
    flags += ["--device=" + {"cuda": "gpu"}.get(kind, kind), "--dummy"] + (["--amp-dtype=" + dtype] if dtype else [])
    if number:
        flags += {"ResNet50": ["--gpu=" + number], "GENet": ["--device-list=" + number], "FixRes": ["--local-rank=" + number]}.get(
            recipe.model, ["--device-id=" + number])
    outputs = {"ResNet50": ["--save-ckpt-path=" + out, "--workspace=" + out], "HRNet": ["--output-path=" + out],
               "GENet": ["--output-path=" + out], "FixRes": ["--checkpoint-file=%s/checkpoint.pth.tar" % out]}
    if recipe.model == "EfficientNet-B3":
        return flags + pairs + ["OUT_DIR", out, "TRAIN.OPT_LEVEL", level]
    if "finetune" in recipe.words[0]:  # has to have weights to start from
        path = os.path.join(out, "start.pth")
        torch.save(_calibrated(recipe), path)
        flags += ["--pth-path=" + path]
    return flags + outputs[recipe.model] + _SCALE.get(recipe.model, []) + ["--opt-level=" + level] + pairs


def _calibrated(recipe):
    """Return FixRes' start weights with the statistics of the golden file's batch, where it says one."""
    from weights import _networks
    model = _networks.build(_networks.known("fixres_resnet50"))
    model.load_state_dict(_golden.start_weights(recipe, model.state_dict()))
    if recipe.weights.get("calibrate"):
        norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            model.train()(_golden.fill.make_input(**recipe.weights["calibrate"]))
    return model.state_dict()


class _Taker(object):
    """Stands between a program and precision.initialize, amp and the batches, and notes what passes."""

    def __init__(self, recipe, steps, reference, rounded, watch, mutate):
        self.recipe, self.steps, self.done = recipe, steps, 0
        self._reference, self._rounded, self._watch, self._mutate = reference, rounded, watch, mutate
        self._losses, self._rates, self._gradients, self._updates, self._skipped = [], [], {}, [], 0
        self._logits = self._hooks = None

    @contextlib.contextmanager
    def in_the_way(self):
        """Watch the program that runs in here."""
        made_up, originals = synthetic.SyntheticBatches, (precision.initialize, torch.Tensor.float)
        batches = made_up.of_epoch, made_up.__len__
        self._initialize = originals[0]
        precision.initialize = self._start
        made_up.of_epoch, made_up.__len__ = (lambda source, epoch, first_step=0: self._batches(source)), (lambda source: 10 ** 6)
        if self._reference:
            torch.Tensor.float = lambda tensor: tensor if tensor.dtype == torch.float64 else originals[1](tensor)
        try:
            yield
        finally:
            precision.initialize, torch.Tensor.float = originals
            made_up.of_epoch, made_up.__len__ = batches

    def _batches(self, source):
        """Yield the golden batches, on the device of the made-up one and in its layout."""
        device = source._batch[0].device
        for step in range(self.steps):
            images, labels = _golden.batch(self.recipe, step)
            images = images.double() if self._reference else images
            yield images.to(device).contiguous(memory_format=devices.memory_format(device)), labels.to(device)

    def _start(self, model, optimizer, opt_level, loss_scale=None, device=torch.device("cpu"), dtype=None):
        """Stand for precision.initialize: with the golden weights, and with the golden logits first."""
        self._keys = [[key, list(value.shape), str(value.dtype).replace("torch.", "")] for key, value in model.state_dict().items()]
        if self._reference:
            model.double()
        self._logits = self._golden_logits(model, device) if opt_level == "O0" else None
        model.load_state_dict(_calibrated(self.recipe) if self.recipe.weights.get("calibrate")
                              else _golden.start_weights(self.recipe, model.state_dict()))
        self.network = _layers.on_cpu(model) if self._watch else None
        model, optimizer, amp = self._initialize(model, optimizer, opt_level, loss_scale, device, dtype)
        if self._mutate:
            self._mutate(model, optimizer, amp)
        if self._rounded:
            _layers.round_outputs(model, self._rounded)
        self._hooks = _layers.Watch(model) if self._watch else None
        self.model, self._optimizer, self._amp = model, optimizer, amp
        self._backward, self._step = amp.backward, amp.step
        amp.backward, amp.step = self._take_backward, self._take_step
        self._name_parameters()
        return model, optimizer, amp

    def _golden_logits(self, model, device):
        wanted = _golden.logits(self.recipe)
        held = {key: value.clone() for key, value in model.state_dict().items()}
        model.load_state_dict(_golden.fill.fill_state_dict(held))
        hooks = _layers.round_outputs(model, self._rounded) if self._rounded else []
        images = _golden.fill.make_input(wanted.batch, wanted.height, wanted.width, wanted.seed).to(next(model.parameters()).dtype)
        model.train(wanted.train)
        with torch.no_grad():
            found = model(images.to(device).contiguous(memory_format=devices.memory_format(device)))
        model.train()
        model.load_state_dict(held)
        for hook in hooks:
            hook.remove()
        return found.detach().cpu().double()

    def _name_parameters(self):
        named = {value.data_ptr(): key for key, value in self.model.state_dict().items() if value.numel()}
        self._names = {parameter: named.get(parameter.data_ptr(), "?") for group in self._optimizer.param_groups
                       for parameter in group["params"]}

    # --- a step ---

    def _take_backward(self, loss):
        self._losses.append(float(loss.detach()))
        self._backward(loss)

    def _take_step(self):
        self._rates.append(self._optimizer.param_groups[0]["lr"])
        scale = self._loss_scale = self._scale()
        noted = [(name, parameter, parameter.detach().clone(), parameter.grad.detach() / scale)
                 for parameter, name in self._names.items() if parameter.grad is not None]
        self._skipped += not all(bool(torch.isfinite(gradient).all()) for _, _, _, gradient in noted)
        if self.done == 0:
            self._gradients = {name: float(gradient.cpu().double().norm()) for name, _, _, gradient in noted}
        groups = {parameter: {key: value for key, value in group.items() if key != "params"}
                  for group in self._optimizer.param_groups for parameter in group["params"]}
        self._step()
        if self._watch:
            self._updates += [Update(self.done, name, before.cpu(), gradient.cpu(), parameter.detach().cpu().clone(), groups[parameter])
                              for name, parameter, before, gradient in noted]
            self._hooks.end_step(keep=self._watch == "all")
        self.done += 1
        if self.done == self.steps:
            raise Enough()

    def _scale(self):
        scaler = getattr(self._amp, "_scaler", None)
        device = next(self.model.parameters()).device
        return float(scaler.scale(torch.ones((), device=device))) if scaler is not None else 1.0

    def trace(self):
        """Return the Trace of the steps."""
        state = {key: value.detach().cpu().double() for key, value in self.model.state_dict().items()}
        parameters = [state[name] for name, _ in self.model.named_parameters()]
        statistics = [value for key, value in state.items() if "running_" in key]
        norms = {"parameters": _norm(parameters), "statistics": _norm(statistics)}
        types = sorted({str(parameter.dtype) for parameter in self._names})
        return Trace(self._losses, self._rates, self._logits, self._gradients, norms, self._amp.opt_level, self._keys, types,
                     self._hooks.calls if self._hooks else [], self._updates, self.network, self._amp.note, self._skipped,
                     self._loss_scale, state)


def _norm(tensors):
    return sum(float(tensor.pow(2).sum()) for tensor in tensors) ** 0.5

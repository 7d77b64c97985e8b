"""What is asked of every network: its layout, its logits, and steps of training, from filled weights."""
import ast
import re

import numpy as np
import torch

import fill
from HRNet.lib.model_stats import model_stats


def layout(model):
    """Return [[key, shape, type]] of the state dict, in order."""
    return [[key, list(tensor.shape), str(tensor.dtype).replace("torch.", "")] for key, tensor in model.state_dict().items()]


def parameters(model):
    """Return how many numbers are trained."""
    return sum(parameter.numel() for parameter in model.parameters())


def filled(model):
    """Give the model the weights of ci/fill.py and return it."""
    model.load_state_dict(fill.fill_state_dict(model.state_dict()))
    return model


def images(spec, dtype=torch.float32):
    """Return the input of a {batch, height, width, seed}."""
    return fill.make_input(spec["batch"], spec["height"], spec["width"], spec["seed"]).to(dtype)


def batches(spec, steps, classes, seeds, dtype=torch.float32):
    """Return [(images, labels)] of a {batch, height, width}; `seeds`: of the first step's images and of its labels."""
    return [(fill.make_input(spec["batch"], spec["height"], spec["width"], seeds[0] + step).to(dtype),
             fill.make_target(spec["batch"], classes, seeds[1] + step)) for step in range(steps)]


def in_words(text):
    """Return the tensor that a golden file's words name: what the first `make_input(…)` or `make_target(…)` in them gives."""
    name, arguments = re.search(r"(make_input|make_target)\(([^)]*)\)", text).groups()
    call = ast.parse("f(%s)" % arguments).body[0].value
    return getattr(fill, name)(*[ast.literal_eval(value) for value in call.args],
                               **{word.arg: ast.literal_eval(word.value) for word in call.keywords})


def raised(logits, target, by):
    """Return logits (N, classes) in which the label's own are higher."""
    logits = logits.reshape(len(target), -1).clone()
    logits[torch.arange(len(target)), target] += by
    return logits


def described(values, index=None, ddof=0):
    """Return shape, mean and standard deviation (over N - ddof) of an image, and with `index` its values at these flat positions."""
    array = np.asarray(values, dtype=np.float64)
    found = {"shape": list(array.shape), "mean": float(array.mean()), "std": float(array.std(ddof=ddof))}
    return found if index is None else dict(found, values=array.ravel()[index].tolist())


def l2(tensors):
    """Return the norm over all numbers of some tensors, summed in float64."""
    return sum(float(tensor.detach().double().pow(2).sum()) for tensor in tensors) ** 0.5


def statistics(model, ending=""):
    """Return the running means and variances, or those whose name ends so."""
    return [value for name, value in model.named_buffers() if "running_" in name and name.endswith(ending)]


def multiply_adds(model, height, width):
    """Return the multiply-adds of convolutions and linear layers for one image."""
    return model_stats(model, height, width).multiply_adds


def recorded(logits, first):
    """Return what a file records of logits (N, classes), the first 16 of each row under the name `first`."""
    logits = logits.double()
    return {"shape": list(logits.shape), first: logits[:, :16].tolist(), "row_sum": logits.sum(1).tolist(),
            "row_l2": logits.norm(dim=1).tolist(), "argmax": logits.argmax(1).tolist()}


def rates(base, milestones, factor, epochs, early=False):
    """Return the rate of each epoch from 0: PyTorch's MultiStepLR, moved after each epoch, or `early`, before it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, factor)
    found = []
    for _ in range(epochs + 1):
        optimizer.step()
        found.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    return found[1:] if early else found


def norms(model):
    """Return the BatchNorm layers."""
    return [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]


def calibrate(model, batch):
    """Make the running statistics those of one batch: one pass in train mode with momentum 1. Return its logits."""
    momenta = [layer.momentum for layer in norms(model)]
    for layer in norms(model):
        layer.momentum = 1.0
    with torch.no_grad():
        logits = model.train()(batch)
    for layer, momentum in zip(norms(model), momenta):
        layer.momentum = momentum
    return logits


def evaluated(model, batch, names=()):
    """Return (logits in eval mode, {name: what the module of that name gave}); what a module gives is copied before others change it."""
    seen = {}

    def hook(name):
        def note(_, __, output):
            seen[name] = [part.clone() for part in output] if isinstance(output, (list, tuple)) else output.clone()
        return note
    hooks = [dict(model.named_modules())[name].register_forward_hook(hook(name)) for name in names]
    with torch.no_grad():
        logits = model.eval()(batch)
    for each in hooks:
        each.remove()
    return logits, seen


def train(model, optimizer, criterion, batches, every=1):
    """Return (losses, {parameter: norm of its gradient in the first step}) of steps over [(images, labels)]; an update after every
    `every` of them, of the mean gradient."""
    model.train()
    losses, gradients = [], {}
    optimizer.zero_grad()
    for step, (batch, labels) in enumerate(batches):
        loss = criterion(model(batch), labels)
        (loss / every).backward()
        losses.append(loss.item())
        if step == 0:
            gradients = {name: l2([parameter.grad]) for name, parameter in model.named_parameters() if parameter.grad is not None}
        if (step + 1) % every == 0:
            optimizer.step()
            optimizer.zero_grad()
    return losses, gradients

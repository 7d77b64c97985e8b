"""Whether the entries of a checkpoint are what they have to be, whoever wrote the file: its weights, its numbers, the states in it."""
import torch

from common import ranges
from common.cli import UserError

# Where a run is, what it must not change, and what an optimizer's group of parameters goes by.
_NUMBERS = {"epoch": ranges.count, "step": ranges.count, "seed": ranges.seed, "global_batch": ranges.size, "world_size": ranges.size,
            "train_images": ranges.size, "step_images": ranges.size, "run_length": ranges.size}
_RATES = dict.fromkeys(("lr", "momentum", "dampening", "weight_decay"), ranges.natural)


def _is_dense(value):
    return torch.is_tensor(value) and value.layout is torch.strided and value.device.type != "meta"


def check_weights(state, source):
    """Raise UserError unless a state_dict holds dense tensors alone, by their names."""
    for name, value in state.items():
        if not isinstance(name, str) or not _is_dense(value):
            kind = "%s, %s" % (value.layout, value.device) if torch.is_tensor(value) else type(value).__name__
            raise UserError("%s: %.99r among its weights is no name of a dense tensor (%s)" % (source, name, kind))


def check_run(content, source):
    """Raise UserError unless a training can go on with the numbers and names in a loaded checkpoint; what is not there does no harm."""
    results, classes = content.get("results", {}), content.get("classes", [])
    if not isinstance(results, dict) or not all(isinstance(name, str) for name in results):
        raise UserError("%s: its results are no numbers by name" % source)
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError("%s: its classes are no list of names" % source)
    measured = [name for name, value in results.items() if value is not None]
    complaint = ranges.complaint(content, _NUMBERS) or ranges.complaint(results, dict.fromkeys(measured, ranges.natural))
    if complaint:
        raise UserError("%s: %s" % (source, complaint))


def percentage(value, source):
    """Return an accuracy or an error in a checkpoint, a number or a tensor of one, as a float; None for None. Raises UserError."""
    number = value.item() if torch.is_tensor(value) and value.numel() == 1 else value
    if number is not None and number not in ranges.Range(0, 100, "[]"):
        raise UserError("%s: its best result is %.99r, not a number of per cent" % (source, value))
    return number if number is None else float(number)


def not_finite(state):
    """Return the name, such as `state_dict.fc.weight`, of the first tensor in nested dictionaries and lists that is not finite all over,
    or None. All tensors have to be on one device, which is waited for once."""
    named = list(_floats(state, ""))
    finite = torch.stack([torch.isfinite(tensor).all() for _, tensor in named]).tolist() if named else []
    return next((name for (name, _), is_finite in zip(named, finite) if not is_finite), None)


def _floats(value, name):
    if torch.is_tensor(value) and value.is_floating_point() and value.layout == torch.strided:
        yield name, value.float() if value.element_size() < 4 else value  # an old CPU looks at no half precision
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, entry in pairs:
        yield from _floats(entry, "%s.%s" % (name, key) if name else str(key))


def check_optimizer(optimizer):
    """Raise ValueError where what an optimizer has just loaded does not fit its parameters: PyTorch notices in a step, or never."""
    complaints = [ranges.complaint(group, _RATES) for group in optimizer.param_groups]
    complaints += ["%s for a parameter of %s" % (name, list(parameter.shape))
                   for parameter, state in optimizer.state.items() for name, value in state.items()
                   if not (value is None or value in ranges.natural or _is_dense(value) and value.shape in (parameter.shape, ()))]
    if any(complaints):
        raise ValueError(next(filter(None, complaints)))

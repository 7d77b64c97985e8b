"""What the layers of one machine or environment did, in a file, and how far another one is from it."""
import torch

from common import checkpoint, outputs
from common.cli import UserError
from comparison import _layers

FORMAT = "layers 1"


def save(trace, path):
    """Write the losses and the layers' results and gradients of a watched _steps.Trace. Raises TrainingStopped where that cannot be."""
    calls = [{"step": call.step, "name": call.name, "output": call.output.cpu(), "gradient": _gradient(call, trace.scale)}
             for call in trace.calls]
    with outputs.writing(path), open(path, "wb") as stream:
        torch.save({"format": FORMAT, "losses": trace.losses, "calls": calls}, stream)


def _gradient(call, scale):
    """Return the gradient of a layer's result without the loss scale, in float32, on the host."""
    return call.gradient if call.gradient is None else call.gradient.cpu().float() / scale


def load(path):
    """Return what `save` has written. Raises UserError for another file."""
    content = checkpoint.load(path)
    if content.get("format") != FORMAT:
        raise UserError("%s is no dump of compare_devices.py --dump" % path)
    return content


def apart(trace, other):
    """Return Rows of how far the layers of a Trace are from a dump's, through the whole network. The bound is rough: rounding of both,
    which grows with the layers that came before."""
    rows, mine = [], {(call.step, call.name, number): call for number, call in enumerate(trace.calls)}
    for number, call in enumerate(other["calls"]):
        own = mine.get((call["step"], call["name"], number))
        if own is None or own.output.shape != call["output"].shape:
            raise UserError("the dump is of another training: its layer number %d is %s" % (number, call["name"]))
        unit = max(_layers.ROUNDOFF[own.output.dtype], _layers.ROUNDOFF[call["output"].dtype])
        for phase, value, theirs in (("forward", own.output, call["output"]), ("gradient", _gradient(own, trace.scale), call["gradient"])):
            if value is not None and theirs is not None:
                error = _layers.relative_error(value.cpu().double(), theirs.double())
                rows.append(_layers.Row(call["step"], call["name"], phase, error, 2 * _layers.FACTOR * unit * (len(mine) ** 0.5)))
    return rows

"""Upstream's golden values, the float64 reference and a device held against each other, with bounds that follow from the reference.

Two links make the chain. The float64 run of the port's own program on the CPU has to give upstream's golden values; then the device, at
each level, may be as far from that float64 run as its precision explains: FACTOR times what the same float64 run loses when the output
of every layer, and its gradient, is rounded to that precision, and the rounding of each of the layers that follow on one another once
more. Neither looks at what the device has given.
"""
import math
from collections import namedtuple

import torch

from comparison import _golden, _layers, _steps

# what: in words; figure, bound: relative errors, or what was found and what it should be; source: of the bound.
Finding = namedtuple("Finding", "what figure bound source passed note")

LEVELS = (("O0", "O0", None), ("O1", "O1", None), ("O2", "O2", None), ("bf16", "O1", "bf16"))  # name, --opt-level, --amp-dtype
UPSTREAM = "ci/golden, its stated tolerance"
REFERENCE = "float64 on the CPU with every layer rounded to %s, x " + str(_layers.FACTOR)


class References(object):
    """The float64 runs of a recipe, made when they are needed."""

    def __init__(self, recipe, steps):
        self._recipe, self._steps, self._made = recipe, steps, {}

    def exact(self):
        """Return the Trace in float64."""
        return self._run(None)

    def rounded(self, dtype):
        """Return the Trace in which each layer is rounded to `dtype`; half types are computed in float32, whose own errors are small
        beside theirs."""
        return self._run(dtype)

    def _run(self, dtype):
        if dtype not in self._made:
            self._made[dtype] = _steps.run(self._recipe, steps=self._steps, rounded=dtype, reference=dtype in (None, torch.float32))
        return self._made[dtype]


def of_schedules(model):
    """Yield a Finding for each golden table of learning rates, from the model's own function."""
    for name, rate, points in _golden.schedules(model):
        errors = [(abs(rate(epoch) - wanted) / abs(wanted), epoch) for epoch, wanted in points if wanted]
        error, epoch = max(errors)
        yield Finding("schedule %s" % name, error, 1e-9, UPSTREAM, error <= 1e-9, "%d epochs; farthest: epoch %d" % (len(errors), epoch))


# --- upstream and float64 ---------------------------------------------------------------------------------------------

def of_upstream(recipe, references):
    """Yield the Findings of the float64 reference against the golden values."""
    trace = references.exact()
    wanted = _golden.state_keys(recipe.model)
    if trace.keys and _is_main(recipe):
        yield Finding("state keys", "%d keys" % len(trace.keys), "%d keys" % len(wanted), "ci/golden, equal", trace.keys == wanted,
                      _first_difference(trace.keys, wanted))
    yield _close("learning rate", trace.rates[0], recipe.rate, 1e-9, UPSTREAM)
    losses = recipe.losses[:len(trace.losses)]
    tolerance, source = recipe.tolerance, UPSTREAM
    if not recipe.exact:  # upstream ran in float32: its own rounding comes on top
        tolerance = max(tolerance, _bound(references, torch.float32, lambda run: run.losses))
    error = max(abs(found - loss) / abs(loss) for found, loss in zip(trace.losses, losses))
    yield Finding("%d losses in float64" % len(losses), error, tolerance, source, error <= tolerance, "")
    for name, norm in sorted(recipe.norms.items()) if len(trace.losses) == len(recipe.losses) else ():
        yield _close("l2 of %s after %d steps in float64" % (name, len(losses)), trace.norms[name], norm, tolerance, source)


def _is_main(recipe):
    """Return whether the recipe's network is the one whose keys and logits are recorded."""
    return recipe.model != "GENet" or recipe.name == _golden.golden("GENet")["variants"][0]["arch"]


def _first_difference(found, wanted):
    different = [(own, golden) for own, golden in zip(found, wanted) if own != golden]
    return "first difference: %s, upstream %s" % different[0] if different else ""


def _close(what, found, wanted, tolerance, source):
    error = abs(found - wanted) / max(abs(wanted), 1e-300)
    return Finding(what, error, tolerance, source, error <= tolerance, "%.9g, upstream %.9g" % (found, wanted))


# --- float64 and the device -------------------------------------------------------------------------------------------

def of_device(recipe, references, device, name, level, dtype, watch=True, mutate=None):
    """Return (Findings, layers' Rows, the Trace) of the recipe on `device` at a level."""
    exact = references.exact()
    trace = _steps.run(recipe, device, level, dtype, len(exact.losses), watch=watch, mutate=mutate)
    if trace.level != level:
        return [Finding("%s, level" % name, trace.level, level, "", None, trace.note)], [], trace
    found = list(_trace_findings(name, trace, references, _type_of(trace, level, device, dtype)))
    rows = list(_layers.compare(trace)) if watch else []
    return found + _row_findings(name, rows), rows, trace


def _type_of(trace, level, device, dtype):
    if level == "O0":
        return torch.float32
    return torch.bfloat16 if dtype == "bf16" or device.startswith("cpu") else torch.float16


def _trace_findings(name, trace, references, dtype):
    exact, source = references.exact(), REFERENCE % str(dtype).replace("torch.", "")
    if trace.logits is not None and exact.logits is not None:
        for finding in _logits_findings(name, trace, references, source):
            yield finding
    yield Finding("%s, what the optimizer moves" % name, ", ".join(trace.types), "torch.float32",
                  "fp32 master weights (apex's levels)", trace.types == ["torch.float32"], "")
    yield Finding("%s, learning rate" % name, trace.rates[0], exact.rates[0], "equal to the reference's", trace.rates == exact.rates, "")
    if trace.skipped:
        yield Finding("%s, steps that were skipped" % name, trace.skipped, 0, "a static loss scale", False, "gradients that are not finite")
        return
    for what, of in (("losses", lambda run: run.losses), ("gradients of the first step", _gradients), ("norms at the end", _norms)):
        bound = _bound(references, dtype, of)
        error = _distance(of(trace), of(exact))
        yield Finding("%s, %s" % (name, what), error, bound, source, error <= bound, "")


def _logits_findings(name, trace, references, source):
    wanted, exact = _golden.logits(references._recipe.model), references.exact().logits
    bound = _bound(references, torch.float32, lambda run: run.logits, distance=_tensor_distance)
    error = _tensor_distance(trace.logits, exact)
    yield Finding("%s, logits" % name, error, bound, source, error <= bound, "")
    golden = torch.tensor(wanted.first, dtype=torch.float64)
    norms = torch.tensor(wanted.norms, dtype=torch.float64)
    error = float(((trace.logits[:, :golden.shape[1]] - golden).norm(dim=1) / norms).max())
    yield Finding("%s, logits against upstream's" % name, error, 2 * bound, source + ", twice, as upstream's rounding is another",
                  error <= 2 * bound, "")


def _gradients(run):
    return [run.gradients[name] for name in sorted(run.gradients)]


def _norms(run):
    return [run.norms[name] for name in sorted(run.norms)]


def _distance(found, exact):
    """Return the largest relative distance of numbers, each beside the size of all where it is far smaller."""
    size = max(abs(value) for value in exact)
    errors = [abs(own - value) / max(abs(value), 1e-3 * size) for own, value in zip(found, exact)]
    return max(errors) if all(math.isfinite(error) for error in errors) else float("inf")


def _tensor_distance(found, exact):
    error = float((found - exact).norm() / exact.norm())
    return error if math.isfinite(error) else float("inf")


def _bound(references, dtype, of, distance=_distance):
    """Return how far the precision `dtype` may be from float64."""
    exact, rounded = references.exact(), references.rounded(dtype)
    depth = sum(1 for name in exact.gradients if name.endswith("weight"))
    return _layers.FACTOR * distance(of(rounded), of(exact)) + _layers.ROUNDOFF[dtype] * math.sqrt(depth)


# --- layers -----------------------------------------------------------------------------------------------------------

def _row_findings(name, rows):
    """Return a Finding for each kind of phase: its worst row, or the first that leaves its bound."""
    found = []
    for kind in ("forward", "backward", "gradient", "running", "update"):
        of_kind = [row for row in rows if row.phase.startswith(kind)]
        if not of_kind:
            continue
        outside = [row for row in of_kind if not row.error <= row.bound]
        if kind == "backward":  # goes from the last layer to the first
            outside = outside[::-1]
        shown = outside[0] if outside else max(of_kind, key=_share)
        note = "%s first leaves its bound, in step %d; %d of %d do" % (shown.layer, shown.step, len(outside), len(of_kind)) if outside else (
            "worst of %d: %s" % (len(of_kind), shown.layer))
        found.append(Finding("%s, %s" % (name, shown.phase), shown.error, shown.bound,
                             "float64 on the CPU from the same inputs; the CPU's own rounding x %d" % _layers.FACTOR, not outside, note))
    return found


def _share(row):
    return row.error / max(row.bound, 1e-300)


def worst(rows, count=10):
    """Return the rows that are farthest outside their bound, or nearest to it."""
    return sorted(rows, key=_share, reverse=True)[:count]

"""Upstream's golden values, the float64 reference and a device held against each other, with bounds that follow from the reference.

Two links make the chain. The float64 run of the port's own program on the CPU has to give upstream's golden values; then the device, at
each level, may be as far from that float64 run as its precision explains: FACTOR times what the same float64 run loses when the output
of every layer, and its gradient, is rounded to that precision, and the rounding of each of the layers that follow on one another once
more. In float32 the run itself rounds FACTOR times as much (_layers._loss_of), and counts DRAW times, as it is one draw of many. Neither
looks at what the device has given.
"""
import math
from collections import namedtuple

import torch

from comparison import _golden, _layers, _steps

# what: in words; figure, bound: relative errors, or what was found and what it should be; source: of the bound.
Finding = namedtuple("Finding", "what figure bound source passed note", defaults=("",))

LEVELS = (("O0", "O0", None), ("O1", "O1", None), ("O2", "O2", None), ("bf16", "O1", "bf16"))  # name, --opt-level, --amp-dtype
LINEAR = 0.05  # where rounding alone moves a result by more, errors no longer grow in proportion, and a bound would say nothing
UPSTREAM = "ci/golden, its stated tolerance"
DRAW = 3  # by how much one run with rounding may fall short of another: four of ResNet50 differed by 2.2


class References(object):
    """The float64 runs of a recipe, made when they are needed."""

    def __init__(self, recipe, steps):
        self.recipe, self._steps, self._made = recipe, steps, {}

    def exact(self):
        """Return the Trace in float64."""
        return self.rounded(None)

    def rounded(self, dtype):
        """Return the Trace in which each layer is rounded to `dtype`; half types are computed in float32, whose own errors are small
        beside theirs."""
        if dtype not in self._made:
            trace = _steps.run(self.recipe, steps=self._steps, rounded=dtype, reference=dtype in (None, torch.float32))
            # Of the rounded ones the distance is all that is needed: a state is 8 bytes a weight.
            self._made[dtype] = trace if dtype is None else trace._replace(state=distances(trace.state, self.exact().state))
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
    wanted = _golden.state_keys(recipe)
    yield Finding("state keys", "%d keys" % len(trace.keys), "%d keys" % len(wanted), "ci/golden, equal", trace.keys == wanted,
                  _first_difference(trace.keys, wanted))
    yield _close("learning rate", trace.rates[0], recipe.rate, 1e-9, UPSTREAM)
    losses = recipe.losses[:len(trace.losses)]
    tolerance, source = recipe.tolerance, UPSTREAM
    if not recipe.exact:  # upstream ran in float32: its own rounding comes on top
        tolerance = max(tolerance, _bound(references, torch.float32, lambda run: run.losses))
    error = max(abs(found - loss) / abs(loss) for found, loss in zip(trace.losses, losses))
    yield Finding("%d losses in float64" % len(losses), error, tolerance, source, error <= tolerance)
    for name, norm in sorted(recipe.norms.items()) if len(trace.losses) == len(recipe.losses) else ():
        yield _close("l2 of %s after %d steps in float64" % (name, len(losses)), trace.norms[name], norm, tolerance, source)


def _first_difference(found, wanted):
    different = [(own, golden) for own, golden in zip(found, wanted) if own != golden]
    return "first difference: %s, upstream %s" % different[0] if different else ""


def _close(what, found, wanted, tolerance, source):
    error = abs(found - wanted) / max(abs(wanted), 1e-300)
    return Finding(what, error, tolerance, source, error <= tolerance, "%.9g, upstream %.9g" % (found, wanted))


# --- float64 and the device -------------------------------------------------------------------------------------------

def of_device(recipe, references, device, name, level, dtype, watch=True, mutate=None):
    """Return (Findings, layers' Rows) of the recipe on `device` at a level."""
    exact = references.exact()
    trace = _steps.run(recipe, device, level, dtype, len(exact.losses), watch=watch, mutate=mutate)
    if trace.level != level:
        return [Finding("%s, level" % name, trace.level, level, "", None, trace.note)], []
    found = list(_trace_findings(name, trace, references, _type_of(level, device, dtype)))
    rows = list(_layers.compare(trace)) if watch else []
    return found + _row_findings(name, rows), rows


def _type_of(level, device, dtype):
    if level == "O0":
        return torch.float32
    return torch.bfloat16 if dtype == "bf16" or device.startswith("cpu") else torch.float16


def _trace_findings(name, trace, references, dtype):
    exact, source = references.exact(), _source(dtype)
    if trace.logits is not None and exact.logits is not None:
        yield from _logits_findings(name, trace, references, source)
    yield Finding("%s, what the optimizer moves" % name, ", ".join(trace.types), "torch.float32",
                  "fp32 master weights (apex's levels)", trace.types == ["torch.float32"])
    yield Finding("%s, learning rate" % name, trace.rates[0], exact.rates[0], "equal to the reference's", trace.rates == exact.rates)
    if trace.skipped:
        yield Finding("%s, steps that were skipped" % name, trace.skipped, 0, "a static loss scale", False, "gradients not finite")
        return
    yield _within("%s, losses" % name, *_losses(trace, references, dtype), source=source)
    moved = _tensor_distance(_gradients(references.rounded(dtype)), _gradients(exact))
    found = [("gradients of the first step", _tensor_distance(_gradients(trace), _gradients(exact)), moved)]
    lost = references.rounded(dtype).state
    found += [(part + " at the end", error, lost[part]) for part, error in sorted(distances(trace.state, exact.state).items())]
    for what, error, moved in found:
        note = "rounding alone moves them by %.2g" % moved if moved > LINEAR else ""
        yield _within("%s, %s" % (name, what), error, None if note else _allowed(moved, exact, dtype), note, source)


def _losses(trace, references, dtype):
    """Return (error, bound, note) of the losses up to the step from which rounding alone changes them much."""
    exact, lost = references.exact().losses, references.rounded(dtype).losses
    moved = [abs(rounded - loss) / abs(loss) for rounded, loss in zip(lost, exact)]
    steps = next((number for number, share in enumerate(moved) if share > LINEAR and number), len(moved))
    note = "%d of %d steps; in the others rounding alone moves the loss by more than %g" % (steps, len(moved), LINEAR)
    return (_distance(trace.losses[:steps], exact[:steps]), _allowed(max(moved[:steps]), references.exact(), dtype),
            note if steps < len(moved) else "%d steps" % steps)


def _within(what, error, bound, note, source):
    """Return the Finding of an error that may not exceed its bound; without a bound it means nothing."""
    return Finding(what, error, "-", source, None, note) if bound is None else Finding(what, error, bound, source, error <= bound, note)


def distances(state, exact):
    """Return {"weights": ..., "statistics": ...}: how far two states are from each other, relative to the second."""
    found = {}
    for part in ("weights", "statistics"):
        names = [name for name in exact if ("running_" in name) == (part == "statistics") and "num_batches" not in name]
        apart = sum(float((state[name] - exact[name]).pow(2).sum()) for name in names) ** 0.5
        error = apart / sum(float(exact[name].pow(2).sum()) for name in names) ** 0.5
        found[part] = error if math.isfinite(error) else float("inf")
    return found


def _logits_findings(name, trace, references, source):
    wanted, exact = _golden.logits(references.recipe), references.exact().logits
    bound = _bound(references, torch.float32, lambda run: run.logits, distance=_tensor_distance)
    error = _tensor_distance(trace.logits, exact)
    yield Finding("%s, logits" % name, error, bound, source, error <= bound)
    golden = torch.tensor(wanted.first, dtype=torch.float64)
    norms = torch.tensor(wanted.norms, dtype=torch.float64)
    error = float(((trace.logits[:, :golden.shape[1]] - golden).norm(dim=1) / norms).max())
    yield Finding("%s, logits against upstream's" % name, error, 2 * bound, source + ", twice, as upstream's rounding is another",
                  error <= 2 * bound)


def _gradients(run):
    """Return the l2 norms of the gradients of all parameters, in float64."""
    return torch.tensor([run.gradients[name] for name in sorted(run.gradients)], dtype=torch.float64)


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
    return _allowed(distance(of(rounded), of(exact)), exact, dtype)


def _allowed(moved, exact, dtype):
    """Return the bound of what the run with rounding has moved so far from the `exact` Trace."""
    return (DRAW if dtype == torch.float32 else _layers.FACTOR) * moved + _floor(exact, dtype)


def _source(dtype):
    """Return where such a bound comes from, in words."""
    if dtype == torch.float32:
        return "float64 on the CPU with every layer rounded %d times as much as float32 does, x %d" % (_layers.FACTOR, DRAW)
    return "float64 on the CPU with every layer rounded to %s, x %d" % (str(dtype).replace("torch.", ""), _layers.FACTOR)


def _floor(exact, dtype):
    """Return what the layers that follow on one another round at least: the roundoff, which adds up as a random walk."""
    return _layers.ROUNDOFF[dtype] * math.sqrt(sum(1 for key, _, _ in exact.keys if key.endswith("weight")))


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
        note = "worst of %d: %s" % (len(of_kind), shown.layer)
        if outside:
            note = "%s first leaves its bound, in step %d; %d of %d do" % (shown.layer, shown.step, len(outside), len(of_kind))
        found.append(Finding("%s, %s" % (name, shown.phase), shown.error, shown.bound,
                             "float64 on the CPU from the same inputs; the CPU's own rounding x %d" % _layers.FACTOR, not outside, note))
    return found


def _share(row):
    return row.error / max(row.bound, 1e-300)


def worst(rows, count):
    """Return the rows that are farthest outside their bound, or nearest to it."""
    return sorted(rows, key=_share, reverse=True)[:count]

"""How many operators a training step launches, and how often the host waits for the device.

Runs a training program of this repository with its own arguments, and counts over ten steps after the first eleven: what autograd
and Python hand to the dispatcher, without views and empty allocations; a call for many tensors (foreach, fused) is one. A wait is a
value read by the host, a copy to it or a synchronisation, after at least one operator since the wait before. What the program
prints goes to stderr. Needs PyTorch 2. On a CPU optimizers are made to take the form that they take on accelerators.

    python tools/benchmark.py operators ResNet50/main.py demo_data/imagenet --batch-size=8 --image-size=64 --epochs=1 \\
        --max-steps=22 --save-ckpt-path=/tmp/benchmark --workspace=/tmp/benchmark

Several ranks are counted on rank 0: torchrun --nproc_per_node=2 tools/benchmark.py operators ...
"""
import collections
import contextlib
import json
import os
import traceback

import torch

from common import cli, device as devices
from benchmarks import _program

FIRST, COUNTED = 11, 10  # steps up to the end of the warm-up, at which the host waits once; steps that are counted
PHASES = ("forward", "backward", "update", "rest")
_ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "set_")
_HERE = os.path.abspath(__file__)


class Enough(BaseException):
    """Ends the program once all has been counted; nothing in it may catch this."""


class Counter(object):
    """Operators of the counted steps by phase, and the source line of each wait."""

    def __init__(self):
        self.phase, self.done = "rest", 0  # done: optimizer steps
        self.operators = {phase: collections.Counter() for phase in PHASES}
        self.waits = collections.Counter()
        self._busy = False  # whether an operator was launched since the last wait

    @property
    def is_counting(self):
        """Whether the step in hand is one of those that count."""
        return FIRST <= self.done < FIRST + COUNTED

    @property
    def is_complete(self):
        """Whether all steps that count have been taken."""
        return self.done >= FIRST + COUNTED

    def operator(self, name):
        """Note an operator."""
        self._busy = True
        if self.is_counting:
            self.operators[self.phase][name] += 1

    def wait(self):
        """Note that the host waits for the device."""
        if self.is_counting and self._busy:
            self.waits[_line_of_caller()] += 1
        self._busy = False

    def watched(self, function, phase):
        """Return `function` with what it launches in `phase`, but for what a watched function inside of it launches."""
        def in_phase(*args, **kwargs):
            outer, self.phase = self.phase, phase
            try:
                return function(*args, **kwargs)
            finally:
                self.phase = outer
        return in_phase

    def rows(self):
        """Return [(phase, operators a step)] with the total last."""
        counts = [(phase, sum(self.operators[phase].values()) / COUNTED) for phase in PHASES]
        return counts + [("total", sum(count for _, count in counts))]


def _line_of_caller():
    """Return "file:line" of the innermost frame of this repository outside this file."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(_HERE)))
    for frame in reversed(traceback.extract_stack()):
        path = os.path.abspath(frame.filename)
        if path.startswith(root + os.sep) and path != _HERE and "site-packages" not in path:
            return "%s:%d" % (os.path.relpath(path, root), frame.lineno)
    return "outside of this repository"


def _dispatch_mode(counter):
    """Return the context in which PyTorch tells `counter` of each operator."""
    try:
        from torch.utils._python_dispatch import TorchDispatchMode
    except ImportError:
        raise cli.UserError("PyTorch %s does not show its operators to Python; take PyTorch 2" % torch.__version__)

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func._schema.name.split("::")[-1]
            if name == "_local_scalar_dense" or _leaves_device(name, args, kwargs or {}):
                counter.wait()
            elif not _is_free(func._schema, name):
                counter.operator(str(func).rsplit(".", 1)[0])
            return func(*args, **(kwargs or {}))
    return Mode()


def _leaves_device(name, args, kwargs):
    """Return whether an operator copies from an accelerator to the host."""
    if name == "_to_copy":
        target = kwargs.get("device")
        return target is not None and torch.device(target).type == "cpu" and args[0].device.type != "cpu"
    return name in ("copy_", "_copy_from") and args[0].device.type == "cpu" and args[1].device.type != "cpu"


def _is_free(schema, name):
    """Return whether an operator launches nothing: a view, memory that is not filled, a mark for profilers."""
    aliases = [result.alias_info for result in schema.returns if result.alias_info is not None]
    return name in _ALLOCATIONS or schema.name.startswith("profiler::") or bool(aliases) and not any(alias.is_write for alias in aliases)


def _as_on_accelerators(optimizer):
    """Let an optimizer of a CPU take all tensors at once, as it does by itself where kernels are launched."""
    for group in optimizer.param_groups if optimizer is not None else ():
        if group.get("foreach", 0) is None and not group.get("fused"):
            group["foreach"] = True


@contextlib.contextmanager
def _watching(counter):
    """Let `counter` see the phases and the waits of the program that runs in here."""
    originals = torch.Tensor.backward, torch.Tensor.tolist, devices.synchronize

    def watch(model, optimizer, amp):
        _as_on_accelerators(optimizer)
        update = counter.watched(amp.step, "update")

        def counted_step():
            update()
            counter.done += 1
            if counter.is_complete:
                raise Enough()
        _program.in_training(model, counter.watched(model.forward, "forward"))
        amp.backward, amp.step = counter.watched(amp.backward, "update"), counted_step

    def tolist(tensor):
        counter.wait()
        return originals[1](tensor)

    def synchronize(device):
        counter.wait()
        originals[2](device)

    torch.Tensor.backward, torch.Tensor.tolist, devices.synchronize = counter.watched(originals[0], "backward"), tolist, synchronize
    try:
        with _program.watched(watch), _dispatch_mode(counter):
            yield
    finally:
        torch.Tensor.backward, torch.Tensor.tolist, devices.synchronize = originals


def count(path, arguments):
    """Run a training program and return the Counter of its steps. Raises UserError where it takes too few."""
    counter = Counter()
    with _watching(counter), contextlib.suppress(Enough):
        _program.run(path, arguments)
    if not counter.is_complete:
        raise cli.UserError("too few updates to count (%d); take at least %d" % (counter.done, FIRST + COUNTED))
    return counter


def add_flags(parser):
    """Add the verb's flags to a cli.Parser."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--most", type=cli.natural_int, default=10, help="operators of each phase to name (default 10)")
    _program.add_flags(parser)


def run(args):
    """Count, and print the table."""
    counter = count(args.program, args.arguments)
    if int(os.environ.get("RANK", 0)) == 0:
        print(as_json(counter) if args.json else "\n".join(table(counter, args.most)), flush=True)


def table(counter, most):
    """Return the lines of the table."""
    lines = ["%-10s %10s" % ("phase", "operators")] + ["%-10s %10.1f" % row for row in counter.rows()]
    lines += ["", "%-10s %10.2f" % ("host waits", sum(counter.waits.values()) / COUNTED)]
    lines += ["  %6.2f  %s" % (times / COUNTED, line) for line, times in counter.waits.most_common()]
    for phase in PHASES if most else ():
        lines += ["", phase] + ["  %8.1f  %s" % (times / COUNTED, name) for name, times in counter.operators[phase].most_common(most)]
    return lines


def as_json(counter):
    """Return the counts a step as JSON."""
    return json.dumps({"steps": COUNTED, "operators": dict(counter.rows()),
                       "waits": {line: times / COUNTED for line, times in counter.waits.items()}})


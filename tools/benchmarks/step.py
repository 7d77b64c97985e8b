"""How much of a training step passes outside the model's own forward, backward and optimizer step.

Runs a training program of this repository on one device, with its own arguments and a clock around the three, and says what
is left of each step: waiting for data, copying, normalising, the loss, meters, records. The first third of the steps is left
out. What the program prints goes to stderr.

    python tools/benchmark.py step ResNet50/main.py demo_data/imagenet --batch-size=32 --image-size=64 --epochs=1 \\
        --max-steps=30 --save-ckpt-path=/tmp/benchmark --workspace=/tmp/benchmark
"""
import time

from benchmarks import _program
from common import cli, device as devices


class Clock(object):
    """Adds up the time that the functions it watches take, the device's work included."""

    def __init__(self):
        self.device = None
        self.seconds = 0.0
        self.steps = []  # (time, `seconds`) at the end of each optimizer step

    def now(self):
        devices.synchronize(self.device)
        return time.perf_counter()

    def timed(self, function):
        """Return `function` with its time added."""
        def call(*args, **kwargs):
            start = self.now()
            result = function(*args, **kwargs)
            self.seconds += self.now() - start
            return result
        return call

    def watch(self, model, optimizer, amp):
        """Put the clock into what precision.initialize has returned."""
        self.device = next(model.parameters()).device
        timed_step = self.timed(amp.step)

        def step():
            timed_step()
            self.steps.append((self.now(), self.seconds))
        _program.in_training(model, self.timed(model.forward))
        amp.backward, amp.step = self.timed(amp.backward), step


def add_flags(parser):
    """Add the verb's flags to its parser."""
    _program.add_flags(parser)


def run(args):
    """Run the program with the clock in it, and print what is left of a step; raise UserError where it made too few."""
    clock = Clock()
    with _program.watched(clock.watch):
        _program.run(args.program, args.arguments)
    steady = clock.steps[len(clock.steps) // 3:]
    if len(steady) < 2:
        raise cli.UserError("too few steps to measure (%d); take at least 3, on one device" % len(clock.steps))
    (first_end, first_seconds), (last_end, last_seconds), count = steady[0], steady[-1], len(steady) - 1
    step, inside = (last_end - first_end) / count, (last_seconds - first_seconds) / count
    print("step                              : %9.2f ms, mean of %d" % (1000 * step, count))
    print("forward, backward, optimizer step : %9.2f ms" % (1000 * inside))
    print("outside of them                   : %9.2f ms, %.1f %% of a step" % (1000 * (step - inside), 100 * (step - inside) / step))

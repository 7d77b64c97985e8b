"""How much of a training step passes outside the model's own forward, backward and optimizer step.

Runs a training program of this repository on one device, with its own arguments and a clock around the three, and says what
is left of each step: waiting for data, copying, normalising, the loss, meters, records. The first third of the steps is left
out. What the program prints goes to stderr.

    python tools/benchmark.py step ResNet50/main.py demo_data/imagenet --batch-size=32 --image-size=64 --epochs=1 \\
        --max-steps=30 --save-ckpt-path=/tmp/benchmark --workspace=/tmp/benchmark
"""
import argparse
import contextlib
import os
import runpy
import sys
import time

from common import cli, device as devices, precision


class Clock(object):
    """Adds up the time that the functions it watches take, the device's work included."""

    def __init__(self):
        self.device = None
        self.seconds = 0.0
        self.steps = []  # (time, `seconds`) at the end of each optimizer step

    def now(self):
        devices.synchronize(self.device)
        return time.perf_counter()

    def watched(self, function):
        def timed(*args, **kwargs):
            start = self.now()
            result = function(*args, **kwargs)
            self.seconds += self.now() - start
            return result
        return timed

    def start(self, initialize):
        """Return `precision.initialize` with the clock put into what it returns."""
        def initialize_watched(*args, **kwargs):
            model, optimizer, amp = initialize(*args, **kwargs)
            self.device = next(model.parameters()).device
            forward, timed_forward, timed_step = model.forward, self.watched(model.forward), self.watched(amp.step)

            def step():
                timed_step()
                self.steps.append((self.now(), self.seconds))

            model.forward = lambda images: (timed_forward if model.training else forward)(images)
            amp.backward, amp.step = self.watched(amp.backward), step
            return model, optimizer, amp
        return initialize_watched


def add_flags(parser):
    """Add the verb's flags to its parser."""
    parser.add_argument("program", help="a training program, such as ResNet50/main.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")


def run(args):
    """Run the program with the clock in it, and print what is left of a step; raise UserError where it made too few."""
    if not os.path.isfile(args.program):
        raise cli.UserError("%s is not a file; give a training program, such as ResNet50/main.py" % args.program)
    clock = Clock()
    precision.initialize = clock.start(precision.initialize)
    sys.argv = [args.program] + args.arguments
    sys.path.insert(0, os.path.dirname(os.path.abspath(args.program)))  # as `python PROGRAM` does
    try:
        with contextlib.redirect_stdout(sys.stderr):
            runpy.run_path(args.program, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    steady = clock.steps[len(clock.steps) // 3:]
    if len(steady) < 2:
        raise cli.UserError("too few steps to measure (%d); take at least 3, on one device" % len(clock.steps))
    (first_end, first_seconds), (last_end, last_seconds), count = steady[0], steady[-1], len(steady) - 1
    step, inside = (last_end - first_end) / count, (last_seconds - first_seconds) / count
    print("step                              : %9.2f ms, mean of %d" % (1000 * step, count))
    print("forward, backward, optimizer step : %9.2f ms" % (1000 * inside))
    print("outside of them                   : %9.2f ms, %.1f %% of a step" % (1000 * (step - inside), 100 * (step - inside) / step))

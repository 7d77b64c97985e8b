"""A training program of this repository, run inside a benchmark."""
import argparse
import contextlib
import os
import runpy
import sys

from common.cli import UserError


def add_flags(parser):
    """Add the program and its arguments to a cli.Parser."""
    parser.add_argument("program", help="a training program, such as ResNet50/main.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")


@contextlib.contextmanager
def watched(watch):
    """Have `watch(model, optimizer, amp)` called with what precision.initialize returns to the program that runs in here."""
    from common import precision
    initialize = precision.initialize

    def initialize_watched(*args, **kwargs):
        made = initialize(*args, **kwargs)
        watch(*made)
        return made
    precision.initialize = initialize_watched
    try:
        yield
    finally:
        precision.initialize = initialize


def in_training(model, forward):
    """Let a network that trains take `forward`, and its own in evaluation."""
    own = model.forward
    model.forward = lambda *inputs: (forward if model.training else own)(*inputs)


def run(path, arguments):
    """Run the program as `python PATH ARGUMENTS` does, with what it prints on stderr. Raises UserError where there is no such file,
    and SystemExit where the program fails."""
    if not os.path.isfile(path):
        raise UserError("%s is not a file; give a training program, such as ResNet50/main.py" % path)
    sys.argv = [path] + list(arguments)
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise

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

"""A program with verbs (`benchmark.py input`): each verb is a module of its own in a folder beside the program.

Such a module has a docstring, whose first line is the verb's help, `add_flags(parser)`, and `run(args)`. It is imported only
when its verb is asked for, so that one verb's needs are not another's.
"""
import argparse
import ast
import importlib
import os
import pkgutil
import signal
import sys
from concurrent.futures.process import BrokenProcessPool

from common import cli

TOOLS = os.path.dirname(os.path.abspath(__file__))


def main(folder, description):
    """The program whose verbs are in tools/`folder`, on its command line; of PROGRAM VERB | head, a shell's own status and no traceback."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    cli.run(lambda: run(folder, description))


def run(folder, description, argv=None):
    """Do what the command line says with the verbs in tools/`folder`. `description`: what --help says above the verbs."""
    argv = sys.argv[1:] if argv is None else argv
    known = found(folder)
    if not argv or argv[0] not in known:
        _overview(known, description).parse_args(argv)  # it is --help or a mistake
    verb = importlib.import_module("%s.%s" % (folder, argv[0]))
    parser = cli.Parser(prog="%s %s" % (os.path.basename(sys.argv[0]), argv[0]), description=verb.__doc__,
                        formatter_class=argparse.RawDescriptionHelpFormatter)
    verb.add_flags(parser)
    try:
        verb.run(parser.parse_args(argv[1:]))
    except BrokenProcessPool:
        raise cli.TrainingStopped("one of the processes was killed; where nobody did, memory ran out: take fewer --workers")


def some_of(known):
    """Return an argparse type: words of `known`, with commas between them."""
    def read(text):
        unknown = set(text.split(",")) - set(known)
        if unknown:
            raise argparse.ArgumentTypeError("%s: choose of %s" % (min(unknown), ", ".join(known)))
        return text.split(",")
    return read


def found(folder):
    """Return {verb: first line of its module's docstring} of those in tools/`folder`, in order."""
    return {module.name: _first_line(os.path.join(TOOLS, folder, module.name + ".py"))
            for module in pkgutil.iter_modules([os.path.join(TOOLS, folder)]) if not module.name.startswith("_")}


def _first_line(path):
    with open(path, encoding="utf-8") as file:
        return ast.get_docstring(ast.parse(file.read())).splitlines()[0]


def _overview(known, description):
    lines = ["  %-12s %s" % verb for verb in known.items()]
    parser = cli.Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
                        epilog="verbs (VERB --help says more):\n" + "\n".join(lines))
    parser.add_argument("verb", metavar="VERB", choices=list(known))
    return parser

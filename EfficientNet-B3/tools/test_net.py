#!/usr/bin/env python3
"""Evaluate the weights TEST.WEIGHTS (a file, or a folder that holds model.pyth)."""
import os
import sys

sys.path[:0] = [os.path.join(os.path.dirname(os.path.abspath(__file__)), *up) for up in ((os.pardir,), (os.pardir, os.pardir))]
from common import cli  # noqa: E402
from pycls.core import command, config, trainer  # noqa: E402


def main():
    args = command.parse(__doc__)
    if not config.cfg.TEST.WEIGHTS:
        raise cli.UserError("nothing to evaluate: name the weights with TEST.WEIGHTS FILE")
    command.launch(trainer.test_model, args, splits=("TEST",))


if __name__ == "__main__":
    cli.run(main)

#!/usr/bin/env python3
"""Train a network."""
import os
import sys

sys.path[:0] = [os.path.join(os.path.dirname(os.path.abspath(__file__)), *up) for up in ((os.pardir,), (os.pardir, os.pardir))]
from common import cli  # noqa: E402
from pycls.core import command, trainer  # noqa: E402


def main():
    args = command.parse(__doc__, trains=True)
    command.launch(trainer.train_model, args, splits=("TRAIN", "TEST"))


if __name__ == "__main__":
    cli.run(main)

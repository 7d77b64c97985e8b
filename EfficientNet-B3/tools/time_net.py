#!/usr/bin/env python3
"""Time a network's forward pass, training step and, with --data-path, its data loader."""
import os
import sys

sys.path[:0] = [os.path.join(os.path.dirname(os.path.abspath(__file__)), *up) for up in ((os.pardir,), (os.pardir, os.pardir))]
from common import cli  # noqa: E402
from pycls.core import command, config, trainer  # noqa: E402


def main():
    args = command.parse(__doc__)
    if config.cfg.PREC_TIME.NUM_ITER == 0:
        raise cli.UserError("PREC_TIME.NUM_ITER 0: no step would be measured; give at least 1")
    command.launch(trainer.time_model, args, splits=("TRAIN", "TEST") if args.data_path else ())


if __name__ == "__main__":
    cli.run(main)

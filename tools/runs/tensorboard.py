"""Write TensorBoard's events from the records of runs: the same that --tensorboard writes during a training.

Example: runs.py tensorboard ResNet50/test/output/0 && tensorboard --logdir ResNet50/test/output/0/tensorboard
"""
import os
from collections import namedtuple

from common import cli, records
from common.cli import UserError
from runs import _runs

_Training = namedtuple("Training", "steps_in_epoch resumed")  # what records.Events asks a Progress


def add_flags(parser):
    """Add the verb's flags to its parser."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="output paths")
    parser.add_argument("--out", metavar="DIR", help="where the events go, of several runs in folders of their names (default: tensorboard/ "
                        "in each output path)")


def run(args):
    """Write the events, and say where they are."""
    found = _runs.read(args.runs)
    for each in found:
        folder = os.path.join(args.out, each.name if len(found) > 1 else "") if args.out else os.path.join(each.folder, "tensorboard")
        write(each, folder)
        cli.print_line("events: %s" % folder)


def write(run, folder):
    """Write the events of a Run. Raises UserError where there are some already, or nothing is recorded."""
    if os.path.isdir(folder) and any("tfevents" in name for name in os.listdir(folder)):
        raise UserError("%s holds events already; give another folder with --out" % folder)
    logged = _runs.logged(run.records)
    if not logged:
        raise UserError("%s holds no records of a training" % run.folder)
    steps = run.parameters.get("steps_in_epoch") or _runs.count_steps(logged)
    events = records.Events(folder, _Training(steps, resumed=False))
    for record in logged:
        if isinstance(record["step"][0], int):
            events.write(record["step"], record["data"], float(record["timestamp"]) if "timestamp" in record else None)

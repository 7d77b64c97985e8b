#!/usr/bin/env python3
"""Say what on this machine is not as training needs it, and what would be right: software, devices, limits, disks.

Needs nothing but Python. What can raise, crash or hang (import torch, import torch_npu, npu-smi, nvidia-smi) runs in processes
of its own. Which versions of torch_npu, PyTorch, CANN and Python fit is in doctor_checks/compatibility.txt, with the sources.

Exit status: 0 nothing is wrong (there can be warnings), 1 something is wrong, 2 wrong usage.
"""
import argparse
import json
import os
import signal
import sys

if sys.version_info < (3, 7):
    sys.exit("doctor.py: error: this is Python %d.%d; Python 3.7 or later is needed" % sys.version_info[:2])
TOOLS = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(TOOLS)
sys.path[:0] = [path for path in (TOOLS, ROOT) if path not in sys.path]

from common import cli  # noqa: E402
from doctor_checks import ascend, gpu, host, software  # noqa: E402
from doctor_checks.machine import WARNING, WRONG, Machine  # noqa: E402


def main(argv=None):
    """Print the table, or JSON, and return the exit status."""
    args = parse(argv)
    rows = []
    for row in check(Machine(args.device, args.root), args):
        rows.append(row)
        if not args.json:
            for words in [row[:3]] + [("", "right:", row.right)] * bool(row.right):
                cli.print_line("%-8s %-12s %s" % words)
    wrong, warnings = (sum(row.status == status for row in rows) for status in (WRONG, WARNING))
    cli.print_line(json.dumps({"rows": [row._asdict() for row in rows], "wrong": wrong, "warnings": warnings}, indent=1)
                   if args.json else "%d wrong, %d warning%s" % (wrong, warnings, "s" * (warnings != 1)))
    return cli.EXIT_FAILED if wrong else 0


def parse(argv):
    """Return the options; raise UserError where the data path is no folder."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("npu", "gpu", "cuda", "cpu", "auto"), default="auto",
                        help="npu, gpu: has to be there; cpu: neither is looked for; auto: what is there has to work (default)")
    parser.add_argument("--data-path", metavar="DIR", help="measure how fast this data set is read")
    parser.add_argument("--output-path", metavar="DIR", default=ROOT, help="where a training will write (default: here)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--root", default="/", help=argparse.SUPPRESS)  # for tests: /dev, /proc, /sys, /usr/local are below it
    args = parser.parse_args(argv)
    if args.data_path is not None and not os.path.isdir(args.data_path):
        raise cli.UserError("--data_path=%s is not a folder; it should be the data set's" % args.data_path)
    return args


def check(machine, args):
    """Yield the rows of the checks that the device asks for."""
    yield from software.rows(machine)
    if machine.device in ("npu", "auto"):
        yield from ascend.rows(machine)
    if machine.device in ("gpu", "auto"):
        yield gpu.row(machine)
    yield from host.rows(machine, args.data_path, args.output_path)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # doctor.py | head
    cli.run(lambda: sys.exit(main()))

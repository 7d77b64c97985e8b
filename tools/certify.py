#!/usr/bin/env python3
"""Prove the ports on the machine in front of you, and write a certificate: figures, bounds, where the bounds come from.

1 machine, 2 numbers against upstream's, 3 long agreement with the CPU, 4 behaviour, 5 speed, 6 report. Exit status 0: all passed;
1: something failed, which the last lines name; 2: wrong usage. Ctrl-C and SIGTERM end it and all its runs at once.

Example: bash tools/certify.sh --device=npu --output_path=certificate
"""
import argparse
import concurrent.futures
import importlib
import os
import signal
import sys
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [path for path in (os.path.join(ROOT, "tools"), ROOT) if path not in sys.path]

from common import cli, device as devices  # noqa: E402
import verbs  # noqa: E402
from certificate import _checks, _digest, _report, _scripts  # noqa: E402

MODELS = sorted(set(_checks.models()) & set(_scripts.SMALL))  # those whose small runs are known
MODULES = {1: "machine", 2: "numbers", 3: "agreement", 4: "behaviour", 5: "speed"}
# Groups of stages; those of a group run side by side where there are so MANY jobs. Speed is measured alone.
GROUPS, MANY = ((1,), (2, 3, 4), (5,)), 4
PICTURES = {True: (480, 60), False: (800, 100)}  # of the demo data, for training and validation


def main(argv=None):
    """Run the stages, write the certificate, and return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    if args.verify:
        return verify(args.verify)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no thread that waits for a run holds this up; the runs end with this
    devices.resolve(args.device)
    args.output_path = os.path.abspath(args.output_path)
    kept, seconds = earlier(args)
    try:
        os.makedirs(args.output_path, exist_ok=True)
    except OSError as error:
        raise cli.UserError("--output_path=%s cannot be made: %s" % (args.output_path, error.strerror))
    case = case_of(args)
    checks = kept + run_stages(case, args.stages, seconds)
    checks.sort(key=lambda check: check.stage)  # stable: as they were found
    return report(case, checks, seconds, argv)


def parse(argv):
    """Return the options; raise UserError where they do not fit."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", choices=("npu", "gpu", "cpu"), default="cpu", help="what is certified (default: cpu)")
    add("--models", type=verbs.some_of(MODELS), default=MODELS, metavar="MODELS", help="with commas, of %s (default: all)" % ", ".join(MODELS))
    add("--quick", action="store_true", help="some minutes: one recipe, one seed of GENet, no kills, no speed")
    add("--output-path", metavar="DIR", default="certificate", help="where the certificate and its runs go (default: certificate)")
    add("--data-path", metavar="DIR", help="demo data of tools/dataset.py demo (default: made in the output path)")
    add("--stages", type=_stages, metavar="N,N", help="of 1 to 6, only these; of the others, what the certificate in the output path says is kept")
    add("--jobs", type=cli.positive_int, default=max(1, len(os.sched_getaffinity(0)) // 2),
        help="programs side by side (default: half the CPUs)")
    add("--seeds", type=cli.positive_int, default=3, help="of long agreement, in the full form (default 3)")
    add("--verify", metavar="FILE", help="say whether this checkout is the one that certificate.json certifies, and stop")
    args = parser.parse_args(argv)
    if args.data_path is not None and not os.path.isdir(args.data_path):
        raise cli.UserError("--data_path=%s is not a folder; it should hold the demo data" % args.data_path)
    if args.stages is None:
        args.stages = _report.FORMS["quick" if args.quick else "full"]
    return args


def _stages(text):
    numbers = [int(word) if word.isdigit() else 0 for word in text.split(",")]
    if not all(number in MODULES or number == 6 for number in numbers):
        raise argparse.ArgumentTypeError("%s: numbers from 1 to 6, with commas" % text)
    return tuple(sorted(set(numbers) - {6}))  # the report is always made


def earlier(args):
    """Return the checks and seconds of the stages that are not repeated, from the certificate in the output path."""
    path = os.path.join(args.output_path, "certificate.json")
    if not os.path.exists(path):
        return [], {}
    found = _report.read(path)
    if set(args.stages) >= {stage["number"] for stage in found["stages"]}:
        return [], {}
    same = (_digest.checkout()["sha256"] == found["checkout"]["sha256"], found["device"]["kind"] == args.device,
            found["models"] == list(args.models), found["form"] == ("quick" if args.quick else "full"))
    if not all(same):
        raise cli.UserError("%s is of other files, another device, other models or the other form; repeat all stages, or give "
                            "another --output_path" % path)
    return _report.checks_of(found, args.stages)


def case_of(args):
    """Return the Case; the demo data are made where a stage needs them. Raises UserError where the device is not there."""
    device = str(devices.pick(args.device))
    data = args.data_path and os.path.abspath(args.data_path)
    if not data and set(args.stages) & {3, 4, 5}:
        data = _scripts.demo_data(os.path.join(args.output_path, "data"), args.models, *PICTURES[args.quick])
    slots = threading.BoundedSemaphore(args.jobs)
    return _checks.Case(device, list(args.models), args.quick, args.jobs, slots, args.output_path, data, args.seeds)


def run_stages(case, stages, seconds):
    """Run the stages, several side by side where there are many jobs; return their checks, and note the `seconds` of each."""
    checks = []
    for group in GROUPS:
        with concurrent.futures.ThreadPoolExecutor(len(group) if case.jobs >= MANY else 1) as pool:
            for found in pool.map(lambda number: run_stage(case, number, seconds), sorted(set(group) & set(stages))):
                checks += found
    return checks


def run_stage(case, number, seconds):
    """Run a stage with a line for each check; return the checks. What a stage raises is a check that has failed."""
    start, checks = time.time(), []
    cli.print_line("stage %d: %s, on %s" % (number, _report.STAGES[number].lower(), case.device))
    try:
        for check in importlib.import_module("certificate." + MODULES[number]).run(case):
            checks.append(check._replace(stage=number))
            cli.print_line(_report.line(check))
    except Exception as error:  # a certificate says so, instead of none being written
        checks.append(_checks.Check("", "the stage itself", type(error).__name__, "ends", "tools/certify.py", False,
                                    (str(error).splitlines() or [""])[0], number))
        cli.print_line(_report.line(checks[-1]))
    seconds[number] = time.time() - start
    cli.print_line("stage %d: %.0f s" % (number, seconds[number]))
    return checks


def report(case, checks, seconds, argv):
    """Write the certificate, say where it is and what it says; return the exit status."""
    found = _report.certificate(case, checks, seconds, list(argv))
    paths, missing = _report.write(case, found)
    failed = [check for check in checks if check.passed is False]
    for check in failed:
        cli.print_line("FAILED in stage %d: %s" % (check.stage, _report.line(check).strip()))
    if missing:
        cli.print_line("no page of the runs: %s" % missing)
    cli.print_line("verdict: %s; %s" % (found["verdict"], ", ".join(paths)))
    return cli.EXIT_FAILED if failed else 0


def verify(path):
    """Say whether this checkout is the certified one; return the exit status."""
    found = _report.read(path)
    problems = _digest.problems(found)
    for problem in problems:
        cli.print_line("no: %s" % problem)
    if not problems:
        cli.print_line("yes: this checkout is the one certified on %s (%s, %s form): %s" % (
            found["made"], found["device"]["name"], found["form"], found["verdict"]))
    return cli.EXIT_FAILED if problems else 0


if __name__ == "__main__":
    cli.run(lambda: sys.exit(main()))

"""Run one case of test/*.sh: output folder, log, signals, exit status and report. `run.py OPTIONS -- COMMAND`.

The shell side (common/test.sh) ends by becoming this program, so whoever signals the script signals this.
"""
import contextlib
import ctypes
import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from common import cli, environment, report  # noqa: E402

_LAST_LINES = 20
# What a run leaves in its output path, so what a new run sets aside. An evaluation leaves no weights: those there are its input.
_REPORTS = ("train_*.log", "metrics.jsonl", "*_bs*.log", "report.json", "*.png", "config.yaml", "profile")
_WEIGHTS = ("*.pth.tar", "*.pth", "*.pyth", "checkpoints")


def main():
    """Run the case that the command line describes."""
    args = _parser().parse_args()
    environment.check_torch()
    log_path = os.path.join(args.output_path, "train_%s.log" % args.device_id)
    metrics_path = os.path.join(args.output_path, "metrics.jsonl")
    products = _REPORTS if args.kind == "eval" else _REPORTS + _WEIGHTS
    undo = _prepare(args.output_path, () if args.resume else products, log_path)
    records_before = _size(metrics_path)
    started = time.time()
    status = _run(args.command, log_path)
    if status == cli.EXIT_BAD_INPUT and _size(metrics_path) == records_before:
        undo()
    if status != 0:
        _say_why(status, log_path)
        sys.exit(status)
    if args.no_report:
        print("this machine is done; the result is reported only on machine 0", flush=True)
        return
    if report.summary(metrics_path)[1] is None:
        raise cli.UserError("the run left no summary in %s; its log: %s" % (metrics_path, log_path))
    images_per_step = args.batch_size * (args.ranks if args.batch_per_rank else 1)
    case = {"network": args.network, "batch_size": args.batch_size, "images_per_step": images_per_step, "ranks": args.ranks,
            "suffix": args.suffix, "kind": args.kind}
    print("\n".join(report.write(case, metrics_path, args.output_path, time.time() - started)), flush=True)


def _parser():
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--network", required=True)
    parser.add_argument("--batch-size", type=cli.positive_int, required=True, help="over all ranks")
    parser.add_argument("--batch-per-rank", action="store_true", help="the batch size is that of one rank")
    parser.add_argument("--ranks", type=cli.positive_int, required=True)
    parser.add_argument("--suffix", required=True, help="acc, perf or eval: the end of the case's name")
    parser.add_argument("--kind", choices=("train", "finetune", "eval"), default="train")
    parser.add_argument("--device-id", default="0", help="names the log")
    parser.add_argument("--output-path", required=True)
    parser.add_argument("--resume", action="store_true", help="go on with what the output path holds")
    parser.add_argument("--no-report", action="store_true", help="the run's records are on another machine")
    parser.add_argument("command", nargs="+", help="the training, after --")
    return parser


# --- the output folder ------------------------------------------------------------------------------------------------

def _prepare(output_path, products, log_path):
    """Make the output folder and move an earlier run's files that match `products` into a folder of their own.

    Returns a function that puts everything back: after bad input nothing was trained, so nothing is to be seen of it.
    """
    made = _missing_folders(output_path)
    try:
        os.makedirs(output_path, exist_ok=True)
        with open(log_path, "ab") as log:
            size_of_log = log.tell()
    except OSError as error:
        raise cli.UserError("cannot write to output path %s (%s)" % (output_path, error.strerror))
    aside = _set_aside(output_path, products, None if size_of_log else log_path)

    def undo():
        if aside or not size_of_log:
            os.remove(log_path)
        else:
            os.truncate(log_path, size_of_log)
        for name in os.listdir(aside) if aside else ():
            shutil.move(os.path.join(aside, name), output_path)
        for folder in ([aside] if aside else []) + made:
            if not os.listdir(folder):
                os.rmdir(folder)

    return undo


def _missing_folders(path):
    """Return the folders that have to be made for `path`, the innermost first."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing


def _set_aside(output_path, products, new_log):
    earlier = sorted(path for pattern in products for path in glob.glob(os.path.join(glob.escape(output_path), pattern))
                     if path != new_log)
    if not earlier:
        return None
    taken = [int(match.group(1)) for match in (re.match(r"earlier-(\d+)$", name) for name in os.listdir(output_path)) if match]
    aside = os.path.join(output_path, "earlier-%d" % (max(taken or [0]) + 1))
    os.mkdir(aside)
    for path in earlier:
        shutil.move(path, aside)
    return aside


def _size(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


# --- the training process ---------------------------------------------------------------------------------------------

def _run(command, log_path):
    """Run the command with its output on ours and in the log; pass SIGINT and SIGTERM on to it once; return its status."""
    with open(log_path, "ab") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                                   preexec_fn=_die_with_parent)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: process.send_signal(number))
        copies = [threading.Thread(target=_copy_lines, args=(source, (target, log)))
                  for source, target in ((process.stdout, sys.stdout.buffer), (process.stderr, sys.stderr.buffer))]
        for copy in copies:
            copy.start()
        status = process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # workers that a crashed rank has left behind
        for copy in copies:
            copy.join()
    return status if status >= 0 else 128 - status


def _copy_lines(source, targets):
    for line in source:
        for target in targets:
            target.write(line)
            target.flush()


def _die_with_parent():
    """Ask the kernel to end the training when this process is killed outright (the ranks follow their parent)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _say_why(status, log_path):
    if status in (cli.EXIT_BAD_INPUT, cli.EXIT_STOPPED):
        return  # one line has said it
    if status == cli.EXIT_INTERRUPTED:
        sys.stderr.write("interrupted; log: %s\n" % log_path)
    elif status == cli.EXIT_TERMINATED:
        sys.stderr.write("terminated after saving; go on with --resume; log: %s\n" % log_path)
    else:
        with open(log_path, errors="replace") as log:
            last = log.readlines()[-_LAST_LINES:]
        sys.stderr.write("training failed with status %d; the last lines of %s:\n%s" % (status, log_path, "".join(last)))


if __name__ == "__main__":
    cli.run(main)

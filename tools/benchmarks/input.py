"""Training pictures per second of one core: the models' inputs against torchvision's, timm's and DALI's.

Each candidate is a process of its own, with one thread, on one core; they take turns, in another order each round. What counts is
the CPU time that a picture costs, as a ratio to the baseline's in the same round: the machine's other work is then in both. The
pictures are made here (ImageNet's sizes in pixels and bytes), or of your own folder (--data DIR with DIR/train/<class>/...).

    python tools/benchmark.py input
    python tools/benchmark.py input --only ResNet50,EfficientNet-B3,torchvision,dali --rounds 15

What is not installed is left out. To have all: pip install simplejpeg timm nvidia-dali-cuda120; apt-get install libjpeg-turbo-progs
FFCV is not among them: its package takes the headers of OpenCV 4 and libjpeg-turbo to build, and pictures in a form of its own.
"""
import functools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import verbs
from benchmarks import _candidates, _pictures, _turns
from common import cli

_DATASET = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "dataset.py")

_CIFAR_IMAGES = 2000
_CIFAR_BASELINE = "torchvision/cifar"
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def add_flags(parser):
    """Add the verb's flags to its parser."""
    add = parser.add_argument
    add("--data", metavar="DIR", help="pictures in DIR/train/<class>/; without it they are made")
    add("--pictures", type=cli.positive_int, default=480, help="how many are made (default 480)")
    add("--only", type=verbs.some_of(_candidates.NAMES), default=_candidates.NAMES, metavar="NAMES",
        help="with commas, of %s (default: all)" % ", ".join(_candidates.NAMES))
    add("--baseline", default="torchvision", choices=_candidates.NAMES, metavar="NAME", help="what the ratios are to (default torchvision)")
    add("--rounds", type=cli.positive_int, default=15, help="in each of which every candidate has a turn (default 15)")
    add("--batches", type=cli.positive_int, default=2, help="of each candidate in a round (default 2)")
    add("--batch-size", type=cli.positive_int, default=64, help="pictures of a batch (default 64)")
    add("--image-size", type=cli.positive_int, default=224, help="pixels of the crop (default 224)")
    add("--core", type=cli.natural_int, default=max(os.sched_getaffinity(0)), help="that all of them use (default: the last one)")


def run(args):
    """Measure the candidates in turn, and print what a picture costs, and the ratios."""
    if args.core not in os.sched_getaffinity(0):
        raise cli.UserError("--core %d is not one that this process may use" % args.core)
    if args.data is not None and not os.path.isdir(os.path.join(args.data, "train")):
        raise cli.UserError("--data %s: there is no folder %s" % (args.data, os.path.join(args.data, "train")))
    for name in _THREADS:
        os.environ[name] = "1"
    with tempfile.TemporaryDirectory() as folder:
        if args.data is None:
            _turns.show("making %d pictures" % args.pictures)
            _pictures.write_pictures(folder, args.pictures)
            args.data = folder
        args.packed, args.cifar = os.path.join(folder, "packed"), os.path.join(folder, "cifar")
        baselines = {_baseline(name, args) for name in args.only}
        names = sorted(baselines.union(args.only), key=_candidates.NAMES.index)
        if _CIFAR_BASELINE in names:
            _run_dataset("demo", "--out", args.cifar, "--what", "cifar10", "--train", str(_CIFAR_IMAGES), "--val", "10")
        if any("packed" in name for name in names):
            _pack(args.data, args.packed)
        with _turns.started(names, functools.partial(_open, args=args)) as pipes:
            _check(baselines, pipes)
            seconds = _turns.rounds(pipes, args.rounds, args.batches)
        _check(baselines, seconds)
        _report(seconds, args)


def _baseline(name, args):
    return _CIFAR_BASELINE if name in _candidates.CIFAR else args.baseline


def _check(baselines, measured):
    missing = baselines - set(measured)
    if missing:
        raise cli.UserError("the baseline %s cannot be measured; choose another with --baseline" % min(missing))


def _pack(data, out):
    markers = ["--restart-markers"] * bool(shutil.which("jpegtran"))
    cli.print_line("packed %s restart markers" % ("with" if markers else "without jpegtran (libjpeg-turbo-progs), and so without"))
    _run_dataset("pack", data, out, *markers)


def _run_dataset(*words):
    done = subprocess.run([sys.executable, _DATASET] + list(words), stdout=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(done.returncode)  # it has said why


def _open(name, args):
    """Return a function that gives so many batches of a candidate and returns the seconds of CPU that each picture took."""
    os.sched_setaffinity(0, {args.core})
    batches = _candidates.open_candidate(name, args)
    next(batches)

    def measure(count):
        next(batches)  # DALI works ahead: what it had time for is not counted, and what it does ahead is
        start = time.process_time()
        for _ in range(count):
            next(batches)
        return (time.process_time() - start) / (count * args.batch_size)
    return measure


def _report(seconds, args):
    cli.print_line("%d rounds of %d pictures of %d pixels (GENet: 32); CPU time a picture, and how many times %s: median (quartiles)" % (
        args.rounds, args.batches * args.batch_size, args.image_size, args.baseline))
    for name, own in seconds.items():
        baseline = seconds[_baseline(name, args)]
        cli.print_line("%-27s %8.4f ms  %6.2f (%.2f to %.2f)" % ((name, 1000 * statistics.median(own)) + _turns.ratio(baseline, own)))

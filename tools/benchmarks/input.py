"""Training pictures per second of one core: the models' inputs against torchvision's, timm's and DALI's.

Each candidate is a process of its own, with one thread, on one core; they take turns, in another order each round. What counts is
the CPU time that a picture costs, as a ratio to the baseline's in the same round: the machine's other work is then in both. The
pictures are made here (ImageNet's sizes in pixels and bytes), or of your own folder (--data DIR with DIR/train/<class>/...).

    python tools/benchmark.py input
    python tools/benchmark.py input --only ResNet50,EfficientNet-B3,torchvision,dali --rounds 15

What is not installed is left out. To have all: pip install simplejpeg timm nvidia-dali-cuda120; apt-get install libjpeg-turbo-progs
"""
import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import _candidates, _pictures
from common import cli

_PACKER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "dataset.py")

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def add_flags(parser):
    """Add the verb's flags to its parser."""
    add = parser.add_argument
    add("--data", metavar="DIR", help="pictures in DIR/train/<class>/; without it they are made")
    add("--pictures", type=cli.positive_int, default=480, help="how many are made")
    add("--only", type=lambda text: text.split(","), default=_candidates.NAMES, metavar="NAMES",
        help="of " + ", ".join(_candidates.NAMES))
    add("--baseline", default="torchvision", choices=_candidates.NAMES, help="what the ratios are to")
    add("--rounds", type=cli.positive_int, default=15)
    add("--batches", type=cli.positive_int, default=2, help="of each candidate in a round")
    add("--batch-size", type=cli.positive_int, default=64)
    add("--image-size", type=cli.positive_int, default=224)
    add("--core", type=cli.natural_int, default=max(os.sched_getaffinity(0)))


def run(args):
    """Measure the candidates in turn, and print what a picture costs, and the ratios."""
    unknown = set(args.only) - set(_candidates.NAMES)
    if unknown:
        raise cli.UserError("--only %s: no such candidate; choose of %s" % (sorted(unknown)[0], ", ".join(_candidates.NAMES)))
    if args.core not in os.sched_getaffinity(0):
        raise cli.UserError("--core %d is not one that this process may use" % args.core)
    for name in _THREADS:
        os.environ[name] = "1"
    with tempfile.TemporaryDirectory() as folder:
        if args.data is None:
            _pictures.write_pictures(folder, args.pictures)
            args.data = folder
        args.packed = os.path.join(folder, "packed")
        names = sorted(set(args.only + [args.baseline]), key=_candidates.NAMES.index)
        if any("packed" in name for name in names):
            _pack(args.data, args.packed)
        _report(_rounds(_started(names, args), args), args)


def _pack(data, out):
    markers = ["--restart-markers"] * bool(shutil.which("jpegtran"))
    cli.print_line("packed %s restart markers" % ("with" if markers else "without jpegtran (libjpeg-turbo-progs), and so without"))
    subprocess.run([sys.executable, _PACKER, "pack", data, out] + markers, check=True, stdout=subprocess.DEVNULL)


def _started(names, args):
    """Return {name: pipe to the process that has opened the candidate}."""
    context, pipes = multiprocessing.get_context("fork"), {}
    for name in names:
        pipe, its_end = context.Pipe()
        context.Process(target=_serve, args=(name, args, its_end), daemon=True).start()
        problem = pipe.recv()
        if problem:
            cli.print_line("left out: %s (%s)" % (name, problem))
        else:
            pipes[name] = pipe
    if args.baseline not in pipes:
        raise cli.UserError("the baseline %s cannot be measured; choose another with --baseline" % args.baseline)
    return pipes


def _serve(name, args, pipe):
    """What a candidate's process does: for each number that comes, give so many batches, and send the seconds that they took."""
    os.sched_setaffinity(0, {args.core})
    try:
        batches = _candidates.open_candidate(name, args)
        next(batches)
    except ImportError as error:
        pipe.send(str(error) or repr(error))
        return
    except Exception as error:  # whatever another's library raises where it does not fit the machine
        pipe.send("%s: %s" % (type(error).__name__, str(error).splitlines()[0] if str(error) else ""))
        return
    pipe.send(None)
    while True:
        count = pipe.recv()
        next(batches)  # DALI works ahead: what it had time for is not counted, and what it does ahead is
        start = time.process_time()
        for _ in range(count):
            next(batches)
        pipe.send(time.process_time() - start)


def _rounds(pipes, args):
    """Return {name: seconds of CPU a picture, in each round}."""
    seconds, rng = {name: [] for name in pipes}, random.Random(0)
    for _ in range(args.rounds):
        for name in rng.sample(sorted(pipes), len(pipes)):
            pipes[name].send(args.batches)
            seconds[name].append(pipes[name].recv() / (args.batches * args.batch_size))
    return seconds


def _report(seconds, args):
    cli.print_line("%d rounds of %d pictures of %d pixels; CPU time a picture, and how many times %s: median (quartiles)" % (
        args.rounds, args.batches * args.batch_size, args.image_size, args.baseline))
    for name, own in seconds.items():
        ratios = sorted(theirs / ours for theirs, ours in zip(seconds[args.baseline], own))
        quartiles = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        cli.print_line("%-19s %8.3f ms  %6.2f (%.2f to %.2f)" % (
            (name, 1000 * statistics.median(own), statistics.median(ratios)) + quartiles))

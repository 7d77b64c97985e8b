"""Images per second of training steps on made-up images: the models' own programs against timm's, torchvision's and others' loops.

Each loop is a process of its own on the same device, with the same batch; they take turns, in another order each round. What counts
is the ratio to another one's time in the same round. nchw: with weights and images in that layout, which a CPU's and a GPU's kernels
like less than channels last. graphs: --compile=reduce-overhead.

    python tools/benchmark.py training
    python tools/benchmark.py training --models ResNet50 --only ours/O0/nchw,ours/O1,timm/O1 --rounds 12
    python tools/benchmark.py training --device gpu --batch-size 256 --steps 50 --markdown

Loops whose package is not installed are left out. To install it: pip install timm
"""
import contextlib
import functools
import multiprocessing
import os
import platform
import statistics
import tempfile
import time

import verbs
from benchmarks import _loops, _tables, _turns
from common import cli

_BASE = "ours/O0/nchw"
_AT_ONCE = 3  # loops of which a GPU's memory holds the first steps at the same time


def add_flags(parser):
    """Add the verb's flags to its parser."""
    add = parser.add_argument
    for option, kind, known in (("--models", "MODELS", list(_loops.MODELS)), ("--only", "LOOPS", _loops.NAMES)):
        add(option, type=verbs.some_of(known), default=known, metavar=kind, help="with commas, of %s (default: all)" % ", ".join(known))
    add("--device", default="auto", help="npu, gpu, cpu, or auto: the first of them that is there (default auto)")
    add("--batch-size", type=cli.positive_int, default=8, help="images of a step (default 8)")
    add("--image-size", type=cli.positive_int, help="pixels (without it the recipe's; GENet's are CIFAR's)")
    add("--rounds", type=cli.positive_int, default=12, help="in each of which every loop has a turn (default 12)")
    add("--steps", type=cli.positive_int, default=3, help="of each loop in a round (default 3)")
    add("--threads", type=cli.positive_int, default=1, help="on a CPU (default 1)")
    add("--markdown", action="store_true", help="print the tables in Markdown")


def run(args):
    """Measure the loops of each model in turn, and print the tables."""
    cli.print_line(_machine(args))
    from common import device as devices
    on_host = devices.resolve(args.device) == "cpu"
    gate = multiprocessing.get_context("spawn").Semaphore(_AT_ONCE)
    for models in [[model] for model in args.models] if on_host else [args.models]:
        with tempfile.TemporaryDirectory() as args.folder:
            names = [(model, loop) for model in models for loop in args.only]
            open_one = functools.partial(open_timed, args=args, gate=gate)
            with _turns.started(names, open_one, "spawn", together=not on_host) as pipes:
                for model in models:
                    own = {loop: pipe for (name, loop), pipe in pipes.items() if name == model}
                    _print_table(model, _turns.rounds(own, args.rounds, args.steps), args)


def open_timed(name, args, gate):
    """Return a function that takes so many steps and returns (seconds a step, bytes of memory at the peak). `name`: (model, loop).

    All loops live on the same device: between its turns, each gives back what it does not keep. Those that get ready at the same time
    pass the `gate`, but for those that compile, which takes minutes and little of the device.
    """
    from common import device as devices
    args.model, loop = name
    if args.threads == 1 and args.device in ("cpu", "auto"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    take, device = _loops.open_loop(loop, args)
    with contextlib.nullcontext() if loop.endswith(("compile", "graphs")) else gate:
        take(2)  # compiles, fills caches
        devices.give_back_memory(device)

    def timed(steps):
        if device.type != "cpu":
            take(1)  # takes the memory again
        devices.synchronize(device)
        start = time.perf_counter()
        take(steps)
        devices.synchronize(device)
        seconds, memory = (time.perf_counter() - start) / steps, devices.peak_memory(device)
        devices.give_back_memory(device)
        return seconds, memory
    return timed


def _machine(args):
    import torch
    from common import device as devices
    kind = devices.resolve(args.device)
    name, threads = _tables.device_name(kind), ""
    if kind == "cpu":
        flags = _tables.processor().get("flags", "").split()
        name += " (%s)" % ", ".join(flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags)
        threads = ", %d thread(s)" % args.threads
    return "%s: %s, PyTorch %s, Python %s%s; %d rounds of %d steps of %d images" % (
        time.strftime("%Y-%m-%d"), name, torch.__version__, platform.python_version(), threads, args.rounds, args.steps, args.batch_size)


def _print_table(model, measured, args):
    if not measured:
        return
    size = args.image_size if args.image_size and model != "GENet" else _loops.MODELS[model][0]
    heads = ["%s, %d pixels" % (model, size), "images/s", "times " + _BASE, "ours at its level, times it", "memory MiB"]
    rows = []
    for name, values in measured.items():
        seconds = [second for second, _ in values]
        memory = values[-1][1]
        ours = "" if name.startswith("ours") else _spread(measured, name, "ours/" + name.split("/")[1])
        rows.append([name, "%.1f" % (args.batch_size / statistics.median(seconds)), _spread(measured, _BASE, name), ours,
                     "%.0f" % (memory / 2 ** 20) if memory else ""])
    for line in _tables.layout(heads, rows, args.markdown):
        cli.print_line(line)


def _spread(measured, theirs, ours):
    """Return how many times as fast `ours` is: median (quartiles) of the rounds; '' where one of the two was not measured."""
    if theirs not in measured or ours not in measured:
        return ""
    return "%.2f (%.2f to %.2f)" % _turns.ratio(*[[second for second, _ in measured[name]] for name in (theirs, ours)])

"""The model of `benchmark.py scaling` against this machine's CPU: ranks that are pinned to a core each, on made-up images.

One rank alone, and two of one group, are processes that stay; in each round the one takes its steps while the others wait, the two take
theirs, and sum tensors of two sizes. A pinned core computes or sends: nothing of the gradients is sent during backward.
"""
import functools
import os
import statistics
import tempfile
import time
from argparse import Namespace

from benchmarks import _alpha_beta, _loops, _program, _turns
from common import cli, distributed

RANKS = ((0, 1), (0, 2), (1, 2))  # (rank, world size), each in a process: one alone on the first core, two of a group on a core each
BATCH, STEPS, SUMS = 8, 2, 4
SMALL, LARGE = 4096, 25 * _alpha_beta.MIB  # bytes of the sums that show the hop and the bandwidth; the second is a bucket's
OF_ALL_RANKS = ("ResNet50", "GENet", "EfficientNet-B3")  # whose flag for the batch counts the images of all ranks


def check(model, args):
    """Return the lines that compare what the model foretells for two ranks with what they take. Raises UserError on a single core."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise cli.UserError("two ranks, each pinned to a core, need two of them; this process may use one")
    with tempfile.TemporaryDirectory() as folder:
        settings = Namespace(model=model, image_size=args.image_size, batch_size=BATCH, threads=1, device="cpu", folder=folder,
                             port=distributed.reserve_port(), cores=cores)
        with _turns.started(RANKS, functools.partial(open_rank, settings=settings), "spawn", together=True) as opened:
            if len(opened) < len(RANKS):
                raise cli.TrainingStopped("a rank of the benchmark did not start")
            pipes = [opened[name] for name in RANKS]
            sizes, = asked(pipes[:1], "sizes")
            rounds = [one_round(pipes) for _ in _turns.counted(args.rounds)]
    return report(model, sizes, rounds)


def open_rank(name, settings):
    """Return a function of "sizes" (gives the bytes of each gradient), of a number of steps, or of minus the bytes of a bucket to sum
    (both give (seconds, seconds of the CPU), of one). `name`: of RANKS."""
    rank, world_size = name
    os.sched_setaffinity(0, {settings.cores[rank]})
    if world_size > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                          MASTER_ADDR="127.0.0.1", MASTER_PORT=str(settings.port))
    if settings.model in OF_ALL_RANKS:
        settings.batch_size *= world_size
    sizes = []

    def note_sizes(model, optimizer, amp):
        sizes[:] = [parameter.numel() * parameter.element_size() for parameter in model.parameters()]
    with _program.watched(note_sizes):
        take, _ = _loops.open_loop("ours/O0", settings)
    take(2)  # fills caches; the buckets of gradients are divided anew after the first step

    def measure(order):
        if order == "sizes":
            return sizes
        times, act = (order, take) if order > 0 else (SUMS, sums_of(-order))
        start = time.perf_counter(), time.process_time()
        act(times)
        return (time.perf_counter() - start[0]) / times, (time.process_time() - start[1]) / times
    return measure


def sums_of(size):
    """Return a function that does, so often, what DistributedDataParallel does with a bucket of `size` bytes: divide, and sum."""
    import torch
    import torch.distributed as dist
    tensor = torch.zeros(size // 4)
    dist.all_reduce(tensor)  # both ranks are there

    def act(times):
        for _ in range(times):
            dist.all_reduce(tensor.mul_(0.5))
    return act


def asked(pipes, order):
    """Return what the processes answer to an order that all of them get at once."""
    for pipe in pipes:
        _turns.ask(pipe, order)
    found = [_turns.answer(pipe) for pipe in pipes]
    for problem in found:
        if isinstance(problem, str):
            raise cli.TrainingStopped("a rank of the benchmark has ended: " + problem)
    return found


def one_round(pipes):
    """Return what takes time, each as (seconds, seconds of the CPU): a step of one rank, of two, a small sum, a large one."""
    orders = (pipes[:1], STEPS), (pipes[1:], STEPS), (pipes[1:], -SMALL), (pipes[1:], -LARGE)
    return [_of_both(asked(some, order)) for some, order in orders]


def _of_both(answers):
    # The later rank is the time of both; the CPU's seconds are each one's own.
    walls, cpus = zip(*answers)
    return max(walls), statistics.mean(cpus)


def report(model, sizes, rounds):
    """Return the lines; `rounds` as one_round returns them."""
    buckets = _alpha_beta.buckets_of(sizes)
    lines = ["%s, %d images a rank, %d rounds of %d steps; each rank on a core; gradients: %.1f MB in %d buckets"
             % (model, BATCH, len(rounds), STEPS, sum(sizes) / 1e6, len(buckets))]
    for column, kind in enumerate(("time", "time of the CPU")):
        alone, two, small, large = [[pair[column] for pair in pairs] for pairs in zip(*rounds)]
        hop, bandwidth = fit(statistics.median(small), statistics.median(large))
        network = _alpha_beta.Network(2, bandwidth, bandwidth, hop, hop)
        waits = _alpha_beta.waiting(0.0, 2, _alpha_beta.Work(0.0, 0.0, buckets, False), network)
        lines += ["%s: %.0f microseconds a hop, %.2f GB/s; a step of one rank %.1f ms, of two %.1f ms, foretold %.1f ms; foretold / "
                  "measured, of the rounds: %.3f (%.3f to %.3f)"
                  % ((kind, 1e6 * hop, bandwidth / 1e9) + tuple(1000 * statistics.median(times) for times in (alone, two)) +
                     (1000 * (statistics.median(alone) + waits),) + _turns.ratio([one + waits for one in alone], two))]
    return lines


def fit(small, large):
    """Return (seconds of a hop, bytes a second) of two ranks, from the seconds of sums of SMALL and of LARGE bytes."""
    return small / 2, (LARGE - SMALL) / max(large - small, 1e-9)

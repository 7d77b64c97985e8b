"""The processes in which the verbs draw, check and pack pictures."""
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor

from tqdm import tqdm

from common import cli


def add_flag(parser, work):
    """Add --workers, the number of processes, to a verb's parser. `work`: what they do."""
    parser.add_argument("--workers", metavar="N", type=cli.positive_int, default=len(os.sched_getaffinity(0)),
                        help="processes that %s (default: %%(default)s)" % work)


def results(function, tasks, workers, name, pictures=len):
    """Return function(task) of all tasks, in order, from so many processes, and show their progress in pictures: `pictures(task)` are in
    a task."""
    found, futures = [], []
    # fork: the processes are children of this one, which they end with, and have what it has, without its being sent.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _begin, (os.getpid(),)) as pool, \
            tqdm(total=sum(map(pictures, tasks)), desc=name, unit="picture", disable=None) as bar:
        try:
            for task in tasks:
                futures.append(pool.submit(function, task))
            for task, future in zip(tasks, futures):
                found.append(future.result())
                bar.update(pictures(task))
        finally:
            for future in futures:
                future.cancel()  # what has not been started is dropped: an interrupt does not wait for it
    return found


def _begin(parent):
    # Ctrl-C, and the SIGTERM of a `timeout`, reach every process; only the parent shall act on it: what it cancels must not fail.
    # Of a jpegtran that has read enough, an exception is wanted.
    cli.end_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)

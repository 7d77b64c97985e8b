"""The processes in which the verbs draw, check and pack pictures."""
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor

from tqdm import tqdm

from common import cli

_ENDS = (signal.SIGINT, signal.SIGTERM)


def add_flag(parser, work):
    """Add --workers, the number of processes, to a verb's parser. `work`: what they do."""
    parser.add_argument("--workers", metavar="N", type=cli.positive_int, default=len(os.sched_getaffinity(0)),
                        help="processes that %s (default: %%(default)s)" % work)


def results(function, tasks, workers, name, pictures=len):
    """Return function(task) of all tasks, in order, from so many processes, and show their progress in pictures: `pictures(task)` are in
    a task."""
    found = []
    sys.stdout.flush()  # here, where nobody who reads on is no error yet
    pipes = signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # of a process that was killed: the pool says so
    # fork: the processes are children of this one, which they end with, and have what it has, without its being sent.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _begin, (os.getpid(),)) as pool, \
            tqdm(total=sum(map(pictures, tasks)), desc=name, unit="picture", disable=None) as bar:
        try:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)  # none comes to a process that has not begun
            futures = [pool.submit(function, task) for task in tasks]
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for task, future in zip(tasks, futures):
                found.append(future.result())
                bar.update(pictures(task))
        except BaseException:
            for process in multiprocessing.active_children():
                process.kill()  # an interrupt, or a picture that cannot be read, does not wait for the tasks under way
            raise
    signal.signal(signal.SIGPIPE, pipes)
    return found


def _begin(parent):
    # In a group of its own: Ctrl-C, and the SIGTERM of a `timeout`, reach the parent alone, and what that cancels does not fail.
    cli.end_with(parent)
    os.setpgid(0, 0)
    for number in _ENDS:
        signal.signal(number, signal.SIG_IGN)  # one that has come by now is forgotten
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the pool's own, after one of the processes was killed
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)

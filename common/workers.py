"""Loader processes: forked, so that a data set is not copied, and each on a pipe of its own.

A pipe takes no thread, nothing of /dev/shm, which containers have little of, and one open file; and where a process dies it is at its
end at once, whatever the process was doing.
"""
import contextlib
import ctypes
import multiprocessing
import os
import signal
import traceback
import weakref

import torch

from common import cli
from common.cli import UserError

_HELD = (signal.SIGINT, signal.SIGTERM)
_SPARE_FILES = 16  # for what is opened later: checkpoints, pictures, connections


class Worker(object):
    """A process that calls `work(task)` for each task that is sent to it, and gives the results in the same order.

    It ends with the trainer, and with this object. Whoever sends may have sent no more than a pipe holds: tasks are a few numbers.
    """

    def __init__(self, name, work):
        """Raises OSError where there may be no more processes or open files."""
        self._name = name
        self._pipe, theirs = multiprocessing.Pipe()
        trainer = os.getpid()
        held = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)  # the trainer's handlers are no handlers for the process
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _serve(theirs, work, trainer)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        theirs.close()  # that of the process is now the only one
        self._end = weakref.finalize(self, _kill, self.pid)
        self._end.atexit = False  # the kernel ends what is left then, and one that hangs in a file system is not waited for

    def send(self, task):
        """Give the process something to do."""
        with contextlib.suppress(OSError):  # it is dead: `receive` says so
            self._pipe.send(task)

    def receive(self):
        """Return the result of the first task that has not been received. Raises what the work did, TrainingStopped where the process
        is no more."""
        try:
            result, error = self._pipe.recv()
        except (EOFError, OSError):
            raise self._death()
        if error is not None:
            raise error
        return result

    def _death(self):
        self._end.detach()
        status = os.waitpid(self.pid, 0)[1]
        how = cli.death(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else "ended with status %d" % os.WEXITSTATUS(status)
        return cli.TrainingStopped("loader process %s, pid %d, %s" % (self._name, self.pid, how))


def start(count, work):
    """Return `count` Workers. Raises UserError where that many may not be started."""
    try:
        workers = [Worker("%d of %d" % (number + 1, count), work) for number in range(count)]
        for spare in [os.open(os.devnull, os.O_RDONLY) for _ in range(_SPARE_FILES)]:
            os.close(spare)
        return workers
    except OSError as error:
        raise UserError("cannot start %d loader processes (%s); take fewer --workers, or raise the limit (ulimit -n: open files, -u: "
                        "processes)" % (count, error.strerror))


def _serve(pipe, work, trainer):
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: not even a stopped one outlives the trainer
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; the trainer alone answers
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
        torch.set_num_threads(1)
        while os.getppid() == trainer:
            pipe.send(_outcome(work, pipe.recv()))
    finally:
        os._exit(1)  # at the end of the pipe: without the trainer's own clearing up


def _outcome(work, task):
    try:
        return work(task), None
    except cli.TrainingStopped as error:
        return None, error
    except MemoryError:
        return None, cli.TrainingStopped("a loader process got no memory for a picture; fewer --workers take less")
    except Exception:
        return None, RuntimeError("in a loader process:\n" + traceback.format_exc())


def _kill(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

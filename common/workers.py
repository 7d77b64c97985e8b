"""Loader processes: forked, so that no data set is copied, each on a pipe of its own.

That takes nothing of /dev/shm, of which containers have little; and where a process dies, its pipe is at its end at once.
"""
import contextlib
import multiprocessing
import os
import signal
import traceback
import weakref

import torch

from common import cli

_HELD = (signal.SIGINT, signal.SIGTERM)
_CPUS = os.sched_getaffinity(0)  # now: an NPU's plug-in may bind the trainer, from which the workers come, to a single one later
_SPARE_FILES = 16  # for what is opened later: checkpoints, pictures, connections


class Worker(object):
    """A process that calls `work(task)` for each task that it is sent (a few numbers: what no pipe is too small for) and gives the
    results in the same order. It ends with the trainer, and with this object."""

    def __init__(self, name, work):
        """Raises OSError where there may be no more processes or open files."""
        (self._pipe, theirs), self._name, trainer = multiprocessing.Pipe(), name, os.getpid()
        held = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)  # the trainer's handlers are none for the process
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _serve(theirs, work, trainer)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        theirs.close()  # that of the process is now the only one
        self._end = weakref.finalize(self, os.kill, self.pid, signal.SIGKILL)

    def send(self, task):
        """Give the process something to do."""
        with contextlib.suppress(OSError):  # it is dead: `receive` says so
            self._pipe.send(task)

    def receive(self):
        """Return the first result that has not been received. Raises what the work did, TrainingStopped where the process is dead."""
        try:
            result, error = self._pipe.recv()
        except (EOFError, OSError):
            self.check(options=0)
        if error:
            raise error
        return result

    def check(self, options=os.WNOHANG):
        """Raise TrainingStopped where the process is dead."""
        ended, status = os.waitpid(self.pid, options)
        if ended:
            self._end.detach()
            how = cli.death(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else "ended with status %d" % os.WEXITSTATUS(status)
            raise cli.TrainingStopped("loader worker %s, pid %d, %s" % (self._name, self.pid, how))


def start(count, work):
    """Return `count` Workers. Raises UserError where that many may not be started."""
    try:
        workers = [Worker("%d of %d" % (number + 1, count), work) for number in range(count)]
        for spare in [os.open(os.devnull, os.O_RDONLY) for _ in range(_SPARE_FILES)]:
            os.close(spare)
        return workers
    except OSError as error:
        raise cli.UserError("cannot start %d loader workers (%s); take fewer --workers, or raise the limit (ulimit -n: open files, "
                            "-u: processes)" % (count, error.strerror))


def _serve(pipe, work, trainer):
    try:
        cli.end_with(trainer)  # not even a stopped one outlives it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; the trainer alone answers
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
        with contextlib.suppress(OSError):  # a container may have been given others since
            os.sched_setaffinity(0, _CPUS)
        torch.set_num_threads(1)
        while os.getppid() == trainer:
            task = pipe.recv()
            try:
                answer = work(task), None
            except Exception as error:
                is_told = isinstance(error, (cli.TrainingStopped, MemoryError))
                answer = None, error if is_told else RuntimeError("in a loader worker:\n" + traceback.format_exc())
            pipe.send(answer)
    finally:
        os._exit(1)  # at the end of the pipe, and without the trainer's own clearing up

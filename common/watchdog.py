"""Notices that a rank no longer moves, says so every half minute, and ends the run.

What a rank does lies in one number, which changes with each turn of its loop: a step pays nothing else. The process that has started
the ranks, or a thread of the only one, looks at it once a second, and counts looks: a machine that was asleep has lost nothing.
"""
import contextlib
import os
import threading
import time

from common import cli

# What a rank does.
BEFORE, DATA, STEP, COLLECTIVE, SAVING, BETWEEN, NOTHING = range(7)
_WORDS = ("before its first step", "waiting for data", "computing", "in a collective", "saving", "between two passes over the data",
          "doing nothing")

_ANSWERS = 1 << 60  # beside what a rank does: its device has done something else meanwhile, so it is for another rank that this one waits
_PATIENCE = 3  # looks after which a device is asked

_SAYING = 30  # seconds from line to line
_FIRST_STEP = 1800  # seconds, as a process group's time-out: it compiles, or other ranks are late


class Mark(object):
    """What this process does: `board[place]` of a list or of a shared array, which others see."""

    def __init__(self):
        self.move_to([BEFORE], 0)

    def move_to(self, board, place):
        """Write into this board from here on."""
        self._board, self._place, self._turns, self.phase, self.is_steady = board, place, 0, BEFORE, False

    def enter(self, phase, begins=False):
        """Do something else. From where a pass `begins` until its first step sets `is_steady`, everything may take long."""
        self.phase, self._turns, self.is_steady = phase, self._turns + 1, self.is_steady and not begins
        self._board[self._place] = self._turns << 4 | (self.is_steady or phase == SAVING) << 3 | phase

    @contextlib.contextmanager
    def within(self, phase):
        """What is done in here is this; then it is what it was before."""
        before = self.phase
        self.enter(phase)
        yield
        self.enter(before)


mark = Mark()


class Watch(object):
    """Counts for how many looks each rank of a machine, whose processes are `pids`, has left its entry of `board` alone.

    `first`: the first one's number. `timeout`: seconds, 0 for never. `layout`: the training's distributed.Layout.
    """

    def __init__(self, board, first, pids, timeout, layout):
        self._board, self._first, self._pids, self._timeout, self._layout = board, first, pids, timeout, layout
        self._seen, self._looks = [-1] * len(pids), [0] * len(pids)

    def look(self):
        """Call this every second. Prints a line where it is time to; returns that with which the run has to end, else None."""
        board = list(self._board)
        now = [entry & ~_ANSWERS for entry in board]
        self._looks = [looks + 1 if new == old else 0 for looks, new, old in zip(self._looks, now, self._seen)]
        self._seen, longest = now, max(self._looks)
        if longest == 0 or longest % _SAYING and longest != self._timeout:
            return None
        places = [place for place, looks in enumerate(self._looks) if 2 * looks > longest]
        hung = [place for place in places if not board[place] & _ANSWERS]
        still = [(place, self._words(self._pids[place], now[place] & 7, 0 < len(hung) < len(places))) for place in hung or places]
        since = time.strftime("%H:%M:%S", time.localtime(time.time() - longest))
        line = "%s, since %s (%d s)" % ("; ".join("rank %d %s" % (self._first + place, words) for place, words in still), since, longest)
        if 0 < self._timeout <= longest and (longest >= _FIRST_STEP or any(
                now[place] & 8 or "stopped" in words for place, words in still)):
            return line + ": ended by --stall_timeout=%d; --resume goes on" % self._timeout
        if longest % _SAYING == 0:
            with contextlib.suppress(OSError):  # nobody may listen
                os.write(1, (line + "\n").encode())  # not sys.stdout: who waits may hold its lock
        return None

    def _words(self, pid, phase, others_wait=False):
        words = _WORDS[phase]
        if others_wait and phase in (STEP, COLLECTIVE) or phase == STEP and self._layout.device_type != "cpu":
            words = "in the device" if others_wait or self._layout.world_size == 1 else "in the device or in a collective"
        elif phase == STEP and self._layout.world_size > 1 and _parent_and_state(pid)[1] == "S":
            words = _WORDS[COLLECTIVE]  # what computes does not sleep
        for other in os.listdir("/proc"):
            parent, state = _parent_and_state(other)
            if state == "T" and str(pid) in (other, parent):  # the rank, or a loader process of it
                words += " (process %s is stopped; kill -CONT %s wakes it)" % (other, other)
        return words


def over_this_process(layout, local_rank, timeout):
    """Return a context in which a thread watches this process, which is a rank of a Layout, and ends it as a stopped training."""
    board = [BEFORE]
    mark.move_to(board, 0)

    def end(line):
        cli.complain(line)
        os._exit(cli.EXIT_STOPPED)

    return _looking(Watch(board, layout.rank(local_rank), [os.getpid()], timeout, layout).look, end)


def over_device(does_other_work):
    """Return a context in which a thread asks a device, when this process stands still in a step, whether it `does_other_work()`."""
    seen = [None, 0]

    def look():
        board, place, now = mark._board, mark._place, mark._board[mark._place]
        seen[:] = now, seen[1] + 1 if now == seen[0] else 0
        if seen[1] == _PATIENCE and now & 7 in (STEP, COLLECTIVE):
            with contextlib.suppress(RuntimeError):  # it is lost, which the rank finds out itself
                if does_other_work() and board[place] == now:
                    board[place] = now | _ANSWERS

    return _looking(look, None)


def over_program(pid, timeout, end):
    """Return a context in which a thread says that the process `pid` is stopped (SIGSTOP), and calls `end(line)` when it has been for
    `timeout` seconds (0: never)."""
    class Board(object):
        """Stands still while the process is stopped."""
        def __iter__(self):
            yield NOTHING if _parent_and_state(pid)[1] == "T" else time.monotonic_ns() << 4

    return _looking(Watch(Board(), 0, [pid], timeout, None).look, end)


@contextlib.contextmanager
def _looking(look, end):
    left = threading.Event()

    def watch():
        while not left.wait(1):
            line = look()
            if line:
                return end(line)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        left.set()


def _parent_and_state(pid):
    try:
        with open("/proc/%s/stat" % pid) as stat:
            state, parent = stat.read().rpartition(")")[2].split()[:2]
        return parent, state
    except OSError:  # no process, or it has just ended
        return "", ""

"""The line of a training on a terminal: tqdm's, updated in place, over all steps that the run has.

While it is there, lines about steps are for files alone: they are left out or, on their way to run.py, which has terminal and log, marked.
"""
import atexit
import contextlib
import os
import sys
import threading

TERMINAL = "RUN_TERMINAL"  # environment: the name of the terminal that run.py writes to; empty for none
MARK, ERASE = "\x1e", "\r\x1b[K"

_line = None  # of this process


def terminal():
    """Return the name of the terminal that stdout is, None where it is none."""
    with contextlib.suppress(OSError):
        return os.ttyname(1)


def begin(rank, progress, batches, epochs):
    """Show the line of a progress.Progress on rank 0, where there is a terminal, and tqdm."""
    global _line
    name = os.environ[TERMINAL] if TERMINAL in os.environ else terminal()
    if not (rank.is_main and name):
        return
    with contextlib.suppress(ImportError, OSError):
        from tqdm import tqdm
        tqdm.set_lock(threading.RLock())  # its own is also one of processes: a semaphore that a rank would leave behind
        stream = open(name, "w", opener=lambda path, mode: os.open(path, mode | os.O_NOCTTY))
        done = progress.epoch * batches + progress.step
        _line = tqdm(total=epochs * batches, initial=done, file=stream, unit="step", dynamic_ncols=True, leave=False)
        _line.epochs, sys.stdout = epochs, _Stdout(sys.stdout, is_terminal=TERMINAL not in os.environ)
        atexit.register(_line.close)


def hide(step=0, batches=None):
    """From here on, lines are for files alone. `step`, `batches`: those of an evaluation, which the line says."""
    if _line is not None:
        sys.stdout.is_hidden = True
        if batches is not None:
            _line.set_description("evaluation %d/%d" % (step + 1, len(batches)))


def show(progress=None, clock=None):
    """Lines are for the terminal again. `progress`, `clock`: those of a training that has taken a step."""
    if _line is not None:
        sys.stdout.is_hidden = False
    if _line is not None and progress:
        loss, waited, took = progress.tally.loss, clock.data_time.sum, clock.step_time.sum  # as they were last read
        shown = (("loss %.3f", loss.val if loss.count else None), ("%.0f images/s", clock.images_per_second),
                 ("waiting %.0f %%", 100 * waited / took if took else None))
        _line.set_postfix_str(", ".join(form % value for form, value in shown if value is not None), refresh=False)
        _line.set_description("epoch %d/%d" % (progress.epoch + 1, _line.epochs), refresh=False)
        _line.update()


class _Stdout(object):
    def __init__(self, stream, is_terminal):
        self._stream, self._is_terminal, self.is_hidden = stream, is_terminal, False

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        if not self._is_terminal:
            text = MARK + text[:-1].replace("\n", "\n" + MARK) + text[-1:] if self.is_hidden and text.strip() else text
        elif text.strip():
            text = "" if self.is_hidden else ERASE + text
        return self._stream.write(text)

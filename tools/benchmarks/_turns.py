"""Candidates of a benchmark that take turns, each in a process of its own: what else the machine does is then in all of them."""
import contextlib
import multiprocessing
import os
import random
import statistics
import sys

from common import bar, cli


@contextlib.contextmanager
def started(names, open_candidate, method="fork", together=False):
    """Give {name: pipe to its process} of those that can be opened, one after the other or `together`, and say why the others are
    left out. The processes end with this.

    `open_candidate(name)`, called in the process, returns a function of a number that gives what it measured; it raises ImportError
    for what is not installed. It is a function of a module where `method` is spawn.
    """
    context, pipes, processes = multiprocessing.get_context(method), {}, []
    try:
        for group in [names] if together else [[name] for name in names]:
            for name in group:
                pipes[name], its_end = context.Pipe()
                processes.append(context.Process(target=serve, args=(name, open_candidate, its_end, os.getpid()), daemon=True))
                processes[-1].start()
                its_end.close()  # or nobody would notice that the process has ended
            for name in group:
                show("opening %s" % _shown(name))
                problem = answer(pipes[name])
                if problem:
                    _leave_out(name, problem, pipes)
        yield pipes
    finally:
        for process in processes:
            process.kill()
            process.join()


def ask(pipe, number):
    """Give a process its order."""
    with contextlib.suppress(BrokenPipeError):  # `answer` says that it has ended
        pipe.send(number)


def answer(pipe):
    """Return what a process answers: a text, a problem, where it has ended."""
    try:
        return pipe.recv()
    except (EOFError, ConnectionError):
        return "its process was killed"


def show(text=""):
    """Show on stderr, where it is a terminal, what is waited for."""
    if sys.stderr.isatty():
        sys.stderr.write(bar.ERASE + text)
        sys.stderr.flush()


def counted(count):
    """Yield so many times, and show which round it is."""
    for number in range(count):
        show("round %d of %d" % (number + 1, count))
        yield
    show()


def _shown(name):
    return name if isinstance(name, str) else " ".join(map(str, name))


def _leave_out(name, problem, among):
    show()
    cli.print_line("left out: %s (%s)" % (_shown(name), problem))
    del among[name]


def serve(name, open_candidate, pipe, parent):
    """Answer through a pipe: first why `open_candidate(name)` fails, None where it does not, then what it measures with each number. Ends
    with the process `parent`."""
    cli.end_with(parent)
    try:
        measure = open_candidate(name)
    except ImportError as error:
        pipe.send(str(error) or repr(error))
        return
    except Exception as error:  # whatever another's library raises where it does not fit the machine
        pipe.send(_in_a_line(error))
        return
    pipe.send(None)
    with contextlib.suppress(EOFError, KeyboardInterrupt):  # the benchmark has ended
        while True:
            number = pipe.recv()
            try:
                found = measure(number)
            except Exception as error:  # such as no memory
                found = _in_a_line(error)
            pipe.send(found)


def _in_a_line(error):
    return "%s: %s" % (type(error).__name__, str(error).splitlines()[0] if str(error) else "")


def rounds(pipes, count, number):
    """Return {name: what it measured with `number`, in each of `count` rounds}, in another order each round. What fails is left out."""
    measured, rng = {name: [] for name in pipes}, random.Random(0)
    for _ in counted(count):
        for name in rng.sample(sorted(measured), len(measured)):
            ask(pipes[name], number)
            found = answer(pipes[name])
            if isinstance(found, str):
                _leave_out(name, found, measured)
            else:
                measured[name].append(found)
    return measured


def ratio(theirs, ours):
    """Return (median, lower quartile, upper quartile) of the ratios theirs / ours of the rounds."""
    ratios = sorted(one / other for one, other in zip(theirs, ours))
    return statistics.median(ratios), ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]

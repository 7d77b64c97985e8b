"""The ranks of one machine: started together, watched, ended together, and one reason for it."""
import multiprocessing.connection
import os
import signal
import sys
import time
import traceback

import torch.multiprocessing

from common import cli, watchdog

# What a rank says that another one has left alone.
LOST_RANK = "has lost the connection to another rank"

_SECONDS_FOR_A_REASON = 3


def run_ranks(run_rank, layout, stall_timeout):
    """Call `run_rank(local_rank)` in a process for each device of a distributed.Layout; return when all are done. When one fails, or
    nothing moves for `stall_timeout` seconds, all are ended. Raises what cli.run knows."""
    context = torch.multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    board = context.RawArray("q", len(layout.indices))
    spawned = torch.multiprocessing.spawn(  # kept: its semaphores go with it, and ranks are still opening them
        _rank_main, (run_rank, layout.rank(0), (os.getpid(), board, writer)), nprocs=len(layout.indices), join=False)
    processes = spawned.processes
    watch = watchdog.Watch(board, layout.rank(0), [process.pid for process in processes], stall_timeout, layout)
    previous = signal.signal(signal.SIGTERM, lambda *_: [process.terminate() for process in processes])
    try:
        status, text = first_failure(processes, reader, watch.look, layout.rank(0))
    finally:
        signal.signal(signal.SIGTERM, previous)
        for process in processes:  # all at once: each is a connection that the others would miss
            process.kill()
        for process in processes:
            process.join()
    raise_for(status, text)


def raise_for(status, text):
    """Raise what ends a run with this status, 0 for none; `text` is the reason, or a rank's traceback."""
    if status == cli.EXIT_FAILED:
        sys.stderr.write(text)
        text = "a rank has crashed; the others were stopped"
    if status:
        quiet = {cli.EXIT_TERMINATED: cli.Terminated(), cli.EXIT_INTERRUPTED: KeyboardInterrupt()}
        raise quiet.get(status, cli.RankFailed(text, status))


def _rank_main(local_rank, run_rank, first, above):
    parent, board, writer = above
    cli.end_with(parent)
    watchdog.mark.move_to(board, local_rank)
    texts = [""]
    try:
        status = cli.status_of(lambda: run_rank(local_rank), texts.append)
    except Exception:
        status = cli.EXIT_FAILED
        texts.append("rank %d:\n%s" % (first + local_rank, traceback.format_exc()))
    sys.stdout.flush()
    sys.stderr.flush()
    if texts[-1]:
        # Tell the parent and wait for it to stop every rank: were this one to end first, the others would lose their
        # connection and bury the reason under complaints of their own.
        writer.send((status, texts[-1]))
        time.sleep(60)
    os._exit(status)  # do not wait for a collective library or for loader threads


def first_failure(processes, reader, look, first):
    """Wait until all processes have ended well, or one has not: return the status and the reason of the run. `first`: the number of
    the first rank. `look` is called once a second (watchdog.Watch).

    A crash may be no more than the loss of another rank, and can be here before the kernel is through with that one: for such an
    ending a better reason is waited for.
    """
    running = dict((process.sentinel, number) for number, process in enumerate(processes))
    best, doubtful, patience = (0, ""), [], _SECONDS_FOR_A_REASON
    while running and patience > 0:
        events = multiprocessing.connection.wait(list(running) + [reader], timeout=1)
        line = None if events else look()
        if line:
            return cli.EXIT_STOPPED, line
        patience -= bool(doubtful and not events)
        for event in events:
            number = running.pop(event, None)
            if number is None:
                found = reader.recv()
            else:
                processes[number].join()
                found = ending(processes[number].exitcode, first + number)
            if found in ((0, ""), (cli.EXIT_TERMINATED, "")):
                best = max(best, found)  # all ranks have agreed to stop; rank 0 may still be writing
            elif _doubt(found):
                doubtful.append(found)
            else:
                return found
    return min(doubtful, key=_doubt) if doubtful else best


def ending(exit_code, rank):
    """Return the status and the reason that the exit code of a rank's process is, which is negative after a signal."""
    if exit_code >= 0:
        return exit_code, ""
    return 128 - exit_code, "rank %d %s; the others were stopped" % (rank, cli.death(-exit_code))


def _doubt(found):
    """Return how likely a (status, reason) is the mere consequence of another: 0 for what is a reason."""
    return 2 * (LOST_RANK in found[1]) + (found[0] in (cli.EXIT_FAILED, 128 + signal.SIGABRT))

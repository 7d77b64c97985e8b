"""Processes of a run that die or are stopped: loader workers, ranks, the process that started them, the script itself.

What dies ends the run with one line, 3 for a worker and 128 + n for a rank; what is stopped ends with 3 at --stall_timeout, and the
line names it. Nothing is left running, and --resume goes on to what an undisturbed run gives.
"""
import itertools
import os
import signal
import time

from ci.campaign import process
from ci.campaign.world import NETWORK
from test_all_scripts import FULL

SHORT, LONG = 3, 30
STALL = 12  # seconds, in which a busy machine still moves
PATIENCE = 90


def trials(seed, world):
    """Yield who is hit, by what, after which step."""
    for number in itertools.count():
        rng = world.rng("deaths", seed, number)
        ranks = rng.choice([1, 2])
        whom = rng.choice(["worker", "rank", "rank", "program", "script"])
        signals = {"worker": ["SIGKILL", "SIGSEGV", "SIGSTOP", "SIGTERM", "SIGBUS"],
                   "rank": ["SIGKILL", "SIGSEGV", "SIGSTOP", "SIGABRT"],
                   "program": ["SIGKILL", "SIGSTOP"], "script": ["SIGKILL"]}[whom]
        yield {"model": sorted(NETWORK)[number % len(NETWORK)], "ranks": ranks, "whom": whom, "signal": rng.choice(signals),
               "which": rng.randint(0, 1), "checkpoints": rng.randint(1, 3), "delay": round(rng.uniform(0, 0.1), 3)}


def attempt(trial, place, world):
    """Hit a process in the middle of a training; returns what is unclean."""
    model, ranks, number = trial["model"], trial["ranks"], getattr(signal, trial["signal"])
    out = os.path.join(place, "out")
    words = dict(world.words(model, FULL[ranks], out, ranks), workers=str(2 * ranks))
    stall = {"stall_timeout": str(STALL)} if number == signal.SIGSTOP else {}
    run = process.Run(process.command(model, FULL[ranks], dict(words, **stall)), place)
    pid = _victim(run, trial, os.path.join(out, "checkpoint.pth.tar"))
    try:
        os.kill(pid or 1 << 30, number)
    except ProcessLookupError:
        trial["tried"] = 0  # it was through before
        return run.finish(PATIENCE).unclean([0])
    done = run.finish(PATIENCE)
    if done.status == 0:
        trial["tried"] = 0
        return done.unclean([0])
    found = _unclean(done, trial, number)
    if not found:
        done = process.run(process.command(model, FULL[ranks], dict(words, resume="1")), place)
        found = ["resumed: " + text for text in done.unclean([0]) or world.unlike_reference(model, ranks, out)]
    return found


def _victim(run, trial, checkpoint):
    """Return the pid of whom the trial hits, after its number of checkpoints, or None."""
    written, seen = 0, None
    while run.process.poll() is None and run.now() < PATIENCE:
        newest = os.path.exists(checkpoint) and os.stat(checkpoint).st_mtime_ns
        if newest and newest != seen:
            seen, written = newest, written + 1
        if written >= trial["checkpoints"]:
            time.sleep(trial["delay"])
            found = _of_kind(run, trial)
            return found[trial["which"] % len(found)] if found else None
        time.sleep(0.002)
    return None


def _of_kind(run, trial):
    """Return the pids of a kind: run.py is the script; its child the program, with one rank that rank; its grandchildren the ranks,
    with one rank the workers."""
    running = {pid: what for pid, what in run.processes().items() if "resource_tracker" not in what[1]}
    depth = {"script": 0, "program": 1, "rank": 2 if trial["ranks"] > 1 else 1,
             "worker": 3 if trial["ranks"] > 1 else 2}[trial["whom"]]
    found = [run.process.pid]
    for _ in range(depth):
        found = sorted(pid for pid, (parent, _) in running.items() if parent in found)
    return found


def _unclean(done, trial, number):
    if trial["whom"] == "script":
        return ["leaves %s" % done.left] if done.left else []
    if number == signal.SIGSTOP:
        return done.unclean([3], ["rank", "worker", "process"])
    if trial["whom"] == "worker":
        return done.unclean([3], ["worker", "loader"])
    return done.unclean([128 + number], ["signal %d" % number, trial["signal"]])

"""kill -9 at random moments of a training, those of writing a checkpoint among them, and --resume until it ends: bit for bit the
weights and records of an undisturbed run."""
import itertools
import json
import os
import signal
import time

from ci.campaign import process
from ci.campaign.world import HERE, NETWORK
from conftest import environment
from test_all_scripts import FULL

SHORT, LONG = 6, 200
MOST = 6  # kills of one training
PATIENCE = 40  # seconds in which ranks that still import have to see that they are alone


def trials(seed, world):
    """Yield trainings with the moments of their kills: a share of the undisturbed run's time, or a file that is being written."""
    for number in itertools.count():
        rng = world.rng("kills", seed, number)
        model = "GENet" if rng.random() < 0.4 else sorted(NETWORK)[number % len(NETWORK)]  # GENet's runs are the cheapest
        yield {"model": model, "ranks": 1 + (rng.random() < 0.4), "moments": [_moment(rng) for _ in range(MOST)]}


def _moment(rng):
    if rng.random() < 0.5:
        return {"share": round(rng.uniform(0.05, 0.8), 3)}
    return {"file": rng.randint(2, 14), "delay": rng.choice([0, 0, round(rng.uniform(0, 0.02), 4), round(rng.uniform(0, 0.3), 3)])}


def attempt(trial, place, world):
    """Kill and resume; returns what is unclean."""
    model, ranks = trial["model"], trial["ranks"]
    out = os.path.join(place, "out")
    words = world.words(model, FULL[ranks], out, ranks)
    trial["tried"] = 0
    for moment in trial["moments"]:
        found = _kill(process.command(model, FULL[ranks], words), place, dict(moment, out=out), world.seconds(model, ranks))
        if found is None:
            break  # it ended before
        trial["tried"] += 1
        if found:
            return ["kill %d, %s: %s" % (trial["tried"], moment, found)]
        words["resume"] = "1"
    done = process.run(process.command(model, FULL[ranks], dict(words, resume="1")), place)
    found = done.unclean([0])
    return found or world.unlike_reference(model, ranks, out)


def killing(pid, out, at, delay):
    """Return the environment of a run that hooks/sitecustomize.py kills; the file `pid` has the number of the script's process."""
    return environment(PYTHONPATH=os.path.join(HERE, "hooks"),
                       CAMPAIGN_KILL=json.dumps({"out": out, "at": at, "delay": delay, "pid": pid}))


def _kill(command, place, moment, seconds):
    """Start the command and kill it; return what was unclean, None where it ended before."""
    pid = os.path.join(place, "pid")
    run = process.Run(command, place, env=killing(pid, moment["out"], moment["file"], moment["delay"]) if "file" in moment else None)
    with open(pid + ".part", "w") as stream:
        stream.write(str(run.process.pid))
    os.rename(pid + ".part", pid)
    if "share" in moment and run.sleep(moment["share"] * seconds):
        run.signal(signal.SIGKILL)
    run.process.wait(run.limit_s)
    time.sleep(1)
    before = process.tree(moment["out"])
    done = run.finish(patience_s=PATIENCE)
    if done.status == 0:
        return None
    written = process.changes(before, process.tree(moment["out"]))
    silent = done.status == 128 + signal.SIGKILL and not (done.left or done.hung or done.stderr)  # nobody was there to say anything
    found = "" if silent else "status %d, left %s, stderr: %s" % (done.status, done.left, done.stderr[-300:])
    return "%s, written afterwards: %s" % (found, written) if written else found

"""SIGINT and SIGTERM at any moment of any script: 130 or 143, one true line, a checkpoint exactly when the line says so."""
import itertools
import os
import signal
import time

from ci.campaign import process
from ci.campaign.world import NETWORK
from test_all_scripts import EVAL, FULL

SHORT, LONG = 4, 60
PATIENCE = 60  # seconds: 10 are promised; the machine is shared
CLAIM = "after saving"


def trials(seed, world):
    """Yield moments: half of them in the first second, where nothing is set up yet."""
    for number in itertools.count():
        rng = world.rng("signals", seed, number)
        script = rng.choice(["train", "train", "train", "eval"])
        early = rng.random() < 0.35
        yield {"model": sorted(NETWORK)[number % len(NETWORK)], "script": script, "ranks": rng.choice([1, 1, 2]),
               "signal": rng.choice(["SIGINT", "SIGTERM"]), "again": rng.random() < 0.2,
               "at": round(rng.uniform(0, 1), 3) if early else None, "share": None if early else round(rng.uniform(0.1, 0.98), 3)}


def attempt(trial, place, world):
    """Signal a run; returns what is unclean. A training is then resumed, and has to give what an undisturbed one does."""
    model, ranks = trial["model"], trial["ranks"]
    out, script = os.path.join(place, "out"), (FULL if trial["script"] == "train" else EVAL)[ranks]
    words = dict(world.words(model, script, out, ranks))
    words.pop("checkpoint_steps", None)
    if trial["script"] == "eval":
        words["pth_path"] = world.weights(model)
    seconds = world.seconds(model, ranks)
    run = process.Run(process.command(model, script, words), place)
    run.sleep(trial["share"] * seconds if trial["at"] is None else trial["at"])
    signalled = time.time()
    run.signal(getattr(signal, trial["signal"]))
    if trial["again"]:
        run.sleep(signalled - run.started + 0.3)
        run.signal(getattr(signal, trial["signal"]))
    done = run.finish(PATIENCE)
    if done.status == 0:
        return done.unclean([0])  # it was through before
    found = done.unclean([128 + getattr(signal, trial["signal"])]) + _untrue(done, os.path.join(out, "checkpoint.pth.tar"),
                                                                             signalled)
    if not found and trial["script"] == "train":
        done = process.run(process.command(model, script, dict(words, resume="1")), place)
        found = ["resumed: " + text for text in done.unclean([0]) or world.unlike_reference(model, ranks, out)]
    return found


def _untrue(done, checkpoint, signalled):
    """A checkpoint was written since SIGTERM if and only if the line says so; Ctrl-C writes none of its own."""
    claimed = CLAIM in done.stderr
    written = os.path.exists(checkpoint) and os.path.getmtime(checkpoint) > signalled
    if claimed and not written:
        return ["says that it saved, and has not: %s" % done.stderr]
    unsaid = written and not claimed and done.status == 128 + signal.SIGTERM
    return ["saved, and does not say so: %s" % done.stderr] if unsaid else []

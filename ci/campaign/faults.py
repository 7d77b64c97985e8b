"""Faults of a device and of a machine: those of the simulated NPU, little memory, few file descriptors, a training that diverges.

A fault ends a run with 3 and one line (a rank that the device's library takes down with 128 + n), and the same command with
--resume goes on without it. An overflow of fp16 is none where the loss scale is dynamic: the step is left out. (With a static one
the weights are not finite after it, and that is 3.)
"""
import itertools
import os

import torch

import npu_sim
from ci.campaign import process
from ci.campaign.world import NETWORK, Skipped
from common import checkpoint
from conftest import CI, environment
from test_all_scripts import FULL

SHORT, LONG = 3, 30
STALL = 8  # seconds
LIMIT = 150
KINDS = ("oom", "oom", "hang", "collective_timeout", "overflow", "memory", "descriptors", "diverges")


def trials(seed, world):
    """Yield a fault, the step at which it strikes, and whom."""
    for number in itertools.count():
        rng = world.rng("faults", seed, number)
        kind = KINDS[number % len(KINDS)]
        ranks = 2 if kind == "collective_timeout" else rng.choice([1, 1, 2])
        trial = {"model": rng.choice(sorted(NETWORK)), "fault": kind, "ranks": ranks}
        if kind in ("oom", "hang", "collective_timeout", "overflow"):
            trial.update(step=rng.randint(1, 5), rank=rng.randrange(ranks))
            if kind == "hang":  # a first step may take half an hour: it compiles
                trial["step"] = max(trial["step"], 2)
        elif kind == "memory":
            trial["mib"] = rng.choice([1500, 2000, 2500, 3000])
        elif kind == "descriptors":
            trial["descriptors"] = rng.choice([24, 32, 48, 64])
        else:
            trial["rate"] = rng.choice(["1e30", "1e20", "1e10"])
        yield trial


def attempt(trial, place, world):
    """Let the fault strike; returns what is unclean."""
    out = os.path.join(place, "out")
    words = world.words(trial["model"], FULL[trial["ranks"]], out, trial["ranks"])
    if trial["fault"] in ("memory", "descriptors"):
        return _little(trial, words, place)
    if trial["fault"] == "diverges":
        return _diverges(trial, words, place)
    return _on_npu(trial, words, place)


def _on_npu(trial, words, place):
    if npu_sim.skip_reason() is not None:
        raise Skipped(str(npu_sim.skip_reason()))
    fault, script = trial["fault"], FULL[trial["ranks"]]
    words = dict(words, device="npu", opt_level="O1" if fault == "overflow" else "O0")
    stall = {"stall_timeout": str(STALL)} if fault == "hang" else {}
    env = environment(PYTHONPATH=os.path.join(CI, "npu_sim"), NPU_SIM_STRICT="1", HCCL_EXEC_TIMEOUT="10")
    struck = dict(env, NPU_SIM_FAULT="%s@step=%d,rank=%d" % (fault, trial["step"], trial["rank"]))
    if trial["ranks"] == 1:
        struck["NPU_SIM_FAULT"] = struck["NPU_SIM_FAULT"].partition(",")[0]
    done = process.run(process.command(trial["model"], script, dict(words, **stall)), place, env=struck, limit_s=LIMIT)
    if fault == "overflow":
        return done.unclean([0, 3])
    right, said = {"oom": ([2, 3] if trial["step"] == 1 else [3], ["memory"]), "hang": ([3], ["rank", "device"]),
                   "collective_timeout": ([3, 134], ["rank"])}[fault]
    if done.status == 0:
        trial["tried"] = 0  # no allocation, no collective after that step
        return done.unclean([0])
    found = done.unclean(right, said)
    if not found:
        done = process.run(process.command(trial["model"], script, dict(words, resume="1")), place, env=env, limit_s=LIMIT)
        found = ["resumed: " + text for text in done.unclean([0])]
    return found


def _little(trial, words, place):
    """A run with little memory or few file descriptors: it does, or it says what it lacks."""
    limit = "ulimit -v %d" % (trial["mib"] << 10) if "mib" in trial else "ulimit -n %d" % trial["descriptors"]
    words = dict(words, workers="8" if "descriptors" in trial else "0")
    command = ["bash", "-c", limit + ' && exec "$@"', "campaign"] + process.command(trial["model"], FULL[trial["ranks"]], words)
    return process.run(command, place).unclean([0, 2, 3], ["memory", "descriptors", "files", "ulimit"])


def _diverges(trial, words, place):
    """A training whose loss is not finite stops, and leaves no weights that are not."""
    done = process.run(process.command(trial["model"], FULL[trial["ranks"]], dict(words, learning_rate=trial["rate"])), place)
    found = done.unclean([3], ["finite", "nan", "inf"])
    path = os.path.join(words["output_path"], "checkpoint.pth.tar")
    if os.path.exists(path):
        weights = checkpoint.weights(checkpoint.load(path), use_ema="false")
        bad = [key for key, value in weights.items() if torch.is_tensor(value) and not torch.isfinite(value.double()).all()]
        found += ["the checkpoint holds weights that are not finite: %s" % bad[0]] if bad else []
    return found

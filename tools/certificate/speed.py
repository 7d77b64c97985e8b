"""Stage 5, speed: images/s on made-up and on real data, waiting for data, memory, operators and host waits a step.

What is measured is written down; bounds have what is promised: the host waits for the device at logging lines alone, and
memory is the device's. One program at a time; on several devices also 1 -> N ranks.
"""
import argparse
import json
import os
import sys

import torch

from benchmarks import _loops
from certificate import _scripts
from certificate._checks import ROOT, Check, at_most, equal, is_simulated, kind, meaningless
from common import device as devices

WAITS = 0.3  # of the host, a step
_WAITS_SOURCE = "ci/test_step.py: it waits at logging lines, one in ten steps"
# On an accelerator the recipe's pictures; on a CPU what ends in seconds.
DEVICE, HOST = {"max_steps": 60}, {"max_steps": 12, "batch_size": 8}
HALF = {"GENet": 128, "ResNet50": 256, "HRNet": 128, "EfficientNet-B3": 128, "FixRes": 128}  # batches of the performance runs


def run(case):
    """Yield the checks of each model in turn."""
    simulated = is_simulated(case.device)
    if simulated:
        yield meaningless("", "images/s, waiting, memory", "the NPU is simulated: its speed is the host's")
    for model in case.models:
        yield from operators(case, model)
        yield from [] if simulated else performance(case, model)


def performance(case, model):
    """Yield what performance runs have measured: made-up data, then real data, then N ranks."""
    count = devices.count(case.device.partition(":")[0])
    alone, checks = _measured(case, model, "made-up data", "train_performance_1p.sh", {"dummy": 1})
    yield from checks
    _, checks = _measured(case, model, "real data", "train_performance_1p.sh", {"data_path": _scripts.where(case, model)})
    yield from checks
    if count == 1:
        yield meaningless(model, "1 -> N ranks", "one device here")
        return
    batch = HALF[model] * (1 if model in _scripts.PER_RANK else count)
    words = {"dummy": 1, "device_list": ",".join(map(str, range(count))), "batch_size": batch}
    rate, checks = _measured(case, model, "made-up data, %d ranks" % count, "train_performance_8p.sh", words)
    yield from checks
    if rate and alone:
        yield Check(model, "images/s of %d ranks over those of one" % count, rate / alone, "> 0", "measured", True)


def _measured(case, model, name, script, words):
    """Return (images/s or None, checks) of a performance run."""
    sizes = dict(train_epochs=1, opt_level=None, data_path=None)  # None: the recipe's
    if kind(case.device) == "cpu":
        sizes.update(HOST, **_scripts.SMALL[model])
    else:
        sizes.update(DEVICE, batch_size=HALF[model], **dict.fromkeys(_scripts.SMALL[model]))
        if "data_path" in words:  # the demo data are few
            sizes.update(num_classes=10, workers=8, batch_size=32, max_steps=None, train_epochs=3)
    out = os.path.join(case.output_path, "speed", "%s-%s" % (model, name.replace(" ", "-").replace(",", "")))
    done = _scripts.run(case, _scripts.command(case, model, script, out, **dict(sizes, **words)), out)
    _scripts.drop_weights(out)
    if done.status:
        return None, [equal(model, "run on %s" % name, done.status, 0, "exit status", _scripts.last_line(done))]
    last, report = _scripts.logged(out, 0)[-1], _scripts.report(out)
    rate = last.get("train.total_ips")
    said = "batch %s, %s, %d steps" % (
        report["case"]["batch_size"], report["parameters"].get("opt_level_run"), last.get("steady_steps") or 0)
    if not rate:
        return None, [meaningless(model, "images/s, %s" % name, "too few steps on this data to measure (%s)" % said)]
    checks = [Check(model, "images/s, %s" % name, rate, "> 0", "measured over steady steps", rate > 0, said)]
    if last.get("train.data_wait") is not None:
        checks.append(at_most(model, "waiting for data (%%), %s" % name, last["train.data_wait"], 100.0, "a share", said))
    used = last.get("peak_memory_bytes")
    if used:
        there = getattr(torch, case.device.partition(":")[0]).get_device_properties(0).total_memory
        checks.append(at_most(model, "peak memory (MiB), %s" % name, used // 2 ** 20, there // 2 ** 20, "the device's memory"))
    return rate, checks


def operators(case, model):
    """Return the checks of operators and host waits of a step."""
    out = os.path.join(case.output_path, "speed", model + "-operators")
    os.makedirs(out, exist_ok=True)
    args = argparse.Namespace(device=kind(case.device), batch_size=8, image_size=None if model == "GENet" else 64)
    program, *words = _loops.arguments(model, "O2", [], out, args)
    command = [sys.executable, os.path.join(ROOT, "tools", "benchmark.py"), "operators", "--json", os.path.join(ROOT, program)]
    done = _scripts.run(case, command + words, out)
    if done.status:
        return [equal(model, "operators a step", done.status, 0, "exit status", _scripts.last_line(done))]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    waits = sum(found["waits"].values())
    total = found["operators"]["total"]
    return [Check(model, "operators a step, O2", total, "> 0", "measured", total > 0),
            at_most(model, "host waits a step, O2", waits, WAITS, _WAITS_SOURCE, ", ".join(sorted(found["waits"])))]

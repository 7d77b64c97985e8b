"""Stage 5, speed: images/s on made-up and on real data, waiting for data, memory, operators and host waits a step.

What is measured is written down; bounds have what is promised: the host waits for the device at logging lines alone, and
memory is the device's. One program at a time; on several devices also 1 -> N ranks.
"""
import argparse
import json
import os
import sys

from benchmarks import _loops
from certificate import _scripts
from certificate._checks import ROOT, Check, at_most, is_simulated, kind, meaningless
from common import device as devices

STAGE, TITLE = 5, "Speed"
WAITS = 0.3  # of the host, a step
_WAITS_SOURCE = "ci/test_step.py: it waits at logging lines, one in ten steps"
# On an accelerator the recipe's pictures; on a CPU what ends in seconds. Of each model: batch, steps.
DEVICE, HOST = {"max_steps": 60}, {"max_steps": 12, "batch_size": 8}
HALF = {"GENet": 128, "ResNet50": 256, "HRNet": 128, "EfficientNet-B3": 128, "FixRes": 128}  # batches of the performance runs


def run(case):
    """Yield the checks of each model in turn."""
    simulated = is_simulated(case.device)
    if simulated:
        yield meaningless(STAGE, "", "images/s, waiting, memory", "the NPU is simulated: its speed is the host's")
    for model in case.models:
        for check in operators(case, model):
            yield check
        for check in [] if simulated else performance(case, model):
            yield check


def performance(case, model):
    """Yield what performance runs have measured: made-up data, then real data, then N ranks."""
    count = devices.count(case.device.split(":")[0]) if kind(case.device) != "cpu" else 1
    alone = None
    for name, script, words in [("made-up data", "train_performance_1p.sh", {"dummy": 1}),
                                ("real data", "train_performance_1p.sh", {"data_path": _scripts.where(case, model)})]:
        rate, checks = _measured(case, model, name, script, words)
        alone = alone or rate
        for check in checks:
            yield check
    if count == 1:
        yield meaningless(STAGE, model, "1 -> N ranks", "one device here")
        return
    batch = HALF.get(model, 64) * (1 if model in _scripts.PER_RANK else count)
    words = {"dummy": 1, "device_list": ",".join(map(str, range(count))), "batch_size": batch}
    rate, checks = _measured(case, model, "made-up data, %d ranks" % count, "train_performance_8p.sh", words)
    for check in checks:
        yield check
    if rate and alone:
        yield Check(STAGE, model, "images/s of %d ranks over those of one" % count, rate / alone, "> 0", "measured", True)


def _measured(case, model, name, script, words):
    """Return (images/s or None, checks) of a performance run."""
    on_cpu = kind(case.device) == "cpu"
    sizes = dict(HOST, **_scripts.SMALL[model]) if on_cpu else dict(DEVICE, batch_size=HALF.get(model, 64))
    if not on_cpu and "data_path" in words:
        sizes.update(num_classes=10, workers=8, batch_size=32, max_steps=None, train_epochs=3)  # the demo data are few
    recipes = dict.fromkeys(("opt_level", "data_path", *_scripts.SMALL[model]))  # None: the recipe's
    sizes = dict(dict(recipes, train_epochs=1), **sizes)
    out = os.path.join(case.output_path, "speed", "%s-%s" % (model, name.replace(" ", "-").replace(",", "")))
    done = _scripts.run(case, _scripts.command(case, model, script, out, **dict(sizes, **words)), out)
    _scripts.drop_weights(out)
    if done.status:
        return None, [Check(STAGE, model, "run on %s" % name, done.status, 0, "exit status", False, _scripts.last_line(done))]
    last, report = _scripts.logged(out, 0)[-1], _scripts.report(out)
    rate = last.get("train.total_ips")
    said = "batch %s, %s, %d steps" % (
        report["case"]["batch_size"], report["parameters"].get("opt_level_run"), last.get("steady_steps") or 0)
    if not rate:
        return None, [meaningless(STAGE, model, "images/s, %s" % name, "too few steps on this data to measure (%s)" % said)]
    checks = [Check(STAGE, model, "images/s, %s" % name, rate, "> 0", "measured over steady steps", rate > 0, said)]
    if last.get("train.data_wait") is not None:
        checks.append(at_most(STAGE, model, "waiting for data (%%), %s" % name, last["train.data_wait"], 100.0, "a share", said))
    return rate, checks + _memory(case, model, name, last.get("peak_memory_bytes"))


def _memory(case, model, name, used):
    if not used:
        return []
    import torch
    api = getattr(torch, case.device.split(":")[0])
    total = api.get_device_properties(0).total_memory
    return [at_most(STAGE, model, "peak memory (MiB), %s" % name, used // 2 ** 20, total // 2 ** 20, "the device's memory")]


def operators(case, model):
    """Return the checks of operators and host waits of a step."""
    out = os.path.join(case.output_path, "speed", model + "-operators")
    os.makedirs(out, exist_ok=True)
    size = None if model == "GENet" else 64
    args = argparse.Namespace(device=kind(case.device), batch_size=8, image_size=size)
    try:
        program, *words = _loops.arguments(model, "O2", [], out, args)
    except KeyError:
        return [meaningless(STAGE, model, "operators a step", "tools/benchmark.py does not know this model")]
    words = [os.path.join(ROOT, program)] + words
    done = _scripts.run(case, [sys.executable, os.path.join(ROOT, "tools", "benchmark.py"), "operators", "--json"] + words, out)
    if done.status:
        return [Check(STAGE, model, "operators a step", done.status, 0, "exit status", False, _scripts.last_line(done))]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    waits = sum(found["waits"].values())
    total = found["operators"]["total"]
    return [Check(STAGE, model, "operators a step, O2", total, "> 0", "measured", total > 0),
            at_most(STAGE, model, "host waits a step, O2", waits, WAITS, _WAITS_SOURCE, ", ".join(sorted(found["waits"])))]

"""Stage 4, behaviour: kill, SIGTERM and resume, checkpoints without the device, N ranks like one, collectives, bad input.

With small networks, through the models' own scripts, on the demo data.
"""
import functools
import json
import os
import shutil
import signal
import sys

from certificate import _scripts
from certificate._checks import ROOT, at_most, equal, kind, meaningless
from common import cli, device as devices

EPOCHS, STEPS, BATCH, RATE = 2, 12, 8, 0.01
HIDDEN = {"CUDA_VISIBLE_DEVICES": "", "ASCEND_RT_VISIBLE_DEVICES": "", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
DIVISION = 1e-4  # as ci/test_all_scripts.py has it: sums of one batch in another order, to the largest value of a tensor
READING = 1e-3
_BITS = "README: kill -9 and --resume end with the same bits"


def run(case):
    """Yield the checks as they are found."""
    ranks = 2 if kind(case.device) == "cpu" else min(devices.count(case.device.partition(":")[0]), 2 if case.quick else 8)
    tasks = [functools.partial(collectives, case, ranks)]
    for model in case.models:
        tasks += [functools.partial(bad_input, case, model), functools.partial(training, case, model)]
        if not case.quick or model == "GENet":
            tasks.append(functools.partial(division, case, model, ranks))
    return _scripts.as_found(case, tasks)


# --- ranks ------------------------------------------------------------------------------------------------------------

def collectives(case, ranks):
    """Return the checks of each collective: on the device's ranks where it has several, on the CPU's where it has one."""
    where = kind(case.device) if ranks > 1 else "cpu"
    ranks = max(ranks, 2)
    out = os.path.join(case.output_path, "behaviour", "collectives")
    env = _scripts.environment(PYTHONPATH=os.pathsep.join([os.path.join(ROOT, "tools"), ROOT]))
    done = _scripts.run(case, [sys.executable, "-m", "certificate._collectives", where, str(ranks)], out, env)
    name = "collective on %d ranks (%s): " % (ranks, where)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    checks = [equal("", name + each["collective"], each["wrong"], 0, "wrong numbers by its definition", each["said"])
              for each in found]
    if done.status or not found:
        checks.append(equal("", name + "exit status", done.status, 0, "exit status", _scripts.last_line(done)))
    if where != kind(case.device):
        checks.append(meaningless("", "collectives of the device", "there is one such device; the CPU's were checked"))
    return checks


def division(case, model, ranks):
    """Return the check that an update on two ranks is that on one rank, with the networks in evaluation mode: on the device where it
    has `ranks` of its own, else on the CPU."""
    case, states = case._replace(device=case.device if ranks > 1 else "cpu"), []
    for devices_here in ("0", "0,1"):
        parts = 2 if model in _scripts.PER_RANK and devices_here == "0,1" else 1
        out = os.path.join(case.output_path, "behaviour", "%s-on-%s" % (model, devices_here))
        words = _scripts.command(case, model, "train_full_8p.sh", out, device_list=devices_here, seed=5, batch_size=BATCH // parts,
                                 learning_rate=RATE / parts, train_epochs=1, max_steps=1, data_path=_scripts.where(case, model),
                                 standalone=1)
        done = _scripts.run(case, words, out, _scripts.environment(PYTHONPATH=os.path.join(os.path.dirname(__file__), "frozen")))
        if done.status:
            return [equal(model, "a training on device(s) %s" % devices_here, done.status, 0, "exit status", _scripts.last_line(done))]
        states.append(next(value for key, value in _scripts.content(out).items() if key.startswith("optimizer"))["state"])
        shutil.rmtree(out)
    unlike = _scripts.differences(*states, tolerance=DIVISION)
    return [equal(model, "tensors that differ after an update on 2 ranks and on one (%s)" % kind(case.device), len(unlike), 0,
                  "more than %g of the largest value: sums in another order" % DIVISION, ", ".join(unlike[:3]))]


# --- one training, interrupted ----------------------------------------------------------------------------------------

def training(case, model):
    """Return the checks of a training: kill -9, SIGTERM and resume (not in the quick form), its checkpoint without the device."""
    out = os.path.join(case.output_path, "behaviour", model)
    done = _scripts.run(case, _command(case, model, out), out)
    if done.status:
        return [equal(model, "a training ends with status", done.status, 0, "exit status", _scripts.last_line(done))]
    checks = without_device(case, model, out)
    if not case.quick:
        checks += interrupted(case, model, out)
    for folder in (out, out + "-again"):
        shutil.rmtree(folder, ignore_errors=True)
    return checks


def _command(case, model, out, **more):
    return _scripts.command(case, model, "train_full_1p.sh", out, seed=5, batch_size=BATCH, learning_rate=RATE, train_epochs=EPOCHS,
                            max_steps=STEPS, predictions=1, checkpoint_steps=1, deterministic=1,
                            data_path=_scripts.where(case, model), **more)


def interrupted(case, model, reference):
    """Kill a training, stop the resumed one with SIGTERM, resume it to the end; return the checks."""
    out = reference + "-again"
    with case.slots:
        killed, written = _interrupt(_command(case, model, out), out, signal.SIGKILL, 0.0)
        checks = [equal(model, "status after kill -9", killed.status, 137, "128 + 9", _scripts.last_line(killed))]
        ended, _ = _interrupt(_command(case, model, out, resume=1), out, signal.SIGTERM, written)
        claim = "after saving" in ended.stderr
        checks.append(equal(model, "status after SIGTERM, with a checkpoint", ended.status if claim else "%d, no checkpoint"
                            % ended.status, 143, "128 + 15, after saving", _scripts.last_line(ended)))
        done = _scripts.finish(_scripts.start(_command(case, model, out, resume=1), out), out)
    if done.status:
        return checks + [equal(model, "resumed training ends with status", done.status, 0, _BITS, _scripts.last_line(done))]
    unlike = _scripts.differences(_scripts.content(reference), _scripts.content(out))
    unlike += _scripts.differences(_scripts.results(reference), _scripts.results(out), "records")
    return checks + [equal(model, "entries that differ after kill, SIGTERM and --resume", len(unlike), 0, _BITS,
                           ", ".join(unlike[:3]))]


def _interrupt(words, out, number, newer_than):
    """Start a run, and signal it once it has written a checkpoint; return the Done, and when that checkpoint was written."""
    process = _scripts.start(words, out)
    there = _scripts.wait_for_checkpoint(process, out, newer_than)
    if process.poll() is None:
        (os.killpg if number == signal.SIGKILL else os.kill)(process.pid, number)
    done = _scripts.finish(process, out)
    return done, os.path.getmtime(os.path.join(out, "checkpoint.pth.tar")) if there else 0.0


def without_device(case, model, out):
    """Return the check that a checkpoint is read, and says the same of each picture, where the device is hidden."""
    name = "loss of each validation picture, the checkpoint read without the device"
    at = out + "-without"
    words = _scripts.command(case, model, "train_eval_1p.sh", at, device="cpu", pth_path=os.path.join(out, "checkpoint.pth.tar"),
                             use_ema="false", batch_size=BATCH, data_path=_scripts.where(case, model), predictions=1)
    done = _scripts.run(case, words, at, _scripts.environment(**(HIDDEN if kind(case.device) != "cpu" else {})))
    if done.status:
        return [equal(model, name + ": status", done.status, 0, "exit status", _scripts.last_line(done))]
    before, after = (dict(zip(*_scripts.predictions(folder, "index", "loss"))) for folder in (out, at))
    shutil.rmtree(at)
    both = sorted(set(before) & set(after))  # --max_steps ends the training's own evaluation too
    error = max(abs(before[index] - after[index]) for index in both) / max(abs(before[index]) for index in both)
    return [at_most(model, name + " (difference, of the largest)", error, READING,
                    "float32 in another order; a tensor that is wrong changes it by more", "%d pictures" % len(both))]


# --- bad input --------------------------------------------------------------------------------------------------------

def bad_input(case, model):
    """Return the check that bad input ends with status 2, one line, and nothing touched."""
    out = os.path.join(case.output_path, "behaviour", model + "-bad")
    rubbish = os.path.join(case.output_path, "behaviour", model + "-rubbish.pth.tar")
    os.makedirs(os.path.dirname(rubbish), exist_ok=True)
    with open(rubbish, "wb") as stream:
        stream.write(b"no weights")
    where = _scripts.where(case, model)
    cases = [("no data set there", "train_full_1p.sh", dict(data_path=os.path.join(out, "none"))),
             ("batch size of 0", "train_full_1p.sh", dict(data_path=where, batch_size=0)),
             ("weights that are none", "train_eval_1p.sh", dict(data_path=where, pth_path=rubbish))]
    found = []
    for name, script, words in cases:
        done = _scripts.run(case, _scripts.command(case, model, script, out, **words), out)
        lines = len(done.stderr.strip().splitlines())
        if (done.status, lines, os.path.exists(out)) != (cli.EXIT_BAD_INPUT, 1, False):
            found.append("%s: %d lines, %s" % (name, lines, _scripts.last_line(done)))
    os.remove(rubbish)
    what = "of %d kinds of bad input, those without status 2, one line, nothing touched" % len(cases)
    return [equal(model, what, len(found), 0, "README: exit status 2", "; ".join(found))]

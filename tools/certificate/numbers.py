"""Numbers: upstream's golden values, state keys and schedules, and training steps at every level against float64, layer by layer."""
import contextlib
import multiprocessing
import os
import traceback
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from certificate._checks import Check
from common import cli

QUICK_LEVELS = ("O0", "O2")
QUICK_STEPS, STEPS = 2, 5


def run(case):
    """Yield the Checks of the stage, model by model. Each recipe is proved in a process of its own, `case.jobs` at a time."""
    tasks = [(case.device, model, number, case.quick, case.output_path) for model in case.models
             for number in range(1 if case.quick else _count(model))]
    jobs = min(case.jobs, len(tasks))
    cores = max(1, len(os.sched_getaffinity(0)) // jobs)

    def prove_in_turn(task):
        with case.slots:
            return in_a_process(cores, prove, task)
    with ThreadPoolExecutor(jobs) as threads:
        for checks in threads.map(prove_in_turn, tasks):
            yield from checks


def in_a_process(cores, function, task):
    """Return function(task), Checks, from a process of its own on so many cores. Where it is killed, that is a Check that fails. (A
    multiprocessing.Pool waits for ever for a worker that is killed.)"""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (cores, os.getpid())) as process:
        try:
            return process.submit(function, task).result()
        except BrokenProcessPool:
            return [Check(task[1], "recipe %d" % task[2], "its process was killed", "runs", "", False)]


def _begin(cores, parent):
    """Use so many of the CPU's cores, in this process and what it runs, and end with the process `parent`."""
    cli.end_with(parent)
    os.environ.setdefault("OMP_NUM_THREADS", str(cores))  # the programs look at it


def _count(model):
    from comparison import _golden
    return len(_golden.recipes(model))


def prove(task):
    """Return the Checks of one recipe: (device, model, number of the recipe, quick, output path)."""
    device, model, number, quick, out = task
    checks = []
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            for check in _checks_of(device, model, number, quick, out):
                checks.append(check)
    except (Exception, SystemExit) as error:  # a defect of any kind is a check that fails, and the other recipes go on
        lines = traceback.format_exc().strip().splitlines()
        checks.append(Check(model, "recipe %d" % number, "%s" % (error or type(error).__name__), "runs", "", False, lines[-1]))
    return checks


def _checks_of(device, model, number, quick, out):
    import torch
    from comparison import _golden, _picture, _proof
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    recipe = _golden.recipes(model)[number]
    references = _proof.References(recipe, QUICK_STEPS if quick else STEPS)
    yield from _checks(model, recipe, _proof.of_schedules(model) if number == 0 else ())
    yield from _checks(model, recipe, _proof.of_upstream(recipe, references))
    rows_of = {}
    for name, level, dtype in _proof.LEVELS if recipe.steady else ():
        if quick and name not in QUICK_LEVELS:
            continue
        if dtype == "bf16" and device.startswith("cpu"):
            yield Check(model, "%s, bf16" % recipe.name, "", "", "", None, "on a CPU O1 is bf16 already")
            continue
        findings, rows_of[name] = _proof.of_device(recipe, references, device, name, level, dtype, watch=number == 0)
        yield from _checks(model, recipe, findings)
    if any(rows_of.values()):
        _picture.write(os.path.join(out, "layers_%s.png" % model), rows_of, "%s on %s" % (model, device))


def _checks(model, recipe, findings):
    return [Check(model, "%s, %s" % (recipe.name, finding.what), *finding[1:]) for finding in findings]

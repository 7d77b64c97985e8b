"""Runs of the models' own test/*.sh for a certificate: small, in folders of their own, as many side by side as there are slots."""
import concurrent.futures
import functools
import glob
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import namedtuple

from certificate._checks import ROOT, kind
from common import checkpoint, cli, records

LIMIT_S = 1800  # a run of a minute that takes longer hangs
STARTED_S = 300  # until the first checkpoint of a training
LAYOUT = {"GENet": "cifar10"}  # of the demo data; the others': imagenet
PER_RANK = ("HRNet",)  # whose batch and learning rate are those of a rank
_HRNET = os.path.join(ROOT, "HRNet", "experiments", "cls_hrnet_w18_small_v1_sgd_lr5e-2_wd1e-4_bs32_x100.yaml")
# What makes runs small: for behaviour a small network, for long agreement the model's own, on small pictures.
SMALL = {"ResNet50": {"arch": "resnet18", "image_size": 32}, "HRNet": {"cfg": _HRNET, "num_classes": 10, "image_size": 32},
         "GENet": {"depth": 10, "width": 1}, "EfficientNet-B3": {"image_size": 32},
         "FixRes": {"num_classes": 10, "image_size": 48, "eval_freq": 1}}
OWN = {"ResNet50": {"image_size": 48}, "HRNet": {"num_classes": 10, "image_size": 32}, "GENet": {"width": 2},
       "EfficientNet-B3": {"image_size": 48}, "FixRes": {"num_classes": 10, "image_size": 48, "eval_freq": 1}}
_MEASURED = re.compile("ips|time|_wait|steps$|peak_memory|slowest|datetime|elapsed")  # differs from run to run

Done = namedtuple("Done", "status stdout stderr out")


def as_found(case, tasks):
    """Run functions without arguments side by side, `case.jobs` at most; yield the checks of each as it ends."""
    with concurrent.futures.ThreadPoolExecutor(case.jobs) as pool:
        for future in concurrent.futures.as_completed([pool.submit(task) for task in tasks]):
            yield from future.result()


@functools.lru_cache(maxsize=None)
def options(model, script):
    """Return the names of the options of a model's script."""
    text = subprocess.run(["bash", _path(model, script), "--help"], stdout=subprocess.PIPE, universal_newlines=True).stdout
    return re.findall(r"(?m)^  --(\w+) ", text)


def _path(model, script):
    return os.path.join(ROOT, model, "test", script)


def command(case, model, script, out, small=True, **words):
    """Return the command line of a small run; of `words`, those that the script knows."""
    given = dict(device=kind(case.device), data_path=case.data_path, output_path=out, workers=0, opt_level="O0")
    given.update((SMALL if small else OWN)[model])
    given.update(words)
    known = options(model, script)
    return ["bash", _path(model, script)] + ["--%s=%s" % pair for pair in given.items() if pair[0] in known and pair[1] is not None]


def environment(**extra):
    """Return the environment of a run: one thread a process, so that runs side by side do not get in each other's way."""
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    env = dict(os.environ, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", PATH=path)
    if "PYTHONPATH" in extra:
        extra["PYTHONPATH"] = os.pathsep.join(filter(None, [extra["PYTHONPATH"], env.get("PYTHONPATH")]))
    return dict(env, **extra)


def run(case, words, out, env=None):
    """Run a command line to its end when a slot is free; return the Done."""
    with case.slots:
        return finish(start(words, out, env), out)


def start(words, out, env=None):
    """Start a command line in a session of its own; what it says goes to files beside `out`. Return the Popen. It ends with the
    thread that has started it, however that ends, and what it has started ends with it."""
    os.makedirs(os.path.dirname(out), exist_ok=True)
    with open(out + ".stdout", "w") as stdout, open(out + ".stderr", "w") as stderr:
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=env or environment(),
                                start_new_session=True, cwd=ROOT, preexec_fn=functools.partial(cli.end_with, os.getpid()))


def finish(process, out):
    """Wait for the end of a started run; return the Done. What hangs is killed, and has status 124."""
    try:
        status = process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        status = 124
    texts = []
    for name in (".stdout", ".stderr"):
        with open(out + name, errors="replace") as stream:
            texts.append(stream.read())
    return Done(status if status >= 0 else 128 - status, texts[0], texts[1], out)


def wait_for_checkpoint(process, out, newer_than=0.0):
    """Wait until a run has written a checkpoint; return False where it has ended before."""
    path, end = os.path.join(out, "checkpoint.pth.tar"), time.time() + STARTED_S
    while process.poll() is None and time.time() < end:
        if os.path.exists(path) and os.path.getmtime(path) > newer_than:
            return True
        time.sleep(0.02)
    return False


def last_line(done):
    """Return in a line how a run ended."""
    lines = done.stderr.strip().splitlines() or done.stdout.strip().splitlines() or [""]
    return "status %d: %s" % (done.status, lines[-1][-300:])


def drop_weights(out):
    """Remove the checkpoints of a run of which only the records are wanted: those of all runs would be gigabytes."""
    for path in glob.glob(os.path.join(glob.escape(out), "*.pth.tar*")):
        os.remove(path)


# --- what a run has left ----------------------------------------------------------------------------------------------

def content(out):
    """Return all that the checkpoint of an output path holds, without the configuration, which names the path."""
    return {key: value for key, value in checkpoint.load(os.path.join(out, "checkpoint.pth.tar")).items() if key != "cfg"}


def logged(out, length):
    """Return [values] of a run's LOG records whose step has so many numbers: 2 a logging line, 1 an epoch, 0 the summary."""
    found = [record for record in records.read(os.path.join(out, "metrics.jsonl")) if record.get("type") == "LOG"]
    return [record["data"] for record in found if isinstance(record["step"], list) and len(record["step"]) == length]


def results(out):
    """Return the records of a run, without what differs from run to run."""
    return [{key: value for key, value in values.items() if not _MEASURED.search(key)}
            for length in (2, 1, 0) for values in logged(out, length)]


def predictions(out, *names):
    """Return lists of what a run's predictions.npz says of each validation picture: index, target, loss, ..."""
    import numpy as np
    with np.load(os.path.join(out, "predictions.npz"), allow_pickle=False) as found:
        return [found[name].tolist() for name in names]


def report(out):
    """Return a run's report.json."""
    with open(os.path.join(out, "report.json")) as stream:
        return json.load(stream)


def differences(one, other, name="", tolerance=None):
    """Return where two nests of dictionaries and lists of tensors and plain values differ, as `a.b.c`: in any bit or, with a
    `tolerance`, by more than that share of a tensor's largest value."""
    import torch
    if isinstance(one, dict) and isinstance(other, dict) and list(one) == list(other):
        return [found for key in one for found in differences(one[key], other[key], "%s.%s" % (name, key), tolerance)]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [found for key, pair in enumerate(zip(one, other)) for found in differences(*pair, "%s.%d" % (name, key), tolerance)]
    if torch.is_tensor(one) and torch.is_tensor(other) and one.shape == other.shape:
        margin = tolerance * float(one.abs().max()) if tolerance is not None and one.numel() else 0.0
        return [] if torch.equal(one, other) or margin and torch.allclose(one, other, rtol=0, atol=margin) else [name]
    return [] if type(one) is type(other) and one == other else [name]


def tool(program, *words):
    """Run a program of tools/; return "" where it ends well, else the last line that it has printed."""
    done = subprocess.run([sys.executable, os.path.join(ROOT, "tools", program)] + list(words), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, universal_newlines=True, env=environment())
    if done.returncode == 0:
        return ""
    return (done.stdout.strip().splitlines() or ["?"])[-1]


def demo_data(folder, models, train, val):
    """Have the demo data of these models in `folder`, and return it. Raises UserError where they cannot be made."""
    kinds = sorted({LAYOUT.get(model, "imagenet") for model in models})
    problem = tool("dataset.py", "demo", "--out", folder, "--what", ",".join(kinds), "--train", str(train), "--val", str(val))
    if problem:
        raise cli.UserError("the demo data cannot be made (%s); give a folder that has them with --data_path" % problem)
    return folder


def where(case, model):
    """Return the data set of a model."""
    return case.data_path if model in LAYOUT else os.path.join(case.data_path, "imagenet")

"""What the tests share: import paths, loading of entry scripts, small data sets on disk, running of test/*.sh."""
import collections
import contextlib
import glob
import importlib.util
import os
import random
import socket
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

CI = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(CI)
# A model is a directory with this script; nothing else is a list of them. (ResNet50, the first to be ported, comes first.)
MODELS = tuple(sorted((path.split(os.sep)[-3] for path in glob.glob(os.path.join(glob.escape(ROOT), "*/test/train_full_1p.sh"))),
                      reverse=True))
# Test files that take longest (the table at the end of a run): they come first, the others in the order of their names.
LONGEST = ("test_all_scripts", "test_certificate", "test_npu_models", "test_campaign", "test_certificate_numbers", "test_weights",
           "test_reliability_watchdog", "test_npu_sim", "test_deploy", "test_tools", "test_slurm", "test_efficientnet_scripts",
           "test_resnet50_golden", "test_genet_scripts", "test_step", "test_fixres_scripts", "test_resnet50_scripts", "test_make_golden")

sys.path[:0] = [ROOT, CI, os.path.join(CI, "eager")] + [os.path.join(ROOT, model) for model in MODELS]

from common import checkpoint, cli, outputs  # noqa: E402
from narrow import narrowed  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run what takes minutes and proves the same on bigger networks")


def pytest_collection_modifyitems(config, items):
    """Put the longest files first; leave out what is slow, unless --slow is given."""
    def rank(item):
        name = os.path.splitext(os.path.basename(str(item.fspath)))[0]
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)
    items.sort(key=rank)
    for item in items if not config.getoption("--slow") else ():
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs --slow"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Say what `--dist loadfile` keeps in one process, in the order above: the tests of a file, of test_all_scripts.py those of a
    model. (pytest-xdist's own groups do nothing with pytest 9.2: https://github.com/pytest-dev/pytest-xdist/issues/1386.)"""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group_of(nodeid)
    config.option.loadscopereorder = False
    return Scheduling(config, log)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter):
    """Print how many minutes each group of tests has taken, in whichever process: the ten longest, and the rest."""
    seconds = collections.Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            seconds[group_of(getattr(report, "nodeid", "") or "")] += getattr(report, "duration", 0)
    longest, total = seconds.most_common(10), sum(seconds.values())
    if len(seconds) > len(longest):
        rows = longest + [("the others", total - sum(time for _, time in longest)), ("all", total)]
        terminalreporter.write_line("\n".join(["minutes  tests"] + ["%7.1f  %s" % (time / 60, name) for name, time in rows]))


def group_of(nodeid):
    """Return which tests share a process with the test `ci/test_x.py::test_y[parameters]`."""
    path, _, test = nodeid.partition("::")
    model = next((model for model in MODELS if test.partition("[")[2].startswith(model)), "")
    return path + (":" + model if path.endswith("test_all_scripts.py") else "")


@pytest.fixture(autouse=True)
def no_run_before():
    """Let what a training of an earlier test said of its checkpoints not follow the messages of this one, nor this process hold that
    training's folder. (With monkeypatch, that would be undone after the folder of each test has been removed.)"""
    cli.TrainingStopped.kept = ""
    outputs.release()


@pytest.fixture(scope="module")
def narrow_networks():
    """Networks with an eighth of the channels, in this process and in its children."""
    with mock.patch.dict(os.environ, NARROW="1"), narrowed(torch):
        yield


AUTOLOAD = """import eager, os, torch
if os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD") != "0":
    torch._import_device_backends()
"""


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """A PATH on which programs that `python3` starts are forks of a process that has the libraries: two seconds less for each
    (ci/campaign/forks.py, which needs Python 3.9)."""
    if not hasattr(socket, "send_fds"):
        yield environment()["PATH"]
        return
    from ci.campaign.forks import Forks
    server = Forks(str(tmp_path_factory.mktemp("forks")), environment())
    yield server.path + os.pathsep + environment()["PATH"]
    server.close()


@pytest.fixture(scope="session")
def launch_fork(forks, tmp_path_factory):
    """npu_sim.launch in such a fork, which loads what extends PyTorch at its start."""
    import npu_sim
    folder, python = tmp_path_factory.mktemp("autoload"), os.path.join(forks.split(os.pathsep)[0], "python3")
    (folder / "sitecustomize.py").write_text(AUTOLOAD)
    path = os.pathsep.join([str(folder), npu_sim.EAGER])

    def launch(*words, **variables):
        if words[0] == "-c":
            (folder / "code.py").write_text(words[1])
            words = (folder / "code.py",) + words[2:]
        return npu_sim.launch(*words, python=python, **dict({"PYTHONPATH": path}, **variables))
    return launch


def load_script(path):
    """Import a script of the repository (`GENet/train.py`) as a module with a name of its own, and return it."""
    name = "script_" + path.replace("/", "_").replace("-", "_").replace(".", "_")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, os.path.join(ROOT, path))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def write_images(folder, classes=4, per_class=4, size=(48, 40), seed=0):
    """Write `classes` folders of noisy JPEG files, each class with a colour of its own."""
    rng = np.random.RandomState(seed)
    for number in range(classes):
        below = os.path.join(str(folder), "n%08d" % number)
        os.makedirs(below)
        colour = 255.0 * np.array([number % 2, number // 2 % 2, number / max(classes - 1, 1)])
        for index in range(per_class):
            pixels = np.clip(0.6 * colour + rng.randint(0, 100, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(os.path.join(below, "n%08d_%d.JPEG" % (number, index)), quality=90)


@pytest.fixture(scope="session")
def tiny_imagenet(tmp_path_factory):
    """ImageNet's layout with 4 classes: 64 training and 20 validation images, in a folder with a space and a $ in its name."""
    root = tmp_path_factory.mktemp("tiny data $HOME")
    write_images(root / "train", per_class=16)
    write_images(root / "val", per_class=5, seed=1)
    return root


def script_command(script, *options):
    """Return the command line of a model's script, `ResNet50/test/train_full_1p.sh`."""
    return ["bash", os.path.join(ROOT, script)] + [str(option) for option in options]


def environment(**extra):
    """Return the environment for a child: one thread per process, this interpreter first on the path, and no compiler that is not
    used (a sitecustomize.py of the test's own has to `import eager` for that)."""
    env = dict(os.environ, OMP_NUM_THREADS="1", PATH=os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"])
    env.update(extra, PYTHONPATH=os.pathsep.join(filter(None, [extra.get("PYTHONPATH"), os.path.join(CI, "eager")])))
    return env


def run_script(script, *options, timeout=600, cwd=None, env=None):
    """Run a model's script and return the finished process with its stdout and stderr as text."""
    return subprocess.run(script_command(script, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, timeout=timeout, cwd=cwd, env=env or environment())


def start_script(script, *options, env=None):
    """Start a model's script with its output discarded, and return the Popen."""
    return subprocess.Popen(script_command(script, *options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                            env=env or environment())


def running_in(out):
    """Return the processes that still work for the output path `out`, as lines of `ps`."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,args"], stdout=subprocess.PIPE, universal_newlines=True).stdout
    return [line for line in listed.splitlines() if str(out) in line]


def wait_until(condition, timeout=180, interval=0.02):
    """Wait until `condition()` is true; fail after `timeout` seconds."""
    end = time.time() + timeout
    while not condition():
        assert time.time() < end, "waited %d s in vain" % timeout
        time.sleep(interval)


def block(done):
    """Return the result block of a finished script as a dictionary; the script must have succeeded."""
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = done.stdout.splitlines()
    start = lines.index("------------------ Final result ------------------")
    return dict(line.split(" : ") for line in lines[start + 1:])


def weights_of(out):
    """Return the network's own weights in the checkpoint of the output path `out`."""
    content = checkpoint.load(os.path.join(str(out), "checkpoint.pth.tar"))
    return checkpoint.weights(content, "the checkpoint", use_ema="false")


def differences(one, other, name="", tolerance=None):
    """Return where two nests of dictionaries and lists of tensors and plain values differ, as `a.b.c`; [] where they are equal,
    bit for bit or, with a `tolerance`, to that share of a tensor's largest value."""
    if isinstance(one, dict) and isinstance(other, dict) and list(one) == list(other):
        return [found for key in one for found in differences(one[key], other[key], "%s.%s" % (name, key), tolerance)]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        pairs = enumerate(zip(one, other))
        return [found for key, pair in pairs for found in differences(*pair, "%s.%d" % (name, key), tolerance)]
    if torch.is_tensor(one) and torch.is_tensor(other):
        close = one.shape == other.shape and (torch.equal(one, other) or tolerance is not None and torch.allclose(
            one, other, rtol=0, atol=tolerance * float(one.abs().max())))
        return [] if close else [name]
    return [] if type(one) is type(other) and one == other else ["%s (%r, %r)" % (name, one, other)]


def free_port():
    """Return a port that is free, and out of the range from which a connection of another test would be given one before it is used."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", random.SystemRandom().randrange(10000, 30000)))
            return probe.getsockname()[1]


def assert_bad_input(done, *words):
    """The process ended with status 2 and exactly one line on stderr, which holds all `words`."""
    assert done.returncode == 2, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert str(word) in done.stderr, done.stderr

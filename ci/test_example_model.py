"""The example of a sixth model, ci/example_model/: beside the five in a copy of the repository, what tests them tests it, as it is."""
import glob
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

import fill
import npu_sim
from common import checkpoint, device, records
from conftest import CI, MODELS, ROOT, block, differences, environment, run_script

NAME = "MobileNetV2"
EXAMPLE = os.path.join(CI, "example_model", NAME)
LINES = 250  # of Python and shell: an afternoon's
SMALL = ["--device=cpu", "--num_classes=4", "--image_size=32", "--batch_size=8", "--workers=0", "--opt_level=O0"]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A copy of the repository, with what has not been committed yet, in which the example is one of the models."""
    assert NAME not in MODELS
    root = tmp_path_factory.mktemp("a sixth $HOME")
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True,
                            stdout=subprocess.PIPE, universal_newlines=True).stdout.split("\0")
    for path in listed:
        if os.path.isfile(os.path.join(ROOT, path)):
            os.makedirs(os.path.dirname(str(root / path)), exist_ok=True)
            shutil.copy2(os.path.join(ROOT, path), str(root / path))
    shutil.copytree(str(root / "ci" / "example_model" / NAME), str(root / NAME))
    return root


def in_scratch(scratch, *words):
    """Run a program in the copy; return what it has printed. It must have succeeded."""
    done = subprocess.run(words, cwd=str(scratch), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          universal_newlines=True)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


# --- what the shared tests say of it ----------------------------------------------------------------------------------

QUICK = ("help or full_training or evaluation_agrees or performance_1p or made_up_images or two_machines"
         " or interrupted_runs_resume_exactly and %s-1" % NAME)
needs_simulator = pytest.mark.skipif(npu_sim.skip_reason() is not None, reason=str(npu_sim.skip_reason()))


@pytest.mark.parametrize("file, tests, least", [
    ("test_all_scripts", QUICK, 9),
    pytest.param("test_all_scripts", "not (%s)" % QUICK, 15, marks=pytest.mark.slow),
    pytest.param("test_npu_models", "performance_script", 1, marks=needs_simulator),
    pytest.param("test_npu_models", "not performance_script", 2, marks=[needs_simulator, pytest.mark.slow]),
    pytest.param("test_versions", "one_device or test_requirements", 2, marks=pytest.mark.slow)],
    ids=["scripts", "more of scripts", "npu", "more of npu", "packages"])
def test_the_shared_tests(scratch, tmp_path, file, tests, least):
    """Scripts, records, kill and resume, O0 to O2, simulated NPUs: a directory with the right files is a model; nothing is said of it
    twice. Which tests take longest decides what is --slow."""
    said = in_scratch(scratch, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp=%s" % (tmp_path / "t"),
                      "ci/%s.py" % file, "-k", "%s and (%s)" % (NAME, tests))
    assert int(re.search(r"(\d+) passed", said).group(1)) >= least, said


def test_it_is_small_and_in_order(scratch):
    """An example is read: so many lines at most, within the limits of the house, clean for the linters."""
    paths = glob.glob(os.path.join(EXAMPLE, "**", "*.py"), recursive=True) + glob.glob(os.path.join(EXAMPLE, "test", "*.sh"))
    assert 0 < sum(len(open(path, encoding="utf-8").readlines()) for path in paths) <= LINES
    assert NAME in in_scratch(scratch, sys.executable, "ci/measure_style.py")
    scripts = sorted(glob.glob(os.path.join(glob.escape(str(scratch)), NAME, "test", "*.sh")))
    if shutil.which("shellcheck", path=environment()["PATH"]):
        in_scratch(scratch, "shellcheck", "--external-sources", "--source-path=SCRIPTDIR", *scripts)


# --- what is particular to it -----------------------------------------------------------------------------------------

def test_it_is_torchvisions_network(monkeypatch):
    """Keys, shapes and order of the state dict, number of parameters, logits."""
    monkeypatch.syspath_prepend(EXAMPLE)
    import mobilenetv2
    ours, theirs = mobilenetv2.MobileNetV2(), device.import_torchvision().models.mobilenet_v2()
    described = [[(key, value.shape, value.dtype) for key, value in network.state_dict().items()] for network in (ours, theirs)]
    assert described[0] == described[1] and sum(parameter.numel() for parameter in ours.parameters()) == 3504872
    state, images = fill.fill_state_dict(theirs.state_dict()), fill.make_input(2, 96, 96)
    for network in (ours, theirs):
        network.load_state_dict(state)
    with torch.no_grad():
        logits, wanted = ours.eval()(images), theirs.eval()(images)
    assert wanted.std() > 1e-2 and torch.allclose(logits, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_the_recipe(scratch, tiny_imagenet, tmp_path):
    """torchvision's rates, momentum, weight decay and average of the weights; and a run that goes on from the middle of an epoch ends
    with the same average, which an evaluation can take."""
    def run(script, out, *more):
        options = ["--data_path=%s" % tiny_imagenet, "--output_path=%s" % out, "--max_steps=2"] + SMALL
        return block(run_script(str(scratch / NAME / "test" / script), *(options + list(more))))

    training = ["--train_epochs=2", "--seed=3", "--model_ema"]
    run("train_full_1p.sh", tmp_path / "o", "--checkpoint_steps=1", "--keep_checkpoints=9", *training)
    paths, kept = glob.glob(glob.escape(str(tmp_path / "o" / "checkpoint.pth.tar")) + "*"), {}
    for path, content in zip(paths, map(checkpoint.load, paths)):
        kept[content["epoch"], content["step"]] = path, content
    first, third, (last, final) = kept[0, 1][1], kept[1, 1][1], kept[2, 0]
    rates = [record["data"]["lr"] for record in records.read(str(tmp_path / "o" / "metrics.jsonl"))
             if record["type"] == "LOG" and len(record["step"]) == 1]
    assert rates == pytest.approx([0.045 * 8 / 256, 0.98 * 0.045 * 8 / 256])
    assert [(group["momentum"], group["weight_decay"]) for group in final["optimizer"]["param_groups"]] == [(0.9, 4e-5)]
    share = (1 - 0.99998) * 8 * 32 / 2  # averaged after the first update of each epoch of two
    for key, value in final["model_ema"].items():
        old, new = first["model"][key].double(), third["model"][key].double()
        wanted = old + share * (new - old) if value.is_floating_point() else new
        assert torch.allclose(value.double(), wanted, rtol=1e-6, atol=1e-7) and not torch.equal(old, new), key

    run("train_full_1p.sh", tmp_path / "again", "--resume=%s" % kept[1, 1][0], *training)
    again = checkpoint.load(str(tmp_path / "again" / "checkpoint.pth.tar"))
    assert differences(final["model_ema"], again["model_ema"]) == []
    evaluated = run("train_eval_1p.sh", tmp_path / "e", "--pth_path=%s" % last, "--use_ema=true")
    assert float(evaluated["Final Train Accuracy"]) == pytest.approx(100 - final["ema_err"])

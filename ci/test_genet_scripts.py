"""What is particular to GENet's scripts: its variants, its data set, upstream's log lines, its schedule. (What the scripts of every
model must do: test_all_scripts.py.)"""
import os
import pickle
import re
import subprocess
import sys

import pytest

from common import checkpoint, records
from conftest import ROOT, assert_bad_input, block, environment, run_script
from test_genet_data import Attack, write_cifar

FULL_1P, FULL_8P, EVAL_1P = ("GENet/test/train_%s.sh" % name for name in ("full_1p", "full_8p", "eval_1p"))
TINY = ["--device=cpu", "--depth=10", "--width=1", "--opt_level=O0", "--workers=1", "--batch_size=32"]


@pytest.fixture(scope="module")
def tiny_cifar(tmp_path_factory):
    """CIFAR-10's layout with 5 x 27 training and 27 test images of noise, below a folder with a space and a $ in its name."""
    root = tmp_path_factory.mktemp("tiny cifar $HOME")
    write_cifar(root / "cifar-10-batches-py", per_batch=27)
    return root


@pytest.fixture(scope="module")
def trained(tiny_cifar, tmp_path_factory):
    """The output path of a short full run on one device, what it printed, and its result block."""
    out = tmp_path_factory.mktemp("trained") / "o"
    done = run_script(FULL_1P, "--data_path=%s" % tiny_cifar, *TINY, "--train_epochs=3", "--epoch_step=[1,2]", "--mlp=False",
                      "--output_path=%s" % out)
    return out, done.stdout, block(done)


def network_of(out):
    return checkpoint.load(str(out / "checkpoint.pth.tar"))["network"]


def test_log_lines_are_the_ports(trained):
    """The lines that people's tools parse: training steps (the last, smaller batch is one of the 5), epoch end (FPS is the 11th
    word), test steps, test end."""
    lines = trained[1].splitlines()
    number, mean = r"\d+\.\d{3}", r"\(\d+\.\d{3}\)"
    step = r"Epoch: \[0\]\[0/5\]\tTime N M\tData N M\tLoss \d+\.\d{4} \(\d+\.\d{4}\)\tErr@1 N M\tErr@5 N M"
    test = r"Test: \[0/1\]\tTime N M\tLoss \d+\.\d{4} \(\d+\.\d{4}\)\tErr@1 N M\tErr@5 N M"
    end = r"\[cpu id: 0 \] batch_size: 32 Time: N \* FPS@all N"
    error = r"\[cpu id: 0 \] \[AVG-ERR\] \* Err@1 N Err@5 N"
    for pattern in (step, test, end, error):
        assert any(re.match(pattern.replace("N", number).replace("M", mean) + "$", line) for line in lines), pattern
    fps = [line for line in lines if "FPS" in line][-1].split(" ")
    assert float(fps[10]) > 0 and len(fps) == 11
    error = float([line for line in lines if "* Err@1" in line][-1].split("Err@1 ")[1].split(" ")[0])
    assert 100 - error == pytest.approx(float(trained[2]["Final Train Accuracy"]), abs=1e-3)


def test_records_hold_the_recipe(trained):
    """The learning rate of each epoch is that of --epoch_step, and 49 is the seed (defect 8)."""
    read = records.read(str(trained[0] / "metrics.jsonl"))
    rates = [record["data"]["lr"] for record in read if isinstance(record.get("step"), list) and len(record["step"]) == 1]
    assert rates == pytest.approx([0.1, 0.02, 0.004])
    assert [record["data"]["seed"] for record in read if record.get("step") == "PARAMETER"] == [49]


@pytest.mark.parametrize("options", [["--extent=2"], ["--extra_params=true", "--extent=4"], ["--extra_params=True", "--mlp=True"]],
                         ids=lambda options: " ".join(options))
def test_every_variant_is_reached_from_the_scripts(trained, tiny_cifar, tmp_path, options):
    """Defect: --extent did not reach the network, and 'False' counted as true. Recipe's O2 and performance script as well."""
    done = run_script("GENet/test/train_performance_1p.sh", "--data_path=%s" % tiny_cifar, *TINY, "--opt_level=O2", "--train_epochs=1",
                      "--max_steps=2", "--output_path=o", *options, cwd=str(tmp_path))
    assert done.returncode == 0, done.stderr
    wanted = dict(depth=10, width=1, extent=0, extra_params=False, mlp=False)
    assert network_of(trained[0]) == wanted
    wanted.update((name, int(value) if name == "extent" else True) for name, value in (option[2:].split("=") for option in options))
    assert network_of(tmp_path / "o") == wanted


def test_training_learns(tmp_path):
    """A small GENet reaches over 85 per cent on the demo digits in two epochs on a CPU, through the full training script."""
    demo = tmp_path / "demo"
    subprocess.run([sys.executable, os.path.join(ROOT, "tools", "dataset.py"), "demo", "--what", "cifar10", "--out", str(demo)], check=True,
                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    done = run_script(FULL_1P, "--data_path=%s" % demo, *TINY, "--train_epochs=2", "--epoch_step=[1]", "--output_path=%s" % (tmp_path / "o"))
    assert float(block(done)["Final Train Accuracy"]) > 85.0


@pytest.mark.parametrize("options, words", [
    (["--skip_bad_images"], ["unknown option --skip_bad_images"]),
    (["--extent=3"], ["--extent=3", "0, 2, 4, 8"]),
    (["--mlp=maybe"], ["--mlp=maybe", "true"]),
    (["--data_path=EMPTY"], ["no cifar10 data set", "cifar-10-batches-py"]),
    (["--data_path=DATA", "--dataset=cifar100"], ["no cifar100 data set", "cifar-100-python"]),
    (["--data_path=DATA", "--depth=17"], ["depth must be 6 * n + 4"]),
    (["--data_path=DATA", "--image_size=64"], ["32 pixels"]),
    (["--data_path=DATA", "--epoch_step=often"], ["JSON list of epochs"])])
def test_bad_input_touches_nothing(tiny_cifar, tmp_path, options, words):
    """One line that says what is wrong, status 2, and not even an output folder."""
    (tmp_path / "empty").mkdir()
    options = [option.replace("DATA", str(tiny_cifar)).replace("EMPTY", str(tmp_path / "empty")) for option in options]
    assert_bad_input(run_script(FULL_1P, *TINY, "--output_path=%s" % (tmp_path / "a" / "o"), *options), *words)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("script", [FULL_1P, FULL_8P])
@pytest.mark.parametrize("spoil, words", [
    (lambda path, ran: path.unlink(), "no file data_batch_3"),
    (lambda path, ran: path.write_bytes(path.read_bytes()[:50000]), "data_batch_3 is truncated"),
    (lambda path, ran: path.write_bytes(pickle.dumps(Attack("touch '%s'" % ran), 2)), "system, which was not run")],
    ids=["missing", "truncated", "malicious"])
def test_bad_batch_file(tmp_path, script, spoil, words):
    """A missing, a truncated and a malicious batch file: named in one line, on one rank or several; no code in it is run."""
    write_cifar(tmp_path / "cifar-10-batches-py", per_batch=27)
    spoil(tmp_path / "cifar-10-batches-py" / "data_batch_3", tmp_path / "ran")
    ranks = ["--device_list=0,1"] if script == FULL_8P else []
    assert_bad_input(run_script(script, "--data_path=%s" % tmp_path, *TINY, *ranks, "--output_path=%s" % (tmp_path / "o")), words)
    assert not (tmp_path / "o").exists() and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("option, words", [("--width=2", "was trained with --width 1"), ("--extent=4", "was trained with --extent 0")])
def test_weights_of_another_variant(trained, tiny_cifar, tmp_path, option, words):
    """Another width, another extent (the same keys and shapes): named, status 2."""
    done = run_script(EVAL_1P, "--data_path=%s" % tiny_cifar, *TINY, "--pth_path=%s" % (trained[0] / "checkpoint.pth.tar"), option,
                      "--output_path=%s" % (tmp_path / "o"))
    assert_bad_input(done, "checkpoint.pth.tar", words)
    assert not (tmp_path / "o").exists()

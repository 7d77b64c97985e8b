"""GENet through its real scripts: smoke runs, bad input, exact resume, and training that learns."""
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch

from common import checkpoint, records
from conftest import ROOT, assert_bad_input, environment, run_script, running_in, start_script, wait_until
from test_genet_data import Attack, write_cifar

FULL_1P, FULL_8P = "GENet/test/train_full_1p.sh", "GENet/test/train_full_8p.sh"
TINY = ["--device=cpu", "--depth=10", "--width=1", "--opt_level=O0", "--workers=1"]
SCRIPTS = sorted(name for name in os.listdir(os.path.join(ROOT, "GENet", "test")) if name.startswith("train_") and name.endswith(".sh"))


def block(done):
    """Return the result block of a finished script as a dictionary; the script must have succeeded."""
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = done.stdout.splitlines()
    start = lines.index("------------------ Final result ------------------")
    return dict(line.split(" : ") for line in lines[start + 1:])


@pytest.fixture(scope="module")
def tiny_cifar(tmp_path_factory):
    """CIFAR-10's layout with 5 x 27 training and 27 test images of noise, below a folder with a space and a $ in its name."""
    root = tmp_path_factory.mktemp("tiny cifar $HOME")
    write_cifar(root / "cifar-10-batches-py", per_batch=27)
    return root


@pytest.fixture(scope="module")
def trained(tiny_cifar, tmp_path_factory):
    """The output path of a short full run on one device, its result block and what it printed."""
    out = tmp_path_factory.mktemp("trained $1") / "out put"
    done = run_script(FULL_1P, "--data_path=%s" % tiny_cifar, *TINY, "--batch_size=32", "--train_epochs=2", "--output_path=%s" % out)
    return out, block(done), done.stdout


# --- smoke runs of the scripts ----------------------------------------------------------------------------------------

def test_full_1p_leaves_what_it_should(trained):
    """Result block, files, records and their agreement, in a path with blanks and a `$` (defects 1, 11)."""
    out, result, _ = trained
    assert sorted(os.listdir(str(out))) == ["GENET_bs32_1p_acc.log", "checkpoint.pth.tar", "metrics.jsonl", "model_best.pth.tar",
                                            "report.json", "train_0.log"]
    assert list(result) == ["Final Performance images/sec", "Final Train Accuracy", "Best Train Accuracy", "E2E Training Duration sec"]
    case = dict(line.split(" = ") for line in (out / "GENET_bs32_1p_acc.log").read_text().splitlines())
    assert list(case) == ["Network", "RankSize", "BatchSize", "DeviceType", "CaseName", "ActualFPS", "TrainingTime", "TrainAccuracy",
                          "ActualLoss", "E2ETrainingTime"]
    last = records.read(str(out / "metrics.jsonl"))[-1]
    assert last["step"] == [] and case["TrainAccuracy"] == "%.3f" % last["data"]["val.top1"] == result["Final Train Accuracy"]
    assert case["ActualLoss"] == "%.5f" % last["data"]["train.loss"]
    state = checkpoint.load(str(out / "checkpoint.pth.tar"))
    assert (state["epoch"], state["arch"]) == (2, "GENET") and not any(key.startswith("module.") for key in state["state_dict"])
    assert json.loads((out / "report.json").read_text())["parameters"]["seed"] == 49


def test_log_lines_are_the_ports(trained):
    """The lines that people's tools parse: training steps, epoch end (FPS is the 11th word), test steps, test end."""
    lines = trained[2].splitlines()
    number, mean = r"\d+\.\d{3}", r"\(\d+\.\d{3}\)"
    step = r"Epoch: \[0\]\[0/5\]\tTime N M\tData N M\tLoss \d+\.\d{4} \(\d+\.\d{4}\)\tErr@1 N M\tErr@5 N M"
    test = r"Test: \[0/1\]\tTime N M\tLoss \d+\.\d{4} \(\d+\.\d{4}\)\tErr@1 N M\tErr@5 N M"
    end = r"\[cpu id: 0 \] batch_size: 32 Time: N \* FPS@all N"
    error = r"\[cpu id: 0 \] \[AVG-ERR\] \* Err@1 N Err@5 N"
    for pattern in (step, test, end, error):
        assert any(re.match(pattern.replace("N", number).replace("M", mean) + "$", line) for line in lines), pattern
    fps = [line for line in lines if "FPS" in line][-1].split(" ")
    assert float(fps[10]) > 0 and len(fps) == 11
    accuracy = 100 - float([line for line in lines if "* Err@1" in line][-1].split("Err@1 ")[1].split(" ")[0])
    assert accuracy == pytest.approx(float(trained[1]["Final Train Accuracy"]), abs=1e-3)


@pytest.mark.parametrize("options", [["--extent=2"], ["--extra_params=true", "--extent=4"], ["--extra_params=True", "--mlp=True"],
                                     ["--mlp=true", "--extent=8", "--extra_params=False"]], ids=lambda options: " ".join(options))
def test_every_variant_is_reached_from_the_scripts(tiny_cifar, tmp_path, options):
    """Defect: --extent did not reach the network, and 'False' counted as true. Recipe's O2 and performance script as well."""
    out = tmp_path / "o"
    done = run_script("GENet/test/train_performance_1p.sh", "--data_path=%s" % tiny_cifar, "--device=cpu", "--depth=10", "--width=1",
                      "--batch_size=32", "--train_epochs=1", "--max_steps=3", "--output_path=o", *options, cwd=str(tmp_path))
    assert float(block(done)["Final Performance images/sec"]) > 0
    network = checkpoint.load(str(out / "checkpoint.pth.tar"))["network"]
    wanted = dict(depth=10, width=1, extent=0, extra_params=False, mlp=False)
    wanted.update((name, int(value) if name == "extent" else value.lower() == "true")
                  for name, value in (option[2:].split("=") for option in options))
    assert network == wanted
    assert (out / "GENET_bs32_1p_perf.log").exists()


def test_full_8p_and_evaluation_agree(tiny_cifar, tmp_path):
    """Eight ranks train; their checkpoint, evaluated on 1 and on 8 ranks, gives one figure: each image counts once (defects 2, 3,
    15, 17)."""
    out = tmp_path / "o"
    done = run_script(FULL_8P, "--data_path=%s" % tiny_cifar, *TINY, "--batch_size=64", "--train_epochs=1", "--output_path=%s" % out)
    trained = block(done)["Final Train Accuracy"]
    case = (out / "GENET_bs64_8p_acc.log").read_text()
    assert "RankSize = 8" in case and "BatchSize = 64" in case
    for script, ranks in (("train_eval_1p.sh", 1), ("train_eval_8p.sh", 8)):
        evaluated = tmp_path / script
        done = run_script("GENet/test/" + script, "--data_path=%s" % tiny_cifar, *TINY, "--batch_size=16",
                          "--pth_path=%s" % (out / "model_best.pth.tar"), "--output_path=%s" % evaluated)
        assert block(done)["Final Train Accuracy"] == trained
        case = dict(line.split(" = ") for line in (evaluated / ("GENET_bs16_%dp_eval.log" % ranks)).read_text().splitlines())
        assert float(case["ActualLoss"]) > 0  # defect: it came out in parentheses


def test_performance_8p(tiny_cifar, tmp_path):
    """The 8p performance script at the recipe's O2, on two of its ranks."""
    done = run_script("GENet/test/train_performance_8p.sh", "--data_path=%s" % tiny_cifar, "--device=cpu", "--depth=10", "--width=1",
                      "--device_list=0,1", "--batch_size=32", "--output_path=%s" % (tmp_path / "o"))
    assert float(block(done)["Final Performance images/sec"]) > 0
    assert "RankSize = 2" in (tmp_path / "o" / "GENET_bs32_2p_perf.log").read_text()


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script):
    """--help answers with the options, their defaults and one example, and runs nothing."""
    done = run_script("GENet/test/" + script, "--help")
    assert done.returncode == 0 and "Example:\n  bash test/" + script in done.stdout
    assert all("--" + option in done.stdout for option in ("data_path", "extent", "mlp", "device_list"))
    assert "skip_bad_images" not in done.stdout  # it would do nothing


def test_help_of_the_entry_script():
    """Every flag that the seed README lists is in --help (which needs no data, no device and no apex)."""
    done = subprocess.run([sys.executable, os.path.join(ROOT, "GENet", "train.py"), "--help"], stdout=subprocess.PIPE,
                          universal_newlines=True)
    assert done.returncode == 0
    for flag in ("--workers", "--device", "--multiprocessing-distributed", "--world-size", "--rank", "--dist-url", "--batch-size",
                 "--DataPath", "--amp", "--loss-scale", "--opt-level"):
        assert flag in done.stdout


# --- training learns --------------------------------------------------------------------------------------------------

def test_training_learns(tmp_path):
    """A small GENet reaches over 95 per cent on the demo digits in a few epochs on a CPU, through the full training script."""
    demo = tmp_path / "demo"
    subprocess.run([sys.executable, os.path.join(ROOT, "tools", "make_demo_data.py"), "--what", "cifar10", "--out", str(demo)], check=True,
                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    done = run_script(FULL_1P, "--data_path=%s" % demo, *TINY, "--batch_size=32", "--train_epochs=4", "--epoch_step=[2,3]",
                      "--output_path=%s" % (tmp_path / "o"))
    assert float(block(done)["Final Train Accuracy"]) > 95.0


# --- bad input --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options, words", [
    (["--no_such_option=1"], ["unknown option --no_such_option"]),
    (["--skip_bad_images"], ["unknown option --skip_bad_images"]),
    (["--batch_size"], ["--batch_size has no value"]),
    (["--batch_size=many"], ["--batch_size=many", "integer"]),
    (["--extent=3"], ["--extent=3", "0, 2, 4, 8"]),
    (["--mlp=maybe"], ["--mlp=maybe", "true"]),
    ([], ["--data_path is missing"]),
    (["--data_path=/no/such $HOME/folder"], ["/no/such $HOME/folder", "cifar-10-batches-py"]),
    (["--data_path=EMPTY"], ["no cifar10 data set", "cifar-10-batches-py"]),
    (["--data_path=DATA", "--dataset=cifar100"], ["no cifar100 data set", "cifar-100-python"]),
    (["--data_path=DATA", "--device=npu"], ["no such device"]),
    (["--data_path=DATA", "--pth_path=/no/weights"], ["/no/weights"]),
    (["--data_path=DATA", "--depth=17"], ["depth must be 6 * n + 4"]),
    (["--data_path=DATA", "--image_size=64"], ["32 pixels"]),
    (["--data_path=DATA", "--epoch_step=often"], ["JSON list of epochs"]),
])
def test_bad_input_touches_nothing(tiny_cifar, tmp_path, options, words):
    """One line that says what is wrong, status 2, and not even an output folder."""
    (tmp_path / "empty").mkdir()
    options = [option.replace("DATA", str(tiny_cifar)).replace("EMPTY", str(tmp_path / "empty")) for option in options]
    done = run_script(FULL_1P, *TINY, "--output_path=%s" % (tmp_path / "a" / "o"), *options)
    assert_bad_input(done, *words)
    assert not (tmp_path / "a").exists()


def spoil_missing(folder, ran):
    (folder / "data_batch_3").unlink()


def spoil_truncated(folder, ran):
    path = folder / "data_batch_3"
    path.write_bytes(path.read_bytes()[:50000])


def spoil_attack(folder, ran):
    import pickle
    (folder / "data_batch_3").write_bytes(pickle.dumps(Attack("touch '%s'" % ran), 2))


@pytest.mark.parametrize("script", [FULL_1P, FULL_8P])
@pytest.mark.parametrize("spoil, words", [(spoil_missing, ["no file data_batch_3"]), (spoil_truncated, ["data_batch_3 is truncated"]),
                                          (spoil_attack, ["system, which was not run"])])
def test_bad_batch_file(tmp_path, script, spoil, words):
    """A missing, a truncated and a malicious batch file: named in one line, on one rank or several; no code in it is run."""
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder, per_batch=27)
    spoil(folder, tmp_path / "ran")
    done = run_script(script, "--data_path=%s" % tmp_path, *TINY, "--device_list=0,1", "--batch_size=8",
                      "--output_path=%s" % (tmp_path / "o"))
    assert_bad_input(done, *words)
    assert not (tmp_path / "o").exists() and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("spoil, options, words", [
    (lambda path: open(path, "rb+").truncate(1000), [], ["truncated"]),
    (lambda path: None, ["--width=2"], ["was trained with --width 1"]),
    (lambda path: None, ["--extent=4"], ["was trained with --extent 0"]),
    (lambda path: torch.save({"state_dict": {"fc.weight": torch.ones(2, 2)}}, path), [], ["not a checkpoint of this network"]),
    (lambda path: torch.save({"epoch": 1}, path), [], ["no model weights"]),
], ids=["truncated", "width", "extent", "architecture", "no weights"])
def test_bad_weights(trained, tiny_cifar, tmp_path, spoil, options, words):
    """Truncated, another width, another extent (the same keys and shapes), another architecture: named, status 2."""
    path = tmp_path / "w.pth"
    path.write_bytes((trained[0] / "checkpoint.pth.tar").read_bytes())
    spoil(str(path))
    done = run_script("GENet/test/train_eval_1p.sh", "--data_path=%s" % tiny_cifar, *TINY, "--pth_path=%s" % path,
                      "--output_path=%s" % (tmp_path / "o"), *options)
    assert_bad_input(done, "w.pth", *words)
    assert not (tmp_path / "o").exists()


# --- exact resume -----------------------------------------------------------------------------------------------------

RUN = TINY + ["--batch_size=16", "--train_epochs=3", "--epoch_step=[1,2]", "--checkpoint_steps=1"]
RUN_OF_TWO = RUN + ["--device_list=0,1"]
STEPS = {FULL_1P: 9, FULL_8P: 8}  # of an epoch of 135 images


def weights_of(out):
    return checkpoint.load(str(out / "checkpoint.pth.tar"))["state_dict"]


def progress_of(out, script):
    """Return how many updates the newest checkpoint has seen, -1 without one."""
    path = out / "checkpoint.pth.tar"
    if not path.exists():
        return -1
    state = checkpoint.load(str(path))
    return state["epoch"] * STEPS[script] + state["step"]


@pytest.mark.parametrize("script, options", [(FULL_1P, RUN), (FULL_8P, RUN_OF_TWO)], ids=["1 rank", "2 ranks"])
def test_interrupted_runs_resume_exactly(tiny_cifar, tmp_path, script, options):
    """SIGKILL in the first epoch, SIGTERM in the second, --resume after each: bit for bit the weights of an undisturbed run, and
    the learning rate of its epoch (defect 8)."""
    whole, out = tmp_path / "whole", tmp_path / "o"
    block(run_script(script, "--data_path=%s" % tiny_cifar, *options, "--output_path=%s" % whole))
    options = ["--data_path=%s" % tiny_cifar, "--output_path=%s" % out] + options
    for moment, number, status in ((3, signal.SIGKILL, -signal.SIGKILL), (STEPS[script] + 2, signal.SIGTERM, 143)):
        process = start_script(script, *(options + ["--resume"]))
        wait_until(lambda: progress_of(out, script) >= moment or process.poll() is not None, interval=0.005)
        process.send_signal(number)
        assert process.wait(timeout=60) == status
        wait_until(lambda: not running_in(out), timeout=20)
    assert STEPS[script] < progress_of(out, script) < 3 * STEPS[script]
    result = block(run_script(script, *(options + ["--resume"])))
    one, other = weights_of(whole), weights_of(out)
    assert list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)
    rates = {tuple(record["step"]): record["data"]["lr"] for record in records.read(str(out / "metrics.jsonl"))
             if record.get("type") == "LOG" and isinstance(record["step"], list) and len(record["step"]) == 1}
    assert rates[(1,)] == pytest.approx(0.02) and rates[(2,)] == pytest.approx(0.004)
    assert result["Best Train Accuracy"] != "not measured"

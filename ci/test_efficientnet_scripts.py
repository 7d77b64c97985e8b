"""EfficientNet-B3: upstream's lines and files, its three tools, and a resume with everything random on.

What the scripts of all models must do is in test_all_scripts.py.
"""
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

import npu_sim
from common import checkpoint
from conftest import ROOT, assert_bad_input, block, differences, environment, free_port, run_script

MODEL = os.path.join(ROOT, "EfficientNet-B3")
FULL_1P = "EfficientNet-B3/test/train_full_1p.sh"
SCRIPT = ["--device=cpu", "--image_size=32", "--workers=0", "--opt_level=O0"]
TINY = """
MODEL: {TYPE: effnet, NUM_CLASSES: 4, ACTIVATION_FUN: silu}
EN: {STEM_W: 8, STRIDES: [1, 2], DEPTHS: [1, 2], WIDTHS: [8, 12], EXP_RATIOS: [1, 4], KERNELS: [3, 5], HEAD_W: 16,
     DC_RATIO: 0.2, DROPOUT_RATIO: 0.2}
OPTIM: {BASE_LR: 0.05, MAX_EPOCH: 2, WEIGHT_DECAY: 1e-5, EMA_UPDATE_PERIOD: 3, EMA_ALPHA: 0.001}
TRAIN: {DATASET: imagenet, IM_SIZE: 24, BATCH_SIZE: 8, MIXUP_ALPHA: 0.2, SAVE_STEPS: 3, AUGMENT: RandAugment_N1_M0.5}
TEST: {DATASET: imagenet, IM_SIZE: 28, BATCH_SIZE: 8}
PREC_TIME: {NUM_ITER: 1, WARMUP_ITER: 0}
DATA_LOADER: {NUM_WORKERS: 0}
LOG_PERIOD: 2
VERBOSE: False
"""


@pytest.fixture(scope="module")
def tiny_cfg(tmp_path_factory):
    """A configuration of a very small network with everything random switched on, in a path with a blank and a quote."""
    path = tmp_path_factory.mktemp("tiny 'cfg'") / "tiny.yaml"
    path.write_text(TINY)
    return str(path)


def tool_command(name, cfg, *words):
    """Return the command line of a tool; words that begin with -- are flags, the others KEY VALUE pairs."""
    flags = [str(word) for word in words if str(word).startswith("--")]
    pairs = [str(word) for word in words if not str(word).startswith("--")]
    return [sys.executable, "-u", os.path.join(MODEL, "tools", name), "--cfg", cfg, "--device=cpu"] + flags + pairs


def run_tool(name, cfg, *words, **options):
    return subprocess.run(tool_command(name, cfg, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300,
                          universal_newlines=True, env=environment(), **options)


def lines_of(text, kind):
    """Return the json_stats records of a type, as pycls' own log reader finds them."""
    found = [json.loads(line.split("json_stats: ")[1]) for line in text.splitlines() if "json_stats: " in line]
    return [stats for stats in found if stats["_type"] == kind]


# --- the scripts ------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def trained(tiny_imagenet, tmp_path_factory):
    """The output path of train_full_1p.sh with the real network, two epochs of two steps, and the finished process."""
    out = tmp_path_factory.mktemp("trained") / "out"
    done = run_script(FULL_1P, "--data_path=%s" % tiny_imagenet, *SCRIPT, "--batch_size=8", "--train_epochs=2", "--max_steps=2",
                      "--learning_rate=1e-2", "--output_path=%s" % out)
    return out, done


def test_full_1p_leaves_what_it_should(trained):
    """Upstream's lines and files beside ours, and the last accuracy is of the validation set (defects 8, 11)."""
    out, done = trained
    result = block(done)
    assert {"config.yaml", "model.pyth", "model_best.pth.tar"} <= set(os.listdir(str(out)))
    assert sorted(os.listdir(str(out / "checkpoints"))) == ["model_epoch_0001.pyth", "model_epoch_0002.pyth"]
    log = (out / "train_0.log").read_text()
    tests, trains = lines_of(log, "test_epoch"), lines_of(log, "train_epoch")
    assert float(result["Final Train Accuracy"]) == pytest.approx(100 - tests[-1]["top1_err"], abs=1e-3)
    assert float(result["Best Train Accuracy"]) == pytest.approx(100 - tests[-1]["min_top1_err"], abs=1e-3)
    assert [stats["epoch"] for stats in trains] == ["1/2", "2/2"] and trains[0]["lr"] == 0.01 and trains[1]["lr"] == 0.005
    assert trains[-1]["FPS"] == int(float(result["Final Performance images/sec"]))
    assert lines_of(log, "complexity")[0]["params"] == 12233232
    assert re.search(r"^\[trainer\.py: +\d+\]: Number of images: 64, classes: 4$", log, re.M)


def test_evaluation_takes_a_folder(trained, tiny_imagenet, tmp_path):
    """A folder stands for its model.pyth; the accuracy is the one that training reported (defects 9, 13)."""
    done = run_script("EfficientNet-B3/test/train_eval_1p.sh", "--data_path=%s" % tiny_imagenet, *SCRIPT, "--batch_size=6",
                      "--pth_path=%s" % trained[0], "--output_path=%s" % (tmp_path / "o"))
    assert block(done)["Final Train Accuracy"] == block(trained[1])["Best Train Accuracy"]
    stats = lines_of(done.stdout, "test_epoch")[0]
    assert stats["epoch"] == "1/100" and stats["batch_size"] == 6


def test_full_8p_beside_an_earlier_run(trained, tiny_imagenet, tmp_path):
    """The rate goes with the total batch (0.2 for 128), data lines come from rank 0 alone, an earlier run is not taken up, and its
    checkpoints are set aside (defects 3, 6, 18)."""
    out = tmp_path / "copy"
    shutil.copytree(str(trained[0]), str(out))
    done = run_script("EfficientNet-B3/test/train_full_8p.sh", "--data_path=%s" % tiny_imagenet, *SCRIPT, "--device_list=5,3",
                      "--batch_size=16", "--train_epochs=1", "--max_steps=1", "--pth_path=%s" % (trained[0] / "model.pyth"),
                      "--output_path=%s" % out)
    assert done.returncode == 0 and "Start epoch: 1\n" in done.stdout, done.stderr
    stats = lines_of(done.stdout, "train_epoch")
    assert len(stats) == 1 and stats[0]["lr"] == 0.025 and stats[0]["batch_size"] == 16
    assert os.listdir(str(out / "checkpoints")) == ["model_epoch_0001.pyth"]
    assert len(os.listdir(str(out / "earlier-1" / "checkpoints"))) == 2


# --- the tools --------------------------------------------------------------------------------------------------------

def test_time_net(tiny_cfg, tiny_imagenet, tmp_path):
    """Forward, forward + backward and loader times, from any folder, and no file is left (defects 12, 15)."""
    done = run_tool("time_net.py", tiny_cfg, "--data-path=%s" % tiny_imagenet, "OUT_DIR", tmp_path / "o", "PREC_TIME.NUM_ITER", 2, cwd=str(tmp_path))
    assert done.returncode == 0, done.stderr
    times, epoch = lines_of(done.stdout, "iter_times")[0], lines_of(done.stdout, "epoch_times")[0]
    assert all(times[key] > 0 for key in ("test_fw_time", "train_fw_time", "train_bw_time", "train_fw_bw_time", "train_loader_time"))
    assert times["train_fw_bw_time"] == pytest.approx(times["train_fw_time"] + times["train_bw_time"], abs=2e-4)
    assert epoch["train_loader_time"] == pytest.approx(8 * times["train_loader_time"], abs=1e-3)
    assert "overhead of the data loader: " in done.stdout and not os.listdir(str(tmp_path))
    assert "loader: not measured" in run_tool("time_net.py", tiny_cfg).stdout


def test_ranks_started_one_by_one(tiny_cfg, tiny_imagenet, tmp_path):
    """The Ascend port's way: a process for each --rank_id, --device_id apart from it, any port (defect 17)."""
    words = ["--data_path=%s" % tiny_imagenet, "NUM_GPUS", 2, "OUT_DIR", tmp_path / "o", "TRAIN.MAX_STEPS", 2, "OPTIM.MAX_EPOCH", 1]
    env = environment(MASTER_PORT=str(free_port()))
    ranks = [subprocess.Popen(tool_command("train_net.py", tiny_cfg, "--rank_id=%d" % number, "--device_id=%d" % (5 - number), *words),
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, env=env) for number in range(2)]
    outputs = [rank.communicate(timeout=200) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    assert len(lines_of(outputs[0][0], "train_epoch")) == 1 and outputs[1][0] == ""


@pytest.mark.skipif(npu_sim.skip_reason() is not None, reason=str(npu_sim.skip_reason()))
@pytest.mark.parametrize("words", [["TRAIN.OPT_LEVEL", "O2", "TRAIN.LOSS_SCALE", "128.0"], ["NUM_GPUS", "2", "TRAIN.OPT_LEVEL", "O1"]])
def test_training_on_a_simulated_npu(tiny_cfg, tiny_imagenet, tmp_path, words):
    """--device npu on 1 rank and on 2, every option on: nothing asks for CUDA or lies on the wrong side (defects 14, 16)."""
    command = tool_command("train_net.py", tiny_cfg, "--data-path=%s" % tiny_imagenet, "OUT_DIR", tmp_path / "o", "TRAIN.MAX_STEPS", 3,
                           "OPTIM.MAX_EPOCH", 1, *words)
    command[command.index("--device=cpu")] = "--device=npu"
    done = subprocess.run([os.path.join(ROOT, "ci", "npu_sim", "run")] + command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, timeout=600, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    assert lines_of(done.stdout, "iter_times") and lines_of(done.stdout, "train_epoch") and lines_of(done.stdout, "test_ema_epoch")


def test_overrides_and_an_earlier_checkpoint(tiny_cfg, tiny_imagenet, tmp_path):
    """LOG_DEST file writes OUT_DIR/stdout.log; overrides reach config.yaml and the checkpoint; with TRAIN.AUTO_RESUME a run goes on
    where a checkpoint lies, without it begins anew, and another seed is refused with both."""
    words = ["--data-path=%s" % tiny_imagenet, "OUT_DIR", tmp_path / "o", "OPTIM.MAX_EPOCH", 1, "TRAIN.ACCUMULATE", 2, "TRAIN.MAX_STEPS", 3]
    done = run_tool("train_net.py", tiny_cfg, *words, "LOG_DEST", "file", "OPTIM.BASE_LR", 0.03)
    # What all models say of their input is no line of pycls' log.
    assert done.returncode == 0 and [line.split(":")[0][:10] for line in done.stdout.splitlines()] == ["input", "waited for"], done.stderr
    log = (tmp_path / "o" / "stdout.log").read_text()
    assert lines_of(log, "train_epoch")[0]["lr"] == 0.03 and lines_of(log, "epoch_times") and lines_of(log, "test_ema_epoch")
    assert [stats["iter"] for stats in lines_of(log, "train_iter")] == ["2/3"]
    for content in ((tmp_path / "o" / "config.yaml").read_text(), checkpoint.load(str(tmp_path / "o" / "model.pyth"))["cfg"]):
        assert "BASE_LR: 0.03" in content
    assert_bad_input(run_tool("train_net.py", tiny_cfg, *words, "RNG_SEED", 7), "seed 7", "has 1")
    assert "Start epoch: 2\n" in run_tool("train_net.py", tiny_cfg, *words).stdout
    assert "Start epoch: 1\n" in run_tool("train_net.py", tiny_cfg, *words, "TRAIN.AUTO_RESUME", "False").stdout


@pytest.mark.parametrize("tool, words, wanted", [
    ("train_net.py", [], ["--data-path"]),
    ("train_net.py", ["--data-path=DATA", "NUM_GPUS", "2", "--rank-id=2"], ["--rank-id 2", "0 to 1"]),
    ("train_net.py", ["--data-path=DATA", "NUM_GPUS", "2", "--device-list=0,1,2,3"], ["--device-list names 4", "needs 2 here"]),
    ("train_net.py", ["--data-path=DATA", "TRAIN.WEIGHTS", "a", "TRAIN.PRETRAINED", "b"], ["one of the two"]),
    ("test_net.py", ["--data-path=DATA"], ["TEST.WEIGHTS"]),
    ("time_net.py", ["PREC_TIME.NUM_ITER", "0"], ["PREC_TIME.NUM_ITER"]),
])
def test_bad_input_of_the_tools(tiny_cfg, tiny_imagenet, tmp_path, tool, words, wanted):
    """One line and status 2 from the Python tools too."""
    words = [word.replace("DATA", str(tiny_imagenet)) for word in words] + ["OUT_DIR", tmp_path / "o"]
    assert_bad_input(run_tool(tool, tiny_cfg, *words), *wanted)
    assert not (tmp_path / "o").exists()


# --- interruption -----------------------------------------------------------------------------------------------------

# Read by Python at its start: kill all ranks when checkpoint.pth.tar is about to get its new content for the KILL_AT-th time; or, as the
# 0-th, send each the SIGTERM of its first evaluation.
KILLER = """
import eager, os, signal, sys, threading, time
times, replace = [], os.replace

def terminate_in_evaluation():
    while not hasattr(sys.modules.get("pycls.core.trainer"), "test_epoch"):
        time.sleep(0.01)
    module, test_epoch = sys.modules["pycls.core.trainer"], sys.modules["pycls.core.trainer"].test_epoch
    module.test_epoch = lambda *args: (os.kill(os.getpid(), signal.SIGTERM), test_epoch(*args))[1]

if os.environ["KILL_AT"] == "0":
    threading.Thread(target=terminate_in_evaluation, daemon=True).start()

def killing_replace(source, target):
    times.append(1) if target.endswith("checkpoint.pth.tar") else None
    os.killpg(0, signal.SIGKILL) if times and len(times) == int(os.environ["KILL_AT"]) else replace(source, target)

os.replace = killing_replace
"""


@pytest.mark.parametrize("ranks, moments", [(1, [1, 2, 0, 3]), (2, [2, 0])])
def test_killed_runs_resume_exactly(tiny_cfg, tiny_imagenet, tmp_path, ranks, moments):
    """SIGKILL before the first checkpoint, within an epoch, at the end of one, SIGTERM in an evaluation, and the same command again: bit
    for bit the weights, the counters of BN and the results of the whole run. Drop-connect, dropout, mixup, RandAugment, the moving average
    and precise BN are all on."""
    (tmp_path / "sitecustomize.py").write_text(KILLER)
    words = ["train_net.py", tiny_cfg, "--data-path=%s" % tiny_imagenet, "NUM_GPUS", ranks, "OUT_DIR"]
    for moment in moments:
        killed = subprocess.run(tool_command(*words, tmp_path / "o"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=300,
                                env=environment(PYTHONPATH=str(tmp_path), KILL_AT=str(moment)), start_new_session=True)
        assert killed.returncode == (-signal.SIGKILL if moment else 128 + signal.SIGTERM)
    resumed, whole = run_tool(*words, tmp_path / "o"), run_tool(*words, tmp_path / "whole")
    assert resumed.returncode == whole.returncode == 0, resumed.stderr + whole.stderr
    assert "Loaded checkpoint from: " in resumed.stdout
    one, other = [checkpoint.load(str(tmp_path / name / "checkpoint.pth.tar")) for name in ("o", "whole")]
    assert set(differences(one, other)) == {differences(one["cfg"], other["cfg"], ".cfg")[0]}  # it names the folder

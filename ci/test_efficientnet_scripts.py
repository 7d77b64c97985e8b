"""EfficientNet-B3's tools and test scripts: what they leave, what they say to bad input, how they go on after a kill."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch

import npu_sim
from common import checkpoint, records
from conftest import ROOT, assert_bad_input, environment, run_script, wait_until

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


@pytest.fixture(scope="session")
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


def run_tool(name, cfg, *words, env=None, cwd=None):
    return subprocess.run(tool_command(name, cfg, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300,
                          universal_newlines=True, env=env or environment(), cwd=cwd)


def lines_of(text, kind):
    """Return the json_stats records of a type, as pycls' own log reader finds them."""
    found = [json.loads(line.split("json_stats: ")[1]) for line in text.splitlines() if "json_stats: " in line]
    return [stats for stats in found if stats["_type"] == kind]


def block(done):
    """Return the result block of a finished script as a dictionary; the script must have succeeded."""
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = done.stdout.splitlines()
    start = lines.index("------------------ Final result ------------------")
    return dict(line.split(" : ") for line in lines[start + 1:])


def weights_of(out):
    return checkpoint.load(str(out / "checkpoint.pth.tar"))


def assert_same(first, second):
    """Weights, momenta and moving averages agree bit for bit."""
    for key in ("model_state", "ema_state"):
        assert list(first[key]) == list(second[key])
        assert all(torch.equal(first[key][name], second[key][name]) for name in first[key]), key
    for number, state in first["optimizer_state"]["state"].items():
        assert torch.equal(state["momentum_buffer"], second["optimizer_state"]["state"][number]["momentum_buffer"])


# --- smoke runs of the scripts ----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def trained(tiny_imagenet, tmp_path_factory):
    """The output path of train_full_1p.sh with the real network, two epochs of two steps, and the finished process."""
    out = tmp_path_factory.mktemp("trained $1") / "out put"
    done = run_script(FULL_1P, "--data_path=%s" % tiny_imagenet, *SCRIPT, "--batch_size=8", "--train_epochs=2", "--max_steps=2",
                      "--learning_rate=1e-2", "--output_path=%s" % out)
    return out, done


def test_full_1p_leaves_what_it_should(trained):
    """Result block, summary, records, upstream's files and ours, and the last accuracy is of the validation set (defects 8, 11)."""
    out, done = trained
    result = block(done)
    assert sorted(os.listdir(str(out))) == ["EfficientNet-B3_bs8_1p_acc.log", "checkpoint.pth.tar", "checkpoints", "config.yaml",
                                            "metrics.jsonl", "model.pyth", "model_best.pth.tar", "report.json", "train_0.log"]
    assert sorted(os.listdir(str(out / "checkpoints"))) == ["model_epoch_0001.pyth", "model_epoch_0002.pyth"]
    log = (out / "train_0.log").read_text()
    tests = lines_of(log, "test_epoch")
    assert float(result["Final Train Accuracy"]) == pytest.approx(100 - tests[-1]["top1_err"], abs=1e-3)
    assert float(result["Best Train Accuracy"]) == pytest.approx(100 - tests[-1]["min_top1_err"], abs=1e-3)
    trains = lines_of(log, "train_epoch")
    assert [stats["epoch"] for stats in trains] == ["1/2", "2/2"] and trains[0]["lr"] == 0.01 and trains[1]["lr"] == 0.005
    assert trains[-1]["FPS"] == int(float(result["Final Performance images/sec"]))
    case = dict(line.split(" = ") for line in (out / "EfficientNet-B3_bs8_1p_acc.log").read_text().splitlines())
    assert list(case) == ["Network", "RankSize", "BatchSize", "DeviceType", "CaseName", "ActualFPS", "TrainingTime", "TrainAccuracy",
                          "ActualLoss", "E2ETrainingTime"]
    assert case["Network"] == "EfficientNet-B3" and case["TrainAccuracy"] == result["Final Train Accuracy"]
    assert lines_of(log, "complexity")[0]["params"] == 12233232
    assert re.search(r"^\[trainer\.py: +\d+\]: Number of images: 64, classes: 4$", log, re.M)


def test_evaluation_1p_and_2_ranks_agree(trained, tiny_imagenet, tmp_path):
    """train_eval_*.sh on the file and on the folder, on 1 rank and on 2: the accuracy that training reported (defects 9, 13)."""
    out, done = trained
    accuracies = [float(block(done)["Best Train Accuracy"])]
    for script, path, extra in (("train_eval_1p.sh", out, []), ("train_eval_8p.sh", out / "model.pyth", ["--device_list=0,1"])):
        done = run_script("EfficientNet-B3/test/" + script, "--data_path=%s" % tiny_imagenet, *SCRIPT, "--batch_size=6",
                          "--pth_path=%s" % path, "--output_path=%s" % (tmp_path / script), *extra)
        result = block(done)
        assert list(result) == ["Final Train Accuracy", "E2E Training Duration sec"]
        accuracies.append(float(result["Final Train Accuracy"]))
        assert lines_of(done.stdout, "test_epoch")[0]["epoch"] == "1/100"
        assert "batch_size\": 6" in done.stdout
    assert accuracies[0] == accuracies[1] == accuracies[2]
    assert (tmp_path / "train_eval_8p.sh" / "EfficientNet-B3_bs6_2p_eval.log").exists()


def test_performance_1p(tiny_imagenet, tmp_path):
    """The performance script at the recipe's mixed precision, from another folder, with a relative output path."""
    done = run_script("EfficientNet-B3/test/train_performance_1p.sh", "--data_path=%s" % tiny_imagenet, "--device=cpu", "--image_size=32",
                      "--batch_size=8", "--workers=1", "--max_steps=3", "--output_path=o", cwd=str(tmp_path))
    assert float(block(done)["Final Performance images/sec"]) > 0
    assert (tmp_path / "o" / "EfficientNet-B3_bs8_1p_perf.log").exists()
    assert json.loads((tmp_path / "o" / "report.json").read_text())["parameters"]["opt_level_run"] in ("O2", "O0")


def test_full_8p_on_2_ranks_with_weights_to_start_from(trained, tiny_imagenet, tmp_path):
    """train_full_8p.sh on a list of two devices; the batch is the total, and its rate goes with it (0.2 for 128)."""
    done = run_script("EfficientNet-B3/test/train_full_8p.sh", "--data_path=%s" % tiny_imagenet, *SCRIPT, "--device_list=5,3",
                      "--batch_size=16", "--train_epochs=1", "--max_steps=1", "--pth_path=%s" % (trained[0] / "model.pyth"),
                      "--output_path=%s" % (tmp_path / "o"))
    assert "Final Train Accuracy" in block(done)
    stats = lines_of(done.stdout, "train_epoch")
    assert len(stats) == 1 and stats[0]["lr"] == 0.025 and stats[0]["batch_size"] == 16
    assert "RankSize = 2" in (tmp_path / "o" / "EfficientNet-B3_bs16_2p_acc.log").read_text()


def test_performance_8p_on_eight_ranks(tiny_imagenet, tmp_path):
    """Eight gloo ranks through the performance script; the data lines come from rank 0 alone (defect 6)."""
    done = run_script("EfficientNet-B3/test/train_performance_8p.sh", "--data_path=%s" % tiny_imagenet, *SCRIPT, "--batch_size=16",
                      "--max_steps=1", "--output_path=%s" % (tmp_path / "o"))
    assert "Final Performance images/sec" in block(done)
    assert len(lines_of(done.stdout, "train_epoch")) == 1
    assert "RankSize = 8" in (tmp_path / "o" / "EfficientNet-B3_bs16_8p_perf.log").read_text()


def test_a_new_run_does_not_take_up_an_old_one(trained, tiny_imagenet, tmp_path):
    """Without --resume an earlier run's files are set aside, checkpoints too; nothing is deleted (defects 3, 18)."""
    out = tmp_path / "copy"
    shutil.copytree(str(trained[0]), str(out))
    done = run_script(FULL_1P, "--data_path=%s" % tiny_imagenet, *SCRIPT, "--batch_size=8", "--train_epochs=1", "--max_steps=1",
                      "--output_path=%s" % out)
    assert "Start epoch: 1" in done.stdout and done.returncode == 0
    assert os.listdir(str(out / "checkpoints")) == ["model_epoch_0001.pyth"]
    assert len(os.listdir(str(out / "earlier-1" / "checkpoints"))) == 2


def test_help_of_every_script():
    """--help answers with the options, their defaults and one example, and runs nothing."""
    scripts = sorted(name for name in os.listdir(os.path.join(MODEL, "test")) if name.endswith(".sh"))
    assert len(scripts) == 6
    for script in scripts:
        done = run_script("EfficientNet-B3/test/" + script, "--help")
        assert done.returncode == 0 and "--data_path" in done.stdout and "Example:\n  bash test/" + script in done.stdout
    for tool in ("train_net.py", "test_net.py", "time_net.py"):
        done = subprocess.run([sys.executable, os.path.join(MODEL, "tools", tool), "--help"], stdout=subprocess.PIPE, universal_newlines=True)
        assert all(flag in done.stdout for flag in ("--cfg", "--device", "--rank-id", "--device-id", "--data-path", "KEY VALUE"))


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
    done = run_tool("time_net.py", tiny_cfg)
    assert done.returncode == 0 and "train_loader_time" not in lines_of(done.stdout, "iter_times")[0]
    assert "loader: not measured" in done.stdout


def test_ranks_started_one_by_one(tiny_cfg, tiny_imagenet, tmp_path):
    """The Ascend port's way: a process for each --rank_id, --device_id apart from it, any port (defect 17)."""
    words = ["--data_path=%s" % tiny_imagenet, "NUM_GPUS", 2, "OUT_DIR", tmp_path / "o", "TRAIN.MAX_STEPS", 2, "OPTIM.MAX_EPOCH", 1]
    env = environment(MASTER_PORT="29641")
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


def test_log_file_and_overrides(tiny_cfg, tiny_imagenet, tmp_path):
    """LOG_DEST file writes OUT_DIR/stdout.log; overrides reach config.yaml and the checkpoint."""
    done = run_tool("train_net.py", tiny_cfg, "--data-path=%s" % tiny_imagenet, "OUT_DIR", tmp_path / "o", "LOG_DEST", "file",
                    "OPTIM.MAX_EPOCH", 1, "TRAIN.MAX_STEPS", 1, "OPTIM.BASE_LR", 0.03, "PREC_TIME.NUM_ITER", 1)
    assert done.returncode == 0 and done.stdout == ""
    log = (tmp_path / "o" / "stdout.log").read_text()
    assert lines_of(log, "train_epoch")[0]["lr"] == 0.03 and lines_of(log, "epoch_times") and lines_of(log, "test_ema_epoch")
    for text in ((tmp_path / "o" / "config.yaml").read_text(), checkpoint.load(str(tmp_path / "o" / "model.pyth"))["cfg"]):
        assert "BASE_LR: 0.03" in text


# --- bad input --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options, words", [
    (["nonsense"], ["nonsense"]),
    (["--no_such_option=1"], ["unknown option --no_such_option"]),
    (["--train_epochs=0"], ["--train_epochs=0", "at least 1"]),
    ([], ["--data_path is missing"]),
    (["--data_path=/no/such $HOME/folder"], ["/no/such $HOME/folder"]),
    (["--data_path=EMPTY"], ["no folder train"]),
    (["--data_path=DATA", "--device=npu"], ["no such device"]),
    (["--data_path=DATA", "--pth_path=/no/weights"], ["/no/weights"]),
    (["--data_path=DATA", "--pth_path=JUNK", "--batch_size=8"], ["JUNK"]),
    (["--data_path=DATA", "--pth_path=OTHER", "--batch_size=8"], ["not a checkpoint of this network"]),
    (["--data_path=DATA", "--batch_size=65"], ["larger than the data set"]),
])
def test_bad_input_touches_nothing(tiny_imagenet, tmp_path, options, words):
    """One line that says what is wrong, status 2, and not even an output folder (defects 1, 2, 4, 5)."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk").write_bytes(b"no weights")
    torch.save({"model_state": {"fc.weight": torch.ones(2, 2)}}, str(tmp_path / "other"))
    places = {"DATA": tiny_imagenet, "EMPTY": tmp_path / "empty", "JUNK": tmp_path / "junk", "OTHER": tmp_path / "other"}
    for name, place in places.items():
        options = [option.replace(name, str(place)) for option in options]
    done = run_script(FULL_1P, *(SCRIPT + ["--output_path=%s" % (tmp_path / "a" / "o")] + options))
    assert_bad_input(done, *[str(places.get(word, word)) for word in words])
    assert not (tmp_path / "a").exists()


def test_bad_input_of_the_other_scripts(tiny_imagenet, tmp_path):
    """Evaluation needs weights; a batch has to divide among the ranks."""
    out = "--output_path=%s" % (tmp_path / "o")
    for script in ("train_eval_1p.sh", "train_eval_8p.sh"):
        assert_bad_input(run_script("EfficientNet-B3/test/" + script, "--data_path=%s" % tiny_imagenet, out), "--pth_path is missing")
    done = run_script("EfficientNet-B3/test/train_full_8p.sh", "--data_path=%s" % tiny_imagenet, *SCRIPT, "--batch_size=9",
                      "--device_list=0,1", out)
    assert_bad_input(done, "TRAIN.BATCH_SIZE 9", "multiple")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("tool, words, wanted", [
    ("train_net.py", [], ["--data-path"]),
    ("train_net.py", ["--data-path=DATA", "OPTIM.BASE_LR", "1"], ["OPTIM.BASE_LR", "floats with a point"]),
    ("train_net.py", ["--data-path=DATA", "NUM_GPUS", "2", "--rank-id=2"], ["--rank-id 2", "0 to 1"]),
    ("train_net.py", ["--data-path=DATA", "NUM_GPUS", "2", "--device-list=0,1,2,3"], ["--device-list names 4", "NUM_GPUS is 2"]),
    ("train_net.py", ["--data-path=DATA", "TRAIN.WEIGHTS", "a", "TRAIN.PRETRAINED", "b"], ["one of the two"]),
    ("train_net.py", ["--data-path=DATA", "TRAIN.WEIGHTS", "https://dl.fbaipublicfiles.com/pycls/x.pyth"], ["nothing is downloaded"]),
    ("test_net.py", ["--data-path=DATA"], ["TEST.WEIGHTS"]),
    ("time_net.py", ["PREC_TIME.NUM_ITER", "0"], ["PREC_TIME.NUM_ITER"]),
    ("time_net.py", ["TRAIN.IM_SIZE", "32"], ["TRAIN.IM_SIZE 32", "TEST.IM_SIZE 28"]),
])
def test_bad_input_of_the_tools(tiny_cfg, tiny_imagenet, tmp_path, tool, words, wanted):
    """One line and status 2 from the Python tools too."""
    words = [word.replace("DATA", str(tiny_imagenet)) for word in words] + ["OUT_DIR", tmp_path / "o"]
    assert_bad_input(run_tool(tool, tiny_cfg, *words), *wanted)
    assert not (tmp_path / "o").exists()


def test_unreadable_image(tiny_cfg, tiny_imagenet, tmp_path):
    """A broken file stops training by its name; with --skip-bad-images it is left out and counted."""
    root = tmp_path / "data"
    shutil.copytree(str(tiny_imagenet), str(root))
    bad = sorted(str(path) for path in (root / "val").glob("*/*"))[3]
    open(bad, "wb").close()
    words = ["--data-path=%s" % root, "OUT_DIR", tmp_path / "o", "OPTIM.MAX_EPOCH", 1, "TRAIN.MAX_STEPS", 1, "PREC_TIME.NUM_ITER", 0]
    assert_bad_input(run_tool("train_net.py", tiny_cfg, *words), bad)
    done = run_tool("train_net.py", tiny_cfg, "--skip-bad-images", *words)
    assert done.returncode == 0, done.stderr
    assert records.read(str(tmp_path / "o" / "metrics.jsonl"))[-1]["data"]["bad_images"] == 1


def test_divergence_fails_the_script(tiny_cfg, tiny_imagenet, tmp_path):
    """A training whose loss is no number ends with a failure status (defect 1)."""
    done = run_tool("train_net.py", tiny_cfg, "--data-path=%s" % tiny_imagenet, "OUT_DIR", tmp_path / "o", "OPTIM.BASE_LR", "1e38")
    assert done.returncode == 1 and "training has diverged" in done.stderr


# --- interruption -----------------------------------------------------------------------------------------------------

RANKS = pytest.mark.parametrize("ranks", [1, 2])


@pytest.fixture(scope="module")
def uninterrupted(tiny_cfg, tiny_imagenet, tmp_path_factory):
    """Checkpoints of whole runs on 1 and on 2 ranks."""
    found = {}
    for ranks in (1, 2):
        out = tmp_path_factory.mktemp("whole%d" % ranks)
        done = run_tool("train_net.py", tiny_cfg, "--data-path=%s" % tiny_imagenet, "OUT_DIR", out, "NUM_GPUS", ranks)
        assert done.returncode == 0, done.stderr
        found[ranks] = weights_of(out)
    return found


def steps_done(out):
    try:
        state = checkpoint.load(str(out / "checkpoint.pth.tar"))
    except Exception:
        return -1
    return 8 * state["epoch"] + state["step"]


def start_tool(*command):
    return subprocess.Popen(tool_command(*command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(),
                            start_new_session=True)


MOMENTS = {"start": lambda out: (out / "config.yaml").exists(), "first epoch": lambda out: steps_done(out) >= 3,
           "second epoch": lambda out: steps_done(out) >= 11}


@pytest.mark.parametrize("ranks, moments", [(1, ["start", "first epoch", "second epoch"]), (2, ["first epoch"])])
def test_killed_runs_resume_exactly(uninterrupted, tiny_cfg, tiny_imagenet, tmp_path, ranks, moments):
    """SIGKILL before the first checkpoint, within an epoch, and the same command again: bit for bit the weights of the whole run.

    Drop-connect, dropout, mixup, RandAugment, the moving average and precise BN are all on.
    """
    command = ["train_net.py", tiny_cfg, "--data-path=%s" % tiny_imagenet, "OUT_DIR", tmp_path / "o", "NUM_GPUS", ranks]
    for moment in moments:
        process = start_tool(*command)
        wait_until(lambda: MOMENTS[moment](tmp_path / "o") or process.poll() is not None, interval=0.002)
        assert process.poll() is None, "the run ended before the moment came"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = run_tool(*command)
    assert done.returncode == 0, done.stderr
    assert "Loaded checkpoint from: " in done.stdout
    assert_same(weights_of(tmp_path / "o"), uninterrupted[ranks])


@RANKS
def test_sigterm_saves_and_resumes_exactly(uninterrupted, tiny_cfg, tiny_imagenet, tmp_path, ranks):
    """Pre-emption: SIGTERM writes a checkpoint and ends with status 143; the run goes on from there."""
    command = ["train_net.py", tiny_cfg, "--data-path=%s" % tiny_imagenet, "OUT_DIR", tmp_path / "o", "NUM_GPUS", ranks]
    process = start_tool(*(command + ["TRAIN.SAVE_STEPS", 0]))
    wait_until(lambda: (tmp_path / "o" / "metrics.jsonl").exists() and '"step": [0, 1]' in (tmp_path / "o" / "metrics.jsonl").read_text())
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=120) == 143
    assert steps_done(tmp_path / "o") >= 1
    done = run_tool(*command)
    assert done.returncode == 0, done.stderr
    assert_same(weights_of(tmp_path / "o"), uninterrupted[ranks])


def test_auto_resume_off_starts_anew(tiny_cfg, tiny_imagenet, tmp_path):
    """TRAIN.AUTO_RESUME False begins at epoch 1 even where a checkpoint lies."""
    words = ["--data-path=%s" % tiny_imagenet, "OUT_DIR", tmp_path / "o", "OPTIM.MAX_EPOCH", 1, "TRAIN.MAX_STEPS", 1, "PREC_TIME.NUM_ITER", 0]
    for extra in ([], ["TRAIN.AUTO_RESUME", "False"]):
        done = run_tool("train_net.py", tiny_cfg, *(words + extra))
        assert done.returncode == 0 and "Start epoch: 1" in done.stdout

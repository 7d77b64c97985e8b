"""HRNet's programs: upstream's lines and files, its ways to start ranks and to go on, what they say to a bad configuration."""
import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from unittest import mock

import pytest
import torch

from common import checkpoint, cli, records
from conftest import ROOT, differences, environment, free_port, load_script, run_script, write_images

SMALL = os.path.join(ROOT, "HRNet", "experiments", "cls_hrnet_w18_small_v1_sgd_lr5e-2_wd1e-4_bs32_x100.yaml")
EXPERIMENT = os.path.basename(SMALL).split(".")[0]
TINY_FLAGS = ["--cfg=" + SMALL, "--device=cpu", "--workers=0"]
TINY_CONFIG = ["MODEL.NUM_CLASSES", "4", "MODEL.IMAGE_SIZE", "[32, 32]", "LOG_DIR", ""]
ONE_STEP = ["--bs=4", "--stop_step=1", "--train_epochs=1"]


def command(name, data_path, *words):
    """Return the words of a small run of tools/train.py or tools/valid.py; `words` may end in KEY VALUE overrides."""
    options = ["--seed=3"] * (name == "train.py") + [word for word in words if word.startswith("--")]
    overrides = TINY_CONFIG + [word for word in words if not word.startswith("--")]
    return [os.path.join(ROOT, "HRNet", "tools", name), str(data_path)] + TINY_FLAGS + options + overrides


def program(name, data_path, *words):
    """Do such a run in this process, and return what it prints."""
    previous = signal.getsignal(signal.SIGTERM)
    with mock.patch.object(sys, "argv", command(name, data_path, *words)), mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            load_script("HRNet/tools/%s" % name).main()
    signal.signal(signal.SIGTERM, previous)
    return printed.getvalue()


@pytest.fixture(scope="module")
def trained(tiny_imagenet, tmp_path_factory):
    """The folder that a training of two epochs with upstream's flags has written, and what it has printed."""
    root = tmp_path_factory.mktemp("out $HOME 'x'")
    out = program("train.py", tiny_imagenet, "--modelDir=%s" % root, "--bs=12", "--train_epochs=2", "PRINT_FREQ", "2",
                  "TRAIN.LR", "0.001")
    return root / "imagenet" / EXPERIMENT, out


# ---- in this process -----------------------------------------------------------------------------------------------------

def test_lines_and_records(trained):
    """The progress line: of the batch just trained, at the mean time since the line before; then epoch and validation."""
    folder, out = trained
    lines = re.findall(r"^Epoch: \[(\d)\]\[(\d)/6\]\t\tTime ([\d.]+)s\t\tFPS ([\d.]+)\t\tData [\d.]+s\t\tLoss ([\d.]+)\t\t"
                       r"Accuracy@1 ([\d.]+)\t\tAccuracy@5 [\d.]+\t\t$", out, re.M)
    assert [line[:2] for line in lines] == [(epoch, step) for epoch in "01" for step in "024"]  # 64 images: five of 12, one of 4
    found = {tuple(record["step"]): record["data"] for record in records.read(str(folder / "metrics.jsonl"))
             if isinstance(record.get("step"), list)}
    for epoch, step, seconds, fps, loss, top1 in lines:
        record = found[int(epoch), int(step)]
        assert (seconds, loss) == ("%.3f" % record["train.step_time"], "%.5f" % record["train.loss"])
        assert float(fps) == pytest.approx(12 / record["train.step_time"], abs=0.06)
        assert float(top1) * 12 / 100 == pytest.approx(round(float(top1) * 12 / 100), abs=1e-3)
    last = found[()]
    assert re.search(r"^Data Average :\t\tTime_Avg [\d.]+s\t\tFps_Avg [\d.]+\t\tLoss %.5f\t\tAccuracy@1_Avg %.3f\t\t$"
                     % (last["train.loss_mean"], last["train.top1"]), out, re.M)
    assert re.search(r"^Test: Time [\d.]+\tLoss %.4f\tError@1 %.3f\tError@5 [\d.]+\tAccuracy@1 %.3f\tAccuracy@5 [\d.]+\t$"
                     % (last["val.loss"], 100 - last["val.top1"], last["val.top1"]), out, re.M)


def test_files(trained):
    """Upstream's keys in the checkpoint; the best and the final weights are bare state dicts."""
    names = ["checkpoint.pth.tar", "checkpoint.pth.tar.1", "final_state.pth.tar", "metrics.jsonl", "model_best.pth.tar"]
    assert sorted(os.listdir(str(trained[0]))) == [".run.files"] + names
    assert sorted((trained[0] / ".run.files").read_text().splitlines()) == names
    saved, _, final, _, best = (name.endswith(".tar") and checkpoint.load(str(trained[0] / name)) for name in names)
    assert (saved["epoch"], saved["model"], type(saved["perf"])) == (2, "cls_hrnet", float)
    assert {"state_dict", "optimizer", "amp", "seed", "step"} <= set(saved)
    assert differences(dict(final), dict(saved["state_dict"])) == [] and list(best) == list(final)


def test_valid_takes_final_state(trained, tiny_imagenet):
    """Without a weights file valid.py evaluates final_state.pth.tar of the experiment's folder, and writes nothing."""
    folder, training = trained
    before = sorted(os.listdir(str(folder)))
    out = program("valid.py", tiny_imagenet, "--modelDir=%s" % folder.parent.parent, "--bs=12")
    assert "=> loading model from %s\n" % (folder / "final_state.pth.tar") in out
    assert out.splitlines()[-1].split("\t")[1:] == re.findall("^Test: .*$", training, re.M)[-1].split("\t")[1:]
    assert sorted(os.listdir(str(folder))) == before


def test_what_a_person_may_not_mean_is_said(tiny_imagenet, tmp_path):
    """The log says which settings nothing reads, that outputs are spare, that the rate is for more devices, that LOG_DIR gets
    nothing where TensorBoard is not installed. TRAIN.BEGIN_EPOCH is the first epoch."""
    with mock.patch.dict(sys.modules, {"torch.utils.tensorboard": None}):
        out = program("train.py", tiny_imagenet, "--output_path=%s" % (tmp_path / "out"), *ONE_STEP, "--train_epochs=4",
                      "LOG_DIR", str(tmp_path / "log"), "TRAIN.BEGIN_EPOCH", "3", "TRAIN.SHUFFLE", "False",
                      "MODEL.NUM_CLASSES", "9")
    for words in ("TRAIN.SHUFFLE, which nothing reads", "data set has 4 classes, the network 9 outputs", "no events in LOG_DIR",
                  "TRAIN.LR 0.05 is used as it is, but the config is for 4 devices (GPUS) and 1 take part"):
        assert words in out
    assert not (tmp_path / "log").exists()
    assert re.findall(r"Epoch: \[(\d)\]", out) == ["3"]
    assert checkpoint.load(str(tmp_path / "out" / "final_state.pth.tar"))["classifier.bias"].shape == (9,)


def test_pretrained_and_tensorboard(trained, tiny_imagenet, tmp_path):
    """--pretrained loads the file that it names, from epoch 0 on; LOG_DIR gets events, in upstream's folder for them."""
    weights = trained[0] / "model_best.pth.tar"
    program("train.py", tiny_imagenet, "--pretrained=%s" % weights, "--output_path=%s" % (tmp_path / "out"), *ONE_STEP,
            "TRAIN.LR", "0.0", "LOG_DIR", str(tmp_path / "log"))
    saved = checkpoint.load(str(tmp_path / "out" / "checkpoint.pth.tar"))
    assert saved["epoch"] == 1
    assert torch.equal(saved["state_dict"]["classifier.weight"], checkpoint.load(str(weights))["classifier.weight"])
    pytest.importorskip("tensorboard")
    folder, = (tmp_path / "log" / "imagenet" / "cls_hrnet").iterdir()
    assert folder.name.startswith(EXPERIMENT) and any("tfevents" in path.name for path in folder.iterdir())


def test_train_resume_key_says_so(tiny_imagenet, tmp_path):
    """With TRAIN.RESUME True a second run goes on with the first and says so; with False it starts anew."""
    words = ["--modelDir=%s" % tmp_path] + ONE_STEP
    saved = str(tmp_path / "imagenet" / EXPERIMENT / "checkpoint.pth.tar")
    assert "going on" not in program("train.py", tiny_imagenet, *words)
    assert "going on with %s (TRAIN.RESUME is True): epoch 1, step 0" % saved in program(
        "train.py", tiny_imagenet, *(words + ["--train_epochs=2"]))
    assert checkpoint.load(saved)["epoch"] == 2
    assert "going on" not in program("train.py", tiny_imagenet, *(words + ["TRAIN.RESUME", "False"]))
    assert checkpoint.load(saved)["epoch"] == 1


def test_upstream_checkpoint(trained, tiny_imagenet, tmp_path):
    """A checkpoint in upstream's layout is resumed at its epoch; a worse model does not replace the best one."""
    ours = checkpoint.load(str(trained[0] / "checkpoint.pth.tar"))
    source = str(tmp_path / "upstream.pth.tar")
    torch.save({"epoch": 40, "model": "cls_hrnet", "perf": torch.tensor(100.0), "optimizer": ours["optimizer"],
                "state_dict": {"module." + key: value for key, value in ours["state_dict"].items()}}, source)
    out = program("train.py", tiny_imagenet, "--output_path=%s" % tmp_path, *ONE_STEP, "--resume=" + source, "--train_epochs=41")
    assert "epoch 40, step 0" in out and "holds no amp" in out
    assert re.findall(r"Epoch: \[(\d+)\]\[0/1\]", out) == ["40"]
    saved = checkpoint.load(str(tmp_path / "checkpoint.pth.tar"))
    assert (saved["epoch"], saved["perf"]) == (41, 100.0)
    assert not (tmp_path / "model_best.pth.tar").exists()
    # Resumed at epoch 40, the rate has decayed once, not twice: TRAIN.LR 0.05 x 0.1.
    assert saved["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.005)


@pytest.mark.parametrize("words, message", [
    (["TRAIN.OPTIMIZER", "lion"], "small_v1.*TRAIN.OPTIMIZER.*lion.*rmsprop"),
    (["MODEL.EXTRA.STAGE3.NUM_BLOCKS", "[2, 2]"], "small_v1.*STAGE3.NUM_BRANCHES is 3.*2 entries"),
    (["MODEL.NAME", "resnet"], "small_v1.*MODEL.NAME.*cls_hrnet"),
    (["MODEL.IMAGE_SIZE", "[100, 100]"], "100 pixels.*96 does"),
    (["--bs=7"], "single image"),
    (["DATASET.TEST_SET", "test"], "no folder test/"),
])
def test_bad_input(tiny_imagenet, tmp_path, words, message):
    """What makes no training is one line that names the key and the file, before anything is written."""
    with pytest.raises(cli.UserError, match=message):
        program("train.py", tiny_imagenet, "--output_path=%s" % (tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


# ---- several processes ---------------------------------------------------------------------------------------------------

def test_batch_of_one_rank(tiny_imagenet, tmp_path):
    """The scripts' batch is that of one card: step time and learning rate count all ranks, the rate --accumulate too. --max_steps
    leaves validation images out."""
    done = run_script("HRNet/test/train_performance_8p.sh", "--data_path=%s" % tiny_imagenet, "--output_path=%s" % tmp_path,
                      "--device=cpu", "--cfg=" + SMALL, "--num_classes=4", "--image_size=32", "--workers=0", "--batch_size=4",
                      "--learning_rate=0.001", "--accumulate=2", "--max_steps=2", "--device_list=0,1")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "HRNet_ID1780_for_PyTorch_bs4_2p_perf.log").read_text()
    case = dict(line.split(" = ") for line in text.splitlines())
    assert float(case["TrainingTime"]) == pytest.approx(8000 / float(case["ActualFPS"]), rel=1e-2)
    right = float(case["TrainAccuracy"]) * 16 / 100  # two steps of 2 x 4 images, not the 20 of the set
    assert right == pytest.approx(round(right), abs=1e-3)
    saved = checkpoint.load(str(tmp_path / "checkpoint.pth.tar"))
    assert (saved["optimizer"]["param_groups"][0]["lr"], saved["global_batch"]) == (pytest.approx(0.001 * 2 * 2), 4 * 2 * 2)
    assert done.stdout.count("Epoch: [0][0/2]") == 1  # one rank prints


def test_ranks_started_by_hand(tiny_imagenet, tmp_path):
    """One process a card with --device_id and --dn, as old scripts start them, is one training; a package named `tools` that is
    installed on the machine does not get in its way."""
    (tmp_path / "installed" / "tools").mkdir(parents=True)
    (tmp_path / "installed" / "tools" / "__init__.py").write_text("")
    words = ["--addr=127.0.0.1", "--dn=2", "--master_port=%d" % free_port(), "--output_path=%s" % (tmp_path / "out")] + ONE_STEP
    ranks = [subprocess.Popen([sys.executable] + command("train.py", tiny_imagenet, "--lr=0.01", "--device_id=%d" % rank, *words),
                              env=environment(PYTHONPATH=str(tmp_path / "installed")), stdout=subprocess.PIPE,
                              universal_newlines=True) for rank in (0, 1)]
    outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert "Epoch: [0][0/1]" in outputs[0] and "Epoch" not in outputs[1]
    saved = checkpoint.load(str(tmp_path / "out" / "checkpoint.pth.tar"))
    assert saved["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.02)


def test_more_ranks_than_images(trained, tmp_path):
    """A rank without a validation batch takes its part in the evaluation of the others: two images on three ranks."""
    write_images(tmp_path / "val", classes=2, per_class=1)
    words = ["--testModel=%s" % (trained[0] / "final_state.pth.tar"), "--bs=4"]
    several = subprocess.run([sys.executable] + command("valid.py", tmp_path, "--device_list=0,1,2", *words), env=environment(),
                             timeout=300, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    assert several.returncode == 0, several.stderr
    (loss, accuracies), (wanted, expected) = (re.search(r"^Test: .*\tLoss ([\d.]+)\t(.*)$", text, re.M).groups()
                                              for text in (several.stdout, program("valid.py", tmp_path, *words)))
    assert accuracies == expected and float(loss) == pytest.approx(float(wanted), rel=1e-3)

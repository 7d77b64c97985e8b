"""HRNet's programs and test scripts: what they leave, how they go on after a kill, what they say to bad input."""
import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch

from common import checkpoint, cli, data, records
from common.distributed import Rank
from conftest import (ROOT, assert_bad_input, environment, load_script, run_script, start_script, wait_until)

SMALL = os.path.join(ROOT, "HRNet", "experiments", "cls_hrnet_w18_small_v1_sgd_lr5e-2_wd1e-4_bs32_x100.yaml")
NETWORK = "HRNet_ID1780_for_PyTorch"
TINY_SCRIPT = ["--device=cpu", "--cfg=" + SMALL, "--num_classes=4", "--image_size=32", "--workers=0", "--learning_rate=0.01"]
TINY_PROGRAM = ["--cfg=" + SMALL, "--device=cpu", "--workers=0"]
TINY_CONFIG = ["MODEL.NUM_CLASSES", "4", "MODEL.IMAGE_SIZE", "[32, 32]", "LOG_DIR", ""]


def tiny(tiny_imagenet, output_path, *options):
    return ["--data_path=%s" % tiny_imagenet, "--output_path=%s" % output_path] + TINY_SCRIPT + list(options)


def program(monkeypatch, name, tiny_imagenet, *words):
    """Run tools/train.py or tools/valid.py in this process; `words` may end in KEY VALUE overrides."""
    flags = [word for word in words if word.startswith("--")]
    overrides = [word for word in words if not word.startswith("--")]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    seed = ["--seed=3"] if name == "train.py" else []
    monkeypatch.setattr(sys, "argv", [name, str(tiny_imagenet)] + TINY_PROGRAM + seed + flags + TINY_CONFIG + overrides)
    previous = signal.getsignal(signal.SIGTERM)
    try:
        load_script("HRNet/tools/%s" % name).main()
    finally:
        signal.signal(signal.SIGTERM, previous)


def summary(output_path):
    with open(os.path.join(str(output_path), "report.json")) as stream:
        return json.load(stream)


def case_lines(output_path, case):
    with open(os.path.join(str(output_path), case + ".log")) as stream:
        return dict(line.rstrip("\n").split(" = ") for line in stream)


def same(first, second):
    return list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def trained(tiny_imagenet, tmp_path_factory):
    """The output folder and the process of a whole train_full_1p.sh, in a folder whose name needs quoting."""
    output_path = tmp_path_factory.mktemp("out $HOME 'x'")
    done = run_script("HRNet/test/train_full_1p.sh", *tiny(
        tiny_imagenet, output_path, "--batch_size=12", "--train_epochs=2", "--opt_level=O0"))
    return output_path, done


# ---- the six scripts -----------------------------------------------------------------------------------------------------

def test_train_full_1p(trained):
    """A training leaves the agreed files, lines and checkpoint layout."""
    output_path, done = trained
    assert done.returncode == 0, done.stderr
    case = case_lines(output_path, NETWORK + "_bs12_1p_acc")
    assert (case["Network"], case["RankSize"], case["BatchSize"]) == (NETWORK, "1", "12")
    fps = float(case["ActualFPS"])
    assert float(case["TrainingTime"]) == pytest.approx(12000 / fps, rel=1e-2)
    block = done.stdout[done.stdout.index("------------------ Final result"):]
    assert "Final Performance images/sec : %s\n" % case["ActualFPS"] in block
    assert "Final Train Accuracy : %s\n" % case["TrainAccuracy"] in block
    assert "Epoch: [1][0/6]\t\tTime " in done.stdout  # 64 images: five batches of 12 and one of 4
    assert "Test: Time " in done.stdout and "Data Average :\t\t" in done.stdout

    saved = checkpoint.load(str(output_path / "checkpoint.pth.tar"))
    assert (saved["epoch"], saved["model"], type(saved["perf"])) == (2, "cls_hrnet", float)
    assert {"state_dict", "optimizer", "amp", "seed", "step"} <= set(saved)
    final = checkpoint.load(str(output_path / "final_state.pth.tar"))
    assert same(final, saved["state_dict"])
    best = checkpoint.load(str(output_path / "model_best.pth.tar"))
    assert list(best) == list(final)


@pytest.mark.parametrize("ranks", [1, 2])
def test_train_eval(trained, tiny_imagenet, tmp_path, ranks):
    """Evaluation finds the accuracy and the loss of training's last validation, on 1 rank and on several."""
    training = summary(trained[0])["summary"]
    done = run_script("HRNet/test/train_eval_%s.sh" % ("1p" if ranks == 1 else "8p"), *tiny(
        tiny_imagenet, tmp_path, "--batch_size=8", "--pth_path=%s" % (trained[0] / "final_state.pth.tar"), "--device_list=0,1"))
    assert done.returncode == 0, done.stderr
    found = summary(tmp_path)["summary"]
    assert found["val.top1"] == training["val.top1"]
    assert found["val.loss"] == pytest.approx(training["val.loss"], rel=1e-4)
    case = case_lines(tmp_path, NETWORK + "_bs8_%dp_eval" % ranks)
    assert "ActualFPS" not in case and case["TrainAccuracy"] == "%.3f" % training["val.top1"]
    assert "Final Performance" not in done.stdout


def test_train_performance_1p(tiny_imagenet, tmp_path):
    """The performance script stops the epoch and its validation early, and trains in mixed precision."""
    done = run_script("HRNet/test/train_performance_1p.sh", *tiny(tiny_imagenet, tmp_path, "--batch_size=6", "--max_steps=3"))
    assert done.returncode == 0, done.stderr
    report = summary(tmp_path)
    assert report["summary"]["steady_steps"] + report["summary"]["warmup_steps"] == 3
    right = report["summary"]["val.top1"] * 18 / 100  # three steps of six images, not the 20 of the set
    assert right == pytest.approx(round(right), abs=1e-6)
    assert report["parameters"]["opt_level"] == "O2"
    assert os.path.exists(str(tmp_path / (NETWORK + "_bs6_1p_perf.log")))


def test_train_performance_8p(tiny_imagenet, tmp_path):
    """Several ranks: the batch is that of one card, the time a step covers all, the learning rate is multiplied."""
    done = run_script("HRNet/test/train_performance_8p.sh", *tiny(
        tiny_imagenet, tmp_path, "--batch_size=4", "--max_steps=4", "--device_list=0,1", "--opt_level=O0"))
    assert done.returncode == 0, done.stderr
    case = case_lines(tmp_path, NETWORK + "_bs4_2p_perf")
    assert (case["BatchSize"], case["RankSize"]) == ("4", "2")
    assert float(case["TrainingTime"]) == pytest.approx(8000 / float(case["ActualFPS"]), rel=1e-2)
    parameters = summary(tmp_path)["parameters"]
    assert parameters["config"]["TRAIN"]["LR"] == pytest.approx(0.02)
    assert parameters["world_size"] == 2
    assert done.stdout.count("Epoch: [0][0/4]") == 1  # one rank prints


def test_train_full_8p(tiny_imagenet, tmp_path):
    """The whole course on several ranks ends with one set of files and the whole validation set counted once."""
    done = run_script("HRNet/test/train_full_8p.sh", *tiny(
        tiny_imagenet, tmp_path, "--batch_size=16", "--train_epochs=1", "--device_list=0,1", "--opt_level=O0"))
    assert done.returncode == 0, done.stderr
    top1 = summary(tmp_path)["summary"]["val.top1"]
    assert top1 * 20 / 100 == pytest.approx(round(top1 * 20 / 100), abs=1e-6)
    assert sorted(name for name in os.listdir(str(tmp_path)) if name.endswith(".tar")) == [
        "checkpoint.pth.tar", "final_state.pth.tar", "model_best.pth.tar"]


# ---- going on ------------------------------------------------------------------------------------------------------------

def test_resume_is_exact(tiny_imagenet, tmp_path):
    """Killed in the middle of the second epoch, the script with --resume ends with the weights of an uninterrupted run."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    options = ["--batch_size=8", "--train_epochs=3", "--opt_level=O0", "--checkpoint_steps=3"]
    process = start_script("HRNet/test/train_full_1p.sh", *tiny(tiny_imagenet, killed, *options))
    saved = str(killed / "checkpoint.pth.tar")

    def in_second_epoch():
        content = checkpoint.load(saved) if os.path.exists(saved) else {}
        return (content.get("epoch"), content.get("step", 0) > 0) == (1, True)

    wait_until(in_second_epoch)
    process.send_signal(signal.SIGKILL)
    process.wait()
    interrupted = checkpoint.load(saved)
    assert interrupted["epoch"] < 3
    done = run_script("HRNet/test/train_full_1p.sh", *tiny(tiny_imagenet, killed, "--resume", *options))
    assert done.returncode == 0, done.stderr
    assert "going on with" in done.stdout

    command = [sys.executable, os.path.join(ROOT, "HRNet", "tools", "train.py"), str(tiny_imagenet), "--cfg", SMALL,
               "--device=cpu", "--workers=1", "--bs=8", "--lr=0.01", "--train_epochs=3", "--seed=%d" % interrupted["seed"],
               "--output_path=%s" % whole] + TINY_CONFIG
    subprocess.run(command, check=True, env=environment(), stdout=subprocess.DEVNULL)
    first, second = (checkpoint.load(str(path / "checkpoint.pth.tar")) for path in (killed, whole))
    assert same(first["state_dict"], second["state_dict"])
    assert (first["perf"], first["results"]["val.loss"]) == (second["perf"], second["results"]["val.loss"])


def test_sigterm_saves(tiny_imagenet, tmp_path):
    """SIGTERM writes a checkpoint in mid-epoch and ends with status 143."""
    process = start_script("HRNet/test/train_full_1p.sh", *tiny(
        tiny_imagenet, tmp_path, "--batch_size=4", "--train_epochs=50", "--opt_level=O0"))
    wait_until(lambda: any("train.loss" in record.get("data", {}) for record in written(tmp_path)))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 143
    assert checkpoint.load(str(tmp_path / "checkpoint.pth.tar"))["step"] > 0


def written(output_path):
    path = str(output_path / "metrics.jsonl")
    return [record for record in records.read(path) if isinstance(record.get("data"), dict)] if os.path.exists(path) else []


def test_train_resume_key_says_so(monkeypatch, capsys, tiny_imagenet, tmp_path):
    """With TRAIN.RESUME True a second run goes on with the first and says so; with False it starts anew."""
    flags = ["--modelDir=%s" % tmp_path, "--train_epochs=1", "--stop_step=1", "--bs=4"]
    folder = tmp_path / "imagenet" / os.path.basename(SMALL).split(".")[0]
    program(monkeypatch, "train.py", tiny_imagenet, *flags)
    assert "going on" not in capsys.readouterr().out
    program(monkeypatch, "train.py", tiny_imagenet, *(flags + ["--train_epochs=2"]))
    said = "going on with %s (TRAIN.RESUME is True): epoch 1, step 0" % (folder / "checkpoint.pth.tar")
    assert said in capsys.readouterr().out
    assert checkpoint.load(str(folder / "checkpoint.pth.tar"))["epoch"] == 2
    program(monkeypatch, "train.py", tiny_imagenet, *(flags + ["TRAIN.RESUME", "False"]))
    assert "going on" not in capsys.readouterr().out
    assert checkpoint.load(str(folder / "checkpoint.pth.tar"))["epoch"] == 1


def test_upstream_checkpoint(monkeypatch, capsys, tiny_imagenet, tmp_path):
    """A checkpoint in upstream's layout is resumed at its epoch; a worse model does not replace the best one."""
    flags = ["--output_path=%s" % tmp_path, "--train_epochs=1", "--stop_step=1", "--bs=4"]
    program(monkeypatch, "train.py", tiny_imagenet, *flags)
    ours = checkpoint.load(str(tmp_path / "checkpoint.pth.tar"))
    theirs = {"epoch": 40, "model": "cls_hrnet", "perf": torch.tensor(100.0), "optimizer": ours["optimizer"],
              "state_dict": {"module." + key: value for key, value in ours["state_dict"].items()}}
    source = str(tmp_path / "upstream.pth.tar")
    torch.save(theirs, source)
    os.remove(str(tmp_path / "model_best.pth.tar"))
    program(monkeypatch, "train.py", tiny_imagenet, *(flags + ["--resume=" + source, "--train_epochs=41"]))
    out = capsys.readouterr().out
    assert "epoch 40, step 0" in out and "holds no amp" in out
    assert "Epoch: [40][0/1]" in out and "Epoch: [39]" not in out
    saved = checkpoint.load(str(tmp_path / "checkpoint.pth.tar"))
    assert (saved["epoch"], saved["perf"]) == (41, 100.0)
    assert not os.path.exists(str(tmp_path / "model_best.pth.tar"))
    # Resumed at epoch 40, the rate has decayed once, not twice: TRAIN.LR 0.05 x 0.1.
    assert saved["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.005)


def test_pretrained_is_its_own_file(monkeypatch, trained, tiny_imagenet, tmp_path):
    """--pretrained loads the file that it names, and a training that starts there is at epoch 0."""
    weights = str(trained[0] / "model_best.pth.tar")
    program(monkeypatch, "train.py", tiny_imagenet, "--pretrained=" + weights, "--output_path=%s" % tmp_path,
            "--train_epochs=1", "--stop_step=1", "--bs=4", "TRAIN.LR", "0.0", "TRAIN.MOMENTUM", "0.0", "TRAIN.NESTEROV", "False")
    saved = checkpoint.load(str(tmp_path / "checkpoint.pth.tar"))
    start = checkpoint.load(weights)
    assert saved["epoch"] == 1
    assert torch.equal(saved["state_dict"]["classifier.weight"], start["classifier.weight"])


# ---- programs ------------------------------------------------------------------------------------------------------------

def test_stop_step_values():
    """--stop_step is a number of steps; the port's TRUE means 200, and FALSE is no stop."""
    stop_step = load_script("HRNet/tools/train.py").stop_step
    assert (stop_step("TRUE"), stop_step("False"), stop_step("17")) == (200, None, 17)
    with pytest.raises(Exception, match="not an integer of at least 1"):
        stop_step("0")


def test_epoch_lengths():
    """An epoch keeps its last images: ImageNet has 5005 steps of 256 on one card and 626 on each of eight."""
    def batches(length, batch, rank, world):
        return data.TrainBatches(length, batch, Rank(rank, world, rank, torch.device("cpu")), seed=1, drop_last=False)

    assert len(batches(1281167, 256, 0, 1)) == 5005
    assert len(batches(1281167, 256, 3, 8)) == 626
    seen = [[index for batch in batches(21, 4, rank, 2) for _, index in batch] for rank in (0, 1)]
    assert [len(part) for part in seen] == [11, 11]
    assert sorted(set(seen[0] + seen[1])) == list(range(21))
    sampler = torch.utils.data.distributed.DistributedSampler(range(21), num_replicas=2, rank=1)
    sampler.set_epoch(1)  # the seed takes the epoch's part where a version has none
    assert list(sampler) == seen[1]
    resumed = batches(21, 4, 1, 2)
    resumed.set_epoch(0, first_step=2)
    assert [len(batch) for batch in resumed] == [3]


def parsed(*words):
    return load_script("HRNet/tools/train.py").parser().parse_intermixed_args(["--cfg=" + SMALL, "--device=cpu"] + list(words))


def test_nproc_is_divided(monkeypatch, tmp_path):
    """--nproc counts the loader processes of all cards, --workers those of one process."""
    options = load_script("HRNet/tools/train.py").options
    args = parsed("--device_list=0,1,2", "--nproc=8", "data")
    assert options.settle(args, [], options.layout(args)[0]).workers == 2
    args = parsed("--device_list=0,1,2", "--nproc=8", "--workers=5", "data")
    assert options.settle(args, [], options.layout(args)[0]).workers == 5


def test_positional_words():
    """The data path may be left out, and KEY VALUE overrides may follow it or stand alone."""
    options = load_script("HRNet/tools/train.py").options
    for words, expected in ((["data", "TRAIN.WD", "0.0"], ("data", 0.0)), (["TRAIN.WD", "0.0"], ("imagenet/images", 0.0)),
                            (["data"], ("data", 0.0001))):
        args = parsed(*words)
        args = options.settle(args, [], options.layout(args)[0])
        assert (args.data_path, args.config.TRAIN.WD) == expected


@pytest.mark.parametrize("words, message", [
    (["--dn=2", "--device_id=2"], "no rank of --dn=2"),
    (["--dn=4", "--device_list=0,1"], "--dn=4, but 2 rank"),
])
def test_ranks_that_do_not_fit(words, message):
    """--dn, --device_id and --device_list must agree."""
    with pytest.raises(cli.UserError, match=message):
        load_script("HRNet/tools/train.py").options.layout(parsed(*words))


def test_ranks_started_by_hand(tiny_imagenet, tmp_path):
    """One process a card with --device_id and --dn, as old scripts start them, is one training."""
    command = [sys.executable, os.path.join(ROOT, "HRNet", "tools", "train.py"), str(tiny_imagenet), "--addr=127.0.0.1",
               "--dn=2", "--master_port=%d" % free_port(), "--nproc=0", "--lr=0.01", "--bs=4", "--train_epochs=1",
               "--stop_step=2", "--output_path=%s" % tmp_path, "--seed=3"] + TINY_PROGRAM
    ranks = [subprocess.Popen(command + ["--device_id=%d" % rank] + TINY_CONFIG, env=environment(),
                              stdout=subprocess.PIPE, universal_newlines=True) for rank in (0, 1)]
    outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert "Epoch: [0][0/2]" in outputs[0] and "Epoch" not in outputs[1]
    parameters = [record["data"] for record in records.read(str(tmp_path / "metrics.jsonl")) if record.get("step") == "PARAMETER"]
    assert parameters[0]["config"]["TRAIN"]["LR"] == pytest.approx(0.02)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_valid_takes_final_state(monkeypatch, capsys, tiny_imagenet, tmp_path):
    """Without a weights file valid.py evaluates final_state.pth.tar of the experiment's folder, and writes nothing."""
    flags = ["--modelDir=%s" % tmp_path, "--bs=4"]
    program(monkeypatch, "train.py", tiny_imagenet, *(flags + ["--train_epochs=1", "--stop_step=1"]))
    folder = tmp_path / "imagenet" / os.path.basename(SMALL).split(".")[0]
    before = sorted(os.listdir(str(folder)))
    capsys.readouterr()
    program(monkeypatch, "valid.py", tiny_imagenet, *flags)
    out = capsys.readouterr().out
    assert "=> loading model from %s" % (folder / "final_state.pth.tar") in out and "Test: Time" in out
    assert sorted(os.listdir(str(folder))) == before


def test_what_a_person_may_not_mean_is_said(monkeypatch, capsys, tiny_imagenet, tmp_path):
    """The log says which settings nothing reads, that the network has spare outputs, and that the rate is for more devices."""
    program(monkeypatch, "train.py", tiny_imagenet, "--output_path=%s" % tmp_path, "--train_epochs=1", "--stop_step=1",
            "--bs=4", "TRAIN.SHUFFLE", "False", "MODEL.NUM_CLASSES", "9")
    out = capsys.readouterr().out
    assert "TRAIN.SHUFFLE, which nothing reads" in out
    assert "the data set has 4 classes, the network 9 outputs" in out
    assert "TRAIN.LR 0.05 is used as it is, but the config is for 4 devices (GPUS) and 1 take part" in out
    assert checkpoint.load(str(tmp_path / "final_state.pth.tar"))["classifier.bias"].shape == (9,)


def test_tensorboard(monkeypatch, tiny_imagenet, tmp_path):
    """LOG_DIR gets TensorBoard events, in upstream's folder for them."""
    pytest.importorskip("tensorboard")
    program(monkeypatch, "train.py", tiny_imagenet, "--output_path=%s" % (tmp_path / "out"), "--train_epochs=1", "--stop_step=1",
            "--bs=4", "LOG_DIR", str(tmp_path / "log"))
    folder, = (tmp_path / "log" / "imagenet" / "cls_hrnet").iterdir()
    assert folder.name.startswith("cls_hrnet_w18_small_v1") and any("tfevents" in path.name for path in folder.iterdir())


def test_without_tensorboard(monkeypatch, capsys, tiny_imagenet, tmp_path):
    """Where TensorBoard is not installed, the upstream files' LOG_DIR costs a line in the log and not the training."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    program(monkeypatch, "train.py", tiny_imagenet, "--output_path=%s" % (tmp_path / "out"), "--train_epochs=1", "--stop_step=1",
            "--bs=4", "LOG_DIR", str(tmp_path / "log"))
    assert "no events in LOG_DIR" in capsys.readouterr().out
    assert not (tmp_path / "log").exists() and (tmp_path / "out" / "final_state.pth.tar").exists()


# ---- bad input -----------------------------------------------------------------------------------------------------------

def test_bad_input_of_scripts(trained, tiny_imagenet, tmp_path):
    """One line says what is wrong; status 2; the output folder is not even made."""
    yaml = tmp_path / "mine.yaml"
    yaml.write_text("TRAIN:\n  LRR: 0.1\n")
    weights = "--pth_path=%s" % (trained[0] / "final_state.pth.tar")
    output_path = tmp_path / "out"
    train, evaluate = "HRNet/test/train_full_1p.sh", "HRNet/test/train_eval_1p.sh"
    for script, options, words in (
            (train, ["--cfg=%s" % yaml], [yaml, "unknown config key TRAIN.LRR", "TRAIN.LR"]),
            (train, ["--num_classes=3"], ["4 classes", "3 outputs", "MODEL.NUM_CLASSES"]),
            (evaluate, [weights, "--cfg=" + SMALL.replace("small_v1", "small_v2")], ["not a checkpoint of this network"]),
            (evaluate, [], ["--pth_path is missing"]),
            (train, ["--learn_rate=1"], ["unknown option --learn_rate"])):
        done = run_script(script, *(tiny(tiny_imagenet, output_path, "--batch_size=8") + options))
        assert_bad_input(done, *words)
        assert not output_path.exists()


@pytest.mark.parametrize("name, words, message", [
    ("train.py", ["TRAIN.OPTIMIZER", "lion"], "small_v1.*TRAIN.OPTIMIZER.*lion.*rmsprop"),
    ("train.py", ["MODEL.EXTRA.STAGE3.NUM_BLOCKS", "[2, 2]"], "small_v1.*STAGE3.NUM_BRANCHES is 3.*2 entries"),
    ("train.py", ["MODEL.NAME", "resnet"], "small_v1.*MODEL.NAME.*cls_hrnet"),
    ("train.py", ["TRAIN.LR", "1"], "TRAIN.LR.*float"),
    ("train.py", ["MODEL.IMAGE_SIZE", "[100, 100]"], "100 pixels.*96 does"),
    ("train.py", ["--bs=7"], "single image"),
    ("train.py", ["--lr=-1", "--bs=4"], "learning rate"),
    ("train.py", ["DATASET.TEST_SET", "test"], "no folder test/"),
    ("train.py", ["--cfg=nowhere.yaml"], "nowhere.yaml cannot be read"),
    ("train.py", ["--pretrained=HALF"], "half.pth.tar is (truncated|not a checkpoint)"),
    ("train.py", ["--resume=HALF"], "half.pth.tar is (truncated|not a checkpoint)"),
    ("train.py", ["--pretrained=nowhere.pth"], "no weights file nowhere.pth"),
    ("valid.py", ["--testModel=WEIGHTS", "MODEL.NUM_CLASSES", "9"], "classifier.weight is 4x2048.*9x2048"),
    ("valid.py", [], "no weights file .*final_state.pth.tar"),
])
def test_bad_input_of_programs(monkeypatch, trained, tiny_imagenet, tmp_path, name, words, message):
    """What makes no training is one line that names the key and the file, before anything is written."""
    weights, half = trained[0] / "final_state.pth.tar", tmp_path / "half.pth.tar"
    half.write_bytes(weights.read_bytes()[:100000])
    words = [word.replace("WEIGHTS", str(weights)).replace("HALF", str(half)) for word in words]
    output_path = tmp_path / "out"
    with pytest.raises(cli.UserError, match=message):
        program(monkeypatch, name, tiny_imagenet, "--output_path=%s" % output_path, *words)
    assert not output_path.exists()

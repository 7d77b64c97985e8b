"""FixRes' scripts and programs: three phases in a row, which rank sees which image, upstream's lines, jobs and ways to start ranks."""
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

from common import checkpoint, cli, records, report
from conftest import ROOT, assert_bad_input, block, environment, free_port, load_script, run_script, write_images
from imnet_common import networks
from test_fixres_golden import GOLDEN

pytestmark = pytest.mark.usefixtures("narrow_networks")
TRAIN_1P, FINETUNE_1P, EVAL_1P = ("FixRes/test/%s_1p.sh" % name for name in ("train_full", "finetune_full", "train_eval"))
TINY = ["--device=cpu", "--opt_level=O0", "--workers=0", "--num_classes=4"]
TINY_FLAGS = ["--device=cpu", "--num_classes=4", "--input_size=32", "--workers=1"]
BN = ["layer4.2.bn3." + name for name in ("running_mean", "running_var", "num_batches_tracked")]
ACCURACY = re.compile(r"^Validation accuracy: .*$", re.M)


def program(entry, *options):
    """Run an entry script with one rank in this process, and return what it prints."""
    previous = signal.getsignal(signal.SIGTERM)
    with mock.patch.object(sys, "argv", [entry] + TINY_FLAGS + list(options)):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            load_script("FixRes/%s.py" % entry).main()
    signal.signal(signal.SIGTERM, previous)
    return printed.getvalue()


def loaded(out, name="checkpoint.pth.tar"):
    return checkpoint.load(str(out / name))


def differing(one, other):
    return [key for key in one["model"] if not torch.equal(one["model"][key], other["model"][key])]


@pytest.fixture(scope="module")
def weights(narrow_networks, tmp_path_factory):
    """A file of ResNet-50's weights for 4 classes, with `module.`."""
    path = tmp_path_factory.mktemp("weights") / "four.pth"
    state = networks.build("ResNet50", 4).state_dict()
    torch.save({"model": {"module." + key: value for key, value in state.items()}}, str(path))
    return path


@pytest.fixture(scope="module")
def phases(narrow_networks, tiny_imagenet, tmp_path_factory):
    """Phase 1 at 48 pixels, evaluation of its weights at 64, phase 2 at 64, evaluation: output path and result blocks.

    Not at 32: there the last stage is a single pixel, and the outer weights of its 3x3 convolutions are never trained."""
    out = tmp_path_factory.mktemp("three phases $1") / "o p"
    (out / "after").mkdir(parents=True)
    (out / "after" / "model_best.pth.tar").write_text("")
    (out / "after" / "report.json").write_text("")
    (out / "after" / ".run.files").write_text("model_best.pth.tar\nreport.json\n")
    runs = {"train": (TRAIN_1P, out, ["--image_size=48", "--train_epochs=5", "--eval_freq=3", "--learning_rate=0.01"]),
            "before": (EVAL_1P, out, ["--image_size=64", "--pth_path=%s" % (out / "checkpoint.pth.tar")]),
            "finetune": (FINETUNE_1P, out, ["--image_size=64", "--train_epochs=3", "--learning_rate=0.01", "--pth_path=%s" % out]),
            "after": (EVAL_1P, out / "after", ["--image_size=64", "--pth_path=%s" % (out / "finetune")])}
    common = ["--data_path=%s" % tiny_imagenet, "--batch_size=16"] + TINY
    return out, {name: block(run_script(script, "--output_path=%s" % folder, *(common + options)))
                 for name, (script, folder, options) in runs.items()}


def test_phase_1_prints_and_saves_as_upstream(phases):
    """Upstream's lines and rate; its entries in the checkpoint, of which there is a copy after each evaluation."""
    out, results = phases
    log = (out / "train_0.log").read_text()
    assert len(re.findall(r"^\[0\d, 00009\] loss: \d+\.\d{3} time: \d+\.\d{3}$", log, re.M)) == 5
    assert len(re.findall(r"\n\nEpoch \d: [\d.]+ fps\n\n", log)) == 5
    accuracy = float(ACCURACY.findall(log)[-1].split()[-1])
    assert results["train"]["Final Train Accuracy"] == "%.3f" % (100 * accuracy)
    assert report.summary(str(out / "metrics.jsonl"))[0]["base_learning_rate"] == pytest.approx(8 * 0.01 * 16 / 512)
    content, golden = loaded(out), [train["result"] for train in GOLDEN["variants"][0]["train"]]
    assert set(golden[0]["checkpoint_top_level_keys"]) | {"amp", "step", "results"} <= set(content)
    assert content["accuracy"] == pytest.approx(accuracy) and (content["epoch"], content["lr_scheduler"]["last_epoch"]) == (5, 4)
    assert ["module." + next(iter(content["model"]))] == [golden[0]["checkpoint_first_model_key"]]
    assert len(content["optimizer"]["state"]) == golden[0]["checkpoint_optimizer_momentum_buffers"]
    assert len(loaded(out / "finetune")["optimizer"]["state"]) == golden[-1]["checkpoint_optimizer_momentum_buffers"]
    assert {"checkpoint_2.pth.tar", "checkpoint_4.pth.tar", "eval", "finetune"} < set(os.listdir(str(out)))


def test_phase_2_starts_from_the_given_weights(phases):
    """The accuracy before the first epoch is that of phase 1's weights at the new resolution: --pth_path is used (defect 2).
    Then only fc and the statistics of the last BatchNorm change."""
    out, results = phases
    before = records.read(str(out / "finetune" / "metrics.jsonl"))[-1]["data"]["val.top1_before"]
    assert "%.3f" % before == results["before"]["Final Train Accuracy"]
    assert "before the first epoch: top-1 %.1f %%" % before in (out / "finetune" / "train_0.log").read_text()
    assert differing(loaded(out), loaded(out / "finetune")) == BN + ["fc.weight", "fc.bias"]


def test_phase_3_measures_what_phase_2_did(phases):
    """Fine-tuning at the higher resolution has lost no accuracy there. An evaluation reports a pair, in per cent, and writes no weights;
    those in its output path stay there: they may be its input."""
    out, results = phases
    first, before, after = (float(results[phase]["Final Train Accuracy"]) for phase in ("train", "before", "after"))
    assert first > 25.0 and after >= before  # four classes: it has learned something
    assert results["finetune"]["Final Finetune Accuracy"] == results["after"]["Final Train Accuracy"]
    assert "FinetuneAccuracy = " in (out / "finetune" / "FixRes_for_PyTorch_bs16_1p_acc.log").read_text()
    assert set(os.listdir(str(out / "eval"))) == {"FixRes_for_PyTorch_bs16_1p_eval.log", "metrics.jsonl", "report.json", "train_0.log", ".run.files"}
    assert (out / "after" / "model_best.pth.tar").exists() and sorted(os.listdir(str(out / "after" / "earlier-1"))) == [".run.files", "report.json"]
    log = (out / "after" / "train_0.log").read_text()
    assert "Validation accuracy: (%.5f, 100.00000)\n" % after in log and "'val_top1': " in log and "'val_top5': " in log


def test_rate_of_the_ascend_port(weights, tiny_imagenet, tmp_path):
    """--lr_scaling=none leaves the rate alone on two ranks; batch and processes are those of one card. A relative output path is below
    the caller's folder (defect 15)."""
    block(run_script("FixRes/test/finetune_performance_8p.sh", "--data_path=%s" % tiny_imagenet, *TINY, "--image_size=32", "--workers=2",
                     "--batch_size=16", "--device_list=0,1", "--max_steps=4", "--pth_path=%s" % weights,
                     "--lr_scaling=none", "--accumulate=2", "--output_path=o", cwd=str(tmp_path)))
    used = report.summary(str(tmp_path / "o" / "metrics.jsonl"))[0]
    assert [used[key] for key in ("world_size", "batch", "batch_per_rank", "workers", "base_learning_rate")] == [2, 8, 4, 2, 0.001]
    assert loaded(tmp_path / "o")["global_batch"] == 16


@pytest.mark.parametrize("entry, options, folder", [("main_resnet50_scratch", [], "."), ("main_finetune", ["--transforms=v2"], "finetune")])
def test_a_known_job_goes_on(weights, tiny_imagenet, tmp_path, entry, options, folder):
    """As upstream's: a job id whose checkpoint is there continues from it, bit for bit, instead of starting anew (defect 14).
    The loss of a line is the plain mean over the batches since the line before. All that on another device than 0 (defect 11)."""
    def run(job, epochs):
        printed = program(entry, "--imnet_path=%s" % tiny_imagenet, "--batch=16", "--max_steps=4", "--print_freq=2", "--eval_freq=9",
                          "--pth_path=%s" % weights, "--epochs=%d" % epochs, "--job_id=" + job, "--local_rank=3",
                          "--shared_folder_path=%s" % tmp_path, *options)
        return re.findall(r"^(before the first epoch: .*|\[\d\d, \d{5}\] loss: \d+\.\d{3}) ?(?:time: \d+\.\d{3})?$", printed, re.M)

    lines = run("two", 1) + run("two", 2)
    assert lines == run("one", 2) and len(lines) == (4 if entry == "main_resnet50_scratch" else 5)
    assert differing(*(loaded(tmp_path / folder / job, "checkpoint.pth") for job in ("one", "two"))) == []
    first, second = [record["data"]["train.loss_mean"] for record in records.read(str(tmp_path / folder / "one" / "metrics.jsonl"))
                     if len(record.get("step", "")) == 2][:2]
    heads, means = zip(*[line.split(" loss: ") for line in lines[-4:]])
    assert heads == ("[00, 00001]", "[00, 00003]", "[01, 00001]", "[01, 00003]")
    assert [float(mean) for mean in means[:2]] == pytest.approx([first, 2 * second - first], abs=6e-4)


def recorded(tmp_path, entry, *options):
    """Run an entry script on four real processes, with as many images as the golden sequences for four ranks have; return what each
    rank read: a list of (split, draw, index, digest)."""
    write_images(tmp_path / "train", per_class=6)
    (tmp_path / "train" / "n00000003" / "n00000003_5.JPEG").unlink()
    write_images(tmp_path / "val", classes=4, per_class=2, seed=1)
    (tmp_path / "records").mkdir()
    command = [sys.executable, os.path.join(ROOT, "ci", "fixres_recorder.py"), str(tmp_path / "records"), entry, "--num_tasks=4",
               "--batch=6", "--imnet_path=%s" % tmp_path, "--shared_folder_path=made when needed", "--job_id=j", "--epochs=2"]
    done = subprocess.run(command + TINY_FLAGS + list(options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
                          timeout=600, env=environment(), cwd=str(tmp_path))
    assert done.returncode == 0, done.stdout[-3000:]
    lines = [[line.split() for line in (tmp_path / "records" / ("rank-%d.txt" % rank)).read_text().splitlines()] for rank in range(4)]
    return [[(split, int(draw), int(index), digest) for split, draw, index, digest in images] for images in lines]


def of(split, images):
    """Return the indices of the images of a split, and their pictures: (index, digest)."""
    chosen = [image for image in images if image[0] == split]
    return [image[2] for image in chosen], [image[2:] for image in chosen]


def golden_sequences(group):
    """Return {rank: its golden case} for 23 images on four ranks."""
    return {case["rank"]: case for case in GOLDEN[group]["cases"] if (case["dataset_len"], case["num_replicas"]) == (23, 4)}


def test_each_rank_trains_on_its_own_images(tmp_path):
    """Every rank reads its own golden sequence, whatever --accumulate; every copy of an image is augmented differently (defect 1),
    and validation reads every image once over all ranks (defect 7)."""
    found = recorded(tmp_path, "main_resnet50_scratch", "--eval_freq=9", "--accumulate=2")
    for rank, case in golden_sequences("ra_sampler").items():
        assert of("train", found[rank])[0] == case["epochs"][0]["indices"] + case["epochs"][1]["indices"]
    pictures = of("train", sum(found, []))[1]
    assert len(pictures) == 2 * 72 and len(set(pictures)) == len(pictures)
    assert sorted(of("val", sum(found, []))[0]) == list(range(8))
    assert (tmp_path / "made when needed" / "j" / "checkpoint.pth").exists()


def test_each_rank_finetunes_on_its_own_images(weights, tmp_path):
    """In fine-tuning every rank reads its own part, the same in both epochs, and not augmented."""
    found = recorded(tmp_path, "main_finetune", "--pth_path=%s" % weights)
    parts = [of("train", images)[0][:6] for images in found]
    assert [of("train", images)[0] for images in found] == [2 * part for part in parts]
    assert all(parts[rank] == case["indices"] for rank, case in golden_sequences("distributed_sampler").items())
    assert sorted(set(sum(parts, []))) == list(range(23)) and sum(map(len, parts)) == 24
    assert len(set(of("train", sum(found, []))[1])) == 23 and sorted(of("val", sum(found, []))[0]) == sorted(2 * list(range(8)))


def test_every_way_to_start_ranks_gives_one_accuracy(weights, tiny_imagenet):
    """One rank, PyTorch's launcher (which passes --local-rank) and tasks started by hand agree to the digit. The weights have
    `module.`, and DDP is not asked to wrap a frozen network (defects 4 to 6)."""
    options = ["--imnet_path=%s" % tiny_imagenet, "--batch=6", "--weight_path=%s" % weights]
    command = [os.path.join(ROOT, "FixRes", "main_evaluate_imnet.py")] + TINY_FLAGS + options
    ports = ["--master_port=%d" % free_port() for _ in range(2)]
    launched = ["-m", "torch.distributed.launch", "--nproc_per_node=2", ports[0]] + command
    by_hand = [command + ["--num_tasks=2", ports[1], "--global_rank=%d" % rank, "--local_rank=%d" % rank] for rank in (0, 1)]
    one = ACCURACY.findall(program("main_evaluate_imnet", *options))
    for commands in ([launched], by_hand):
        processes = [subprocess.Popen([sys.executable] + words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
                                      env=environment()) for words in commands]
        outputs = "".join(process.communicate(timeout=300)[0] for process in processes)
        assert [process.returncode for process in processes] == [0] * len(commands), outputs
        assert ACCURACY.findall(outputs) == one != []


@pytest.mark.slow
def test_pnasnet_is_finetuned(tiny_imagenet, tmp_path):
    """Another architecture gets through its evaluations and a step, from weights of its own (defect 17)."""
    torch.save(networks.build("PNASNet", 4).state_dict(), str(tmp_path / "w.pth"))
    options = ["--imnet_path=%s" % tiny_imagenet, "--pth_path=%s" % (tmp_path / "w.pth"), "--shared_folder_path=%s" % tmp_path]
    assert ACCURACY.search(program("main_finetune", "--architecture=PNASNet", "--input_size=96", "--batch=4", "--epochs=1", "--max_steps=1",
                                   *options))


def test_bad_input(tmp_path, monkeypatch):
    """What is particular to the phases. A missing data set is not taken for a missing shared folder (defect 13)."""
    monkeypatch.chdir(tmp_path)
    for entry, words in (("main_resnet50_scratch", "/nowhere is not a folder; .*train/"), ("main_evaluate_imnet", "--weight_path")):
        with pytest.raises(cli.UserError, match=words):
            program(entry, "--imnet_path=/nowhere")
    assert os.listdir(str(tmp_path)) == []
    assert_bad_input(run_script(FINETUNE_1P, "--data_path=/"), "--pth_path is missing")

"""FixRes through its real scripts: three phases in a row, which rank sees which image, exact resume, bad input."""
import json
import os
import re
import shutil
import socket
import subprocess
import sys

import pytest
import torch

from common import checkpoint, records, report
from conftest import (ROOT, assert_bad_input, environment, run_script, running_in, script_command, start_script, wait_until,
                      write_images)
from test_fixres_golden import GOLDEN

TEST = "FixRes/test/"
TRAIN_1P, TRAIN_8P = TEST + "train_full_1p.sh", TEST + "train_full_8p.sh"
FINETUNE_1P, FINETUNE_8P = TEST + "finetune_full_1p.sh", TEST + "finetune_full_8p.sh"
EVAL_1P, EVAL_8P = TEST + "train_eval_1p.sh", TEST + "train_eval_8p.sh"
TINY = ["--device=cpu", "--opt_level=O0", "--workers=0", "--num_classes=4", "--image_size=32"]
BN = ["layer4.2.bn3." + name for name in ("running_mean", "running_var", "num_batches_tracked")]


def block(done):
    """Return the result block of a finished script as a dictionary; the script must have succeeded."""
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = done.stdout.splitlines()
    start = lines.index("------------------ Final result ------------------")
    return dict(line.split(" : ") for line in lines[start + 1:])


def last_record(out):
    return records.read(str(out / "metrics.jsonl"))[-1]["data"]


def parameters(out):
    return report.summary(str(out / "metrics.jsonl"))[0]


def loaded(out):
    return checkpoint.load(str(out / "checkpoint.pth.tar"))


# --- three phases in a row --------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def phases(tiny_imagenet, tmp_path_factory):
    """Phase 1 at 48 pixels, evaluation of its weights at 64, phase 2 at 64, evaluation: output paths and result blocks.

    Not at 32: there the last stage is a single pixel, and the outer weights of its 3x3 convolutions are never trained."""
    out = tmp_path_factory.mktemp("three phases $1") / "o p"
    common = ["--data_path=%s" % tiny_imagenet] + TINY + ["--batch_size=16"]
    high = common + ["--image_size=64"]
    results = {"train": block(run_script(TRAIN_1P, *common, "--image_size=48", "--train_epochs=5", "--eval_freq=3", "--learning_rate=0.01",
                                         "--output_path=%s" % out))}
    results["before"] = block(run_script(EVAL_1P, *high, "--pth_path=%s" % (out / "checkpoint.pth.tar"), "--output_path=%s" % out))
    results["finetune"] = block(run_script(FINETUNE_1P, *high, "--train_epochs=3", "--learning_rate=0.01", "--pth_path=%s" % out,
                                           "--output_path=%s" % out))
    results["after"] = block(run_script(EVAL_1P, *high, "--pth_path=%s" % (out / "finetune"), "--output_path=%s" % (out.parent / "after")))
    return out, results


def test_phase_1_leaves_what_it_should(phases):
    """Result block, files, log lines and records of a training, in a path with blanks and a `$`."""
    out, results = phases
    result = results["train"]
    assert list(result) == ["Final Performance images/sec", "Final Train Accuracy", "Best Train Accuracy", "E2E Training Duration sec"]
    assert sorted(os.listdir(str(out))) == ["FixRes_for_PyTorch_bs16_1p_acc.log", "checkpoint.pth.tar", "checkpoint_2.pth.tar",
                                            "checkpoint_4.pth.tar", "eval", "finetune", "metrics.jsonl", "model_best.pth.tar",
                                            "report.json", "train_0.log"]
    log = (out / "train_0.log").read_text()
    assert len(re.findall(r"^\[0\d, 00009\] loss: \d+\.\d{3} time: \d+\.\d{3}$", log, re.M)) == 5
    assert len(re.findall(r"\n\nEpoch \d: [\d.]+ fps\n\n", log)) == 5
    accuracy = float(re.findall(r"^Validation accuracy: (\S+)$", log, re.M)[-1])
    assert result["Final Train Accuracy"] == "%.3f" % (100 * accuracy)
    assert parameters(out)["base_learning_rate"] == pytest.approx(8 * 0.01 * 16 / 512)
    assert json.loads((out / "report.json").read_text())["case"]["ranks"] == 1


def test_checkpoint_has_upstreams_entries(phases):
    """model, optimizer, lr_scheduler, epoch and accuracy as upstream, and what exact resume needs, the loss scale among it."""
    out, results = phases
    content = loaded(out)
    golden = [train["result"] for train in GOLDEN["variants"][0]["train"]]
    assert set(golden[0]["checkpoint_top_level_keys"]) | {"amp", "step", "results"} <= set(content)
    assert content["accuracy"] == pytest.approx(float(results["train"]["Final Train Accuracy"]) / 100, abs=1e-5)
    assert ["module." + next(iter(content["model"]))] == [golden[0]["checkpoint_first_model_key"]]
    assert len(content["optimizer"]["state"]) == golden[0]["checkpoint_optimizer_momentum_buffers"]
    assert len(loaded(out / "finetune")["optimizer"]["state"]) == golden[-1]["checkpoint_optimizer_momentum_buffers"]
    assert content["epoch"] == 5 and content["step"] == 0


def test_finetuning_starts_from_the_given_weights(phases):
    """The accuracy before the first epoch is that of phase 1's weights at the new resolution: --pth_path is used (defect 2)."""
    out, results = phases
    before = last_record(out / "finetune")["val.top1_before"]
    assert "%.3f" % before == results["before"]["Final Train Accuracy"]
    assert "before the first epoch: top-1 %.1f %%" % before in (out / "finetune" / "train_0.log").read_text()


def test_finetuning_changes_five_entries(phases):
    """Between the checkpoints of the two phases only fc and the statistics of the last BatchNorm differ."""
    out, _ = phases
    before, after = loaded(out)["model"], loaded(out / "finetune")["model"]
    assert [key for key in before if not torch.equal(before[key], after[key])] == BN + ["fc.weight", "fc.bias"]


def test_three_phases_end_higher(phases):
    """Fine-tuning at the higher resolution does not lose accuracy there, and phase 3 measures what phase 2 did."""
    out, results = phases
    before, after = (float(results[phase]["Final Train Accuracy"]) for phase in ("before", "after"))
    assert float(results["train"]["Final Train Accuracy"]) > 25.0  # four classes: it has learned something
    assert after >= before
    assert results["finetune"]["Final Finetune Accuracy"] == results["after"]["Final Train Accuracy"]
    assert list(results["finetune"]) == ["Final Performance images/sec", "Final Finetune Accuracy", "Best Finetune Accuracy",
                                         "E2E Finetuning Duration sec"]
    case = dict(line.split(" = ") for line in (out / "finetune" / "FixRes_for_PyTorch_bs16_1p_acc.log").read_text().splitlines())
    assert list(case)[5:] == ["ActualFPS", "FinetuningTime", "FinetuneAccuracy", "ActualLoss", "E2EFinetuningTime"]


def test_phase_3_leaves_what_it_should(phases):
    """An evaluation reports a pair, in per cent, writes no weights, and leaves those of phase 1 where they are."""
    out, results = phases
    assert list(results["after"]) == ["Final Train Accuracy", "E2E Training Duration sec"]
    assert sorted(os.listdir(str(out / "eval"))) == ["FixRes_for_PyTorch_bs16_1p_eval.log", "metrics.jsonl", "report.json", "train_0.log"]
    log = (out.parent / "after" / "train_0.log").read_text()
    top1, top5 = re.search(r"^Validation accuracy: \(([\d.]+), ([\d.]+)\)$", log, re.M).groups()
    assert "%.3f" % float(top1) == results["after"]["Final Train Accuracy"] and float(top5) == 100.0  # four classes
    assert "'val_top1': " in log and "'val_top5': " in log


@pytest.mark.slow
def test_three_phases_on_the_demo_data(tmp_path):
    """The same on the digits of the demo data, at 48 and 64 pixels."""
    subprocess.check_call([sys.executable, os.path.join(ROOT, "tools", "make_demo_data.py"), "--out", str(tmp_path), "--what", "imagenet",
                           "--train", "600", "--val", "200"], env=environment())
    common = ["--data_path=%s" % (tmp_path / "imagenet"), "--device=cpu", "--opt_level=O0", "--workers=1", "--num_classes=10",
              "--batch_size=64", "--learning_rate=0.004"]
    high = common + ["--image_size=64", "--train_epochs=4"]
    first = block(run_script(TRAIN_1P, *common, "--image_size=48", "--train_epochs=6", "--output_path=%s" % (tmp_path / "train"),
                             timeout=1800))
    second = block(run_script(FINETUNE_1P, *high, "--pth_path=%s" % (tmp_path / "train"), "--output_path=%s" % (tmp_path / "finetune")))
    third = block(run_script(EVAL_1P, *high, "--pth_path=%s" % (tmp_path / "finetune"), "--output_path=%s" % (tmp_path / "eval")))
    before = last_record(tmp_path / "finetune")["val.top1_before"]
    print("top-1 at 48: %s; at 64 before: %.3f, after: %s" % (first["Final Train Accuracy"], before, third["Final Train Accuracy"]))
    assert float(third["Final Train Accuracy"]) >= before
    assert second["Final Finetune Accuracy"] == third["Final Train Accuracy"]


# --- ranks ------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def twenty_three(tmp_path_factory):
    """A data set with as many training images as in the golden sequences for four ranks, and 10 for validation."""
    root = tmp_path_factory.mktemp("23")
    write_images(root / "train", per_class=6)
    (root / "train" / "n00000003" / "n00000003_5.JPEG").unlink()
    write_images(root / "val", classes=4, per_class=2, seed=1)
    return root


def recorded(folder, entry, *options):
    """Run an entry script on real processes; return what each rank read: a list of (split, draw, index, digest)."""
    folder.mkdir()
    command = [sys.executable, os.path.join(ROOT, "ci", "fixres_recorder.py"), str(folder), entry] + list(options)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, timeout=600,
                          env=environment(), cwd=str(folder.parent))
    assert done.returncode == 0, done.stdout[-3000:]
    found = {}
    for name in os.listdir(str(folder)):
        lines = [line.split() for line in (folder / name).read_text().splitlines()]
        found[int(name[len("rank-"):-len(".txt")])] = [(split, int(draw), int(index), digest) for split, draw, index, digest in lines]
    return found


def four_tasks(data_path, tmp_path):
    return ["--imnet_path=%s" % data_path, "--device=cpu", "--num_tasks=4", "--num_classes=4", "--input_size=32", "--batch=6", "--workers=1",
            "--shared_folder_path=%s" % (tmp_path / "made when needed"), "--job_id=j"]


def golden_sequence(group, rank, epoch=0):
    for case in GOLDEN[group]["cases"]:
        if (case["dataset_len"], case["num_replicas"], case["rank"]) == (23, 4, rank):
            return case["epochs"][epoch]["indices"] if "epochs" in case else case["indices"]
    return None


def test_each_rank_trains_on_its_own_images(twenty_three, tmp_path):
    """Real processes: every rank reads its own golden sequence, every copy of an image is augmented differently (defect 1),
    and validation reads every image once over all ranks (defect 7)."""
    found = recorded(tmp_path / "records", "main_resnet50_scratch", *four_tasks(twenty_three, tmp_path), "--epochs=2", "--eval_freq=9")
    assert sorted(found) == [0, 1, 2, 3]
    for rank, images in found.items():
        indices = [index for split, _, index, _ in images if split == "train"]
        assert indices == golden_sequence("ra_sampler", rank, 0) + golden_sequence("ra_sampler", rank, 1)
    seen = [image for images in found.values() for image in images]
    pictures = [(index, digest) for split, _, index, digest in seen if split == "train"]
    assert len(pictures) == 2 * 72 and len(set(pictures)) == len(pictures)
    assert sorted(index for split, _, index, _ in seen if split == "val") == list(range(8))
    assert (tmp_path / "made when needed" / "j" / "checkpoint.pth").exists()


def test_each_rank_finetunes_on_its_own_images(twenty_three, tmp_path):
    """Real processes: in fine-tuning every rank reads its own part, the same in both epochs, and not augmented."""
    torch.save(network_state(4), str(tmp_path / "w.pth"))
    found = recorded(tmp_path / "records", "main_finetune", *four_tasks(twenty_three, tmp_path), "--epochs=2",
                     "--pth_path=%s" % (tmp_path / "w.pth"))
    parts = {}
    for rank, images in found.items():
        indices = [index for split, _, index, _ in images if split == "train"]
        parts[rank] = indices[:6]
        assert indices == 2 * parts[rank]
        assert parts[rank] == (golden_sequence("distributed_sampler", rank) or parts[rank])
    assert sorted(set(sum(parts.values(), []))) == list(range(23)) and sum(map(len, parts.values())) == 24
    seen = set((index, digest) for images in found.values() for split, _, index, digest in images if split == "train")
    assert len(seen) == 23
    assert sorted(index for images in found.values() for split, _, index, _ in images if split == "val") == sorted(2 * list(range(8)))
    assert (tmp_path / "made when needed" / "finetune" / "j" / "checkpoint.pth").exists()


def network_state(classes):
    from imnet_common import networks
    torch.manual_seed(0)
    return networks.build("ResNet50", classes).state_dict()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_every_way_to_start_ranks_gives_one_accuracy(tiny_imagenet, tmp_path):
    """One rank, two spawned ranks, PyTorch's launcher (which passes --local-rank) and tasks started by hand agree to the digit.
    The weights have `module.`, and DDP is not asked to wrap a frozen network (defects 4 to 6)."""
    torch.save({"model": {"module." + key: value for key, value in network_state(4).items()}}, str(tmp_path / "w.pth"))
    entry = os.path.join(ROOT, "FixRes", "main_evaluate_imnet.py")
    options = [entry, "--imnet_path=%s" % tiny_imagenet, "--device=cpu", "--num_classes=4", "--input_size=32", "--batch=6", "--workers=1",
               "--weight_path=%s" % (tmp_path / "w.pth")]
    by_hand = ["--num_tasks=2", "--master_port=%d" % free_port()]
    launcher = ["-m", "torch.distributed.launch", "--nproc_per_node=2", "--master_port=%d" % free_port()]
    starts = {"one": [options], "spawned": [options + ["--num_tasks=2"]], "launcher": [launcher + options],
              "by hand": [options + by_hand + ["--global_rank=%d" % rank, "--local_rank=%d" % rank] for rank in (0, 1)]}
    lines = {}
    for name, commands in starts.items():
        processes = [subprocess.Popen([sys.executable] + command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
                                      env=environment()) for command in commands]
        outputs = "".join(process.communicate(timeout=300)[0] for process in processes)
        assert [process.returncode for process in processes] == [0] * len(commands), outputs
        lines[name] = re.findall(r"^Validation accuracy: .*$", outputs, re.M)
    assert lines["one"] and all(found == lines["one"] for found in lines.values()), lines


@pytest.mark.slow
def test_pnasnet_is_finetuned_through_the_script(tiny_imagenet, tmp_path):
    """Another architecture gets through its evaluations and a step, from weights of its own (defect 17)."""
    from imnet_common import networks
    torch.save(networks.build("PNASNet", 4).state_dict(), str(tmp_path / "w.pth"))
    result = block(run_script(FINETUNE_1P, "--data_path=%s" % tiny_imagenet, *TINY, "--image_size=96", "--architecture=PNASNet",
                              "--batch_size=4", "--train_epochs=1", "--max_steps=1", "--pth_path=%s" % (tmp_path / "w.pth"),
                              "--output_path=%s" % (tmp_path / "o")))
    assert result["Final Finetune Accuracy"] != "not measured"


def test_another_device_than_0(tiny_imagenet, tmp_path):
    """A run on device 3 prints, evaluates and saves like one on device 0 (defect 11), and one step is a run (defect 9)."""
    result = block(run_script(TRAIN_1P, "--data_path=%s" % tiny_imagenet, *TINY, "--batch_size=16", "--train_epochs=1", "--max_steps=1",
                              "--device_id=3", "--output_path=%s" % (tmp_path / "o")))
    assert result["Final Performance images/sec"] == "not measured" and result["Final Train Accuracy"] != "not measured"
    assert (tmp_path / "o" / "train_3.log").exists() and (tmp_path / "o" / "checkpoint.pth.tar").exists()


@pytest.mark.parametrize("script, kind", [("train_performance_8p.sh", "Train"), ("finetune_performance_8p.sh", "Finetune")])
def test_performance_8p_on_eight_ranks(tiny_imagenet, tmp_path, script, kind):
    """Eight gloo ranks through the performance scripts; rate, loader processes and batch are those of eight cards."""
    torch.save(network_state(4), str(tmp_path / "w.pth"))
    options = ["--pth_path=%s" % (tmp_path / "w.pth")] if kind == "Finetune" else []
    result = block(run_script(TEST + script, "--data_path=%s" % tiny_imagenet, *TINY, "--batch_size=16", "--max_steps=3", "--workers=8",
                              "--output_path=%s" % (tmp_path / "o"), *options))
    assert float(result["Final Performance images/sec"]) > 0 and "Final %s Accuracy" % kind in result
    assert "RankSize = 8" in (tmp_path / "o" / "FixRes_for_PyTorch_bs16_8p_perf.log").read_text()
    used = parameters(tmp_path / "o")
    assert (used["world_size"], used["batch"], used["workers"]) == (8, 2, 2)
    assert used["base_learning_rate"] == pytest.approx((0.02 if kind == "Train" else 0.001) * 16 / 64)


@pytest.mark.parametrize("script, kind", [("train_performance_1p.sh", "Train"), ("finetune_performance_1p.sh", "Finetune")])
def test_performance_1p(tiny_imagenet, tmp_path, script, kind):
    """The performance scripts at the recipe's mixed precision, from another folder, with a relative output path (defect 15)."""
    torch.save(network_state(4), str(tmp_path / "w.pth"))
    options = ["--pth_path=w.pth"] if kind == "Finetune" else []
    done = run_script(TEST + script, "--data_path=%s" % tiny_imagenet, "--device=cpu", "--num_classes=4", "--image_size=32",
                      "--batch_size=8", "--workers=1", "--max_steps=4", "--output_path=o", *options, cwd=str(tmp_path))
    assert float(block(done)["Final Performance images/sec"]) > 0
    assert parameters(tmp_path / "o")["learning_rate"] == (0.02 if kind == "Train" else 0.001)


def test_8p_scripts_agree_with_1p(tiny_imagenet, phases, tmp_path):
    """Phase 2 on two ranks, at the scaled rate and at the port's, and phase 3 on three: the figure of one rank."""
    out, _ = phases
    common = ["--data_path=%s" % tiny_imagenet] + TINY + ["--image_size=64"]
    for scaling, rate in (("global-batch", 0.00025), ("none", 0.001)):
        result = block(run_script(FINETUNE_8P, *common, "--batch_size=16", "--device_list=0,1", "--train_epochs=1", "--max_steps=2",
                                  "--pth_path=%s" % out, "--lr_scaling=" + scaling, "--output_path=%s" % (tmp_path / scaling)))
        assert parameters(tmp_path / scaling)["base_learning_rate"] == pytest.approx(rate)
    one = block(run_script(EVAL_1P, *common, "--batch_size=20", "--max_steps=1", "--pth_path=%s" % (tmp_path / "none"),
                           "--output_path=%s" % (tmp_path / "1")))
    three = block(run_script(EVAL_8P, *common, "--batch_size=21", "--device_list=0,1,2", "--pth_path=%s" % (tmp_path / "none"),
                             "--output_path=%s" % (tmp_path / "3")))
    assert one["Final Train Accuracy"] == three["Final Train Accuracy"] == result["Final Finetune Accuracy"]


def test_help_of_every_script():
    """--help answers with the options, their defaults and one example, and runs nothing."""
    names = ["%s_%s_%s.sh" % (phase, kind, ranks) for phase in ("train", "finetune") for kind in ("full", "performance")
             for ranks in ("1p", "8p")] + ["train_eval_1p.sh", "train_eval_8p.sh"]
    for name in names:
        done = run_script(TEST + name, "--help")
        assert done.returncode == 0 and "--pth_path" in done.stdout and "Example:\n  bash test/" + name in done.stdout


def test_an_evaluation_does_not_set_its_weights_aside(tmp_path):
    """Weights in the output path of an evaluation are its input; reports of an earlier run make room as always."""
    for name in ("model_best.pth.tar", "report.json"):
        (tmp_path / name).write_text("")
    summary = "DLLL " + json.dumps({"type": "LOG", "step": [], "data": {"val.top1": 50.0}})
    command = 'cd "$1" && test -f model_best.pth.tar && test ! -f report.json && echo "$2" > metrics.jsonl'
    done = subprocess.run([sys.executable, os.path.join(ROOT, "common", "run.py"), "--network=N", "--batch-size=1", "--ranks=1",
                           "--suffix=eval", "--kind=eval", "--output-path=%s" % tmp_path, "--", "sh", "-c", command, "sh", str(tmp_path),
                           summary], stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    assert block(done)["Final Train Accuracy"] == "50.000" and (tmp_path / "earlier-1" / "report.json").exists()


# --- exact resume -----------------------------------------------------------------------------------------------------

RUN = TINY + ["--batch_size=16", "--train_epochs=2", "--max_steps=7", "--checkpoint_steps=3"]
STEPS = 7


def steps_done(out):
    """Return how many updates the newest checkpoint has seen, -1 without one."""
    try:
        state = loaded(out)
    except Exception:
        return -1
    return state["epoch"] * STEPS + state["step"]


RESUMED = [(TRAIN_1P, []), (TRAIN_8P, ["--device_list=0,1"]), (FINETUNE_1P, ["--transforms=v2"]),
           pytest.param(FINETUNE_8P, ["--device_list=0,1", "--transforms=v2"], marks=pytest.mark.slow)]


@pytest.mark.parametrize("script, options", RESUMED, ids=["train 1 rank", "train 2 ranks", "finetune 1 rank", "finetune 2 ranks"])
def test_killed_runs_resume_exactly(tiny_imagenet, tmp_path, script, options):
    """SIGKILL in the middle of each epoch, --resume after each: bit for bit the model and momentum of an uninterrupted run."""
    options = ["--data_path=%s" % tiny_imagenet] + RUN + options
    if "finetune" in script:
        torch.save(network_state(4), str(tmp_path / "w.pth"))
        options += ["--pth_path=%s" % (tmp_path / "w.pth"), "--max_steps=7", "--batch_size=8"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    result = block(run_script(script, *options, "--output_path=%s" % whole))
    for moment in (3, STEPS + 3):
        process = start_script(script, *(options + ["--output_path=%s" % cut] + (["--resume"] if moment > 3 else [])))
        wait_until(lambda: steps_done(cut) >= moment or process.poll() is not None, interval=0.005)
        assert process.poll() is None, "the run ended before it could be killed"
        process.kill()
        process.wait()
        wait_until(lambda: not running_in(cut), timeout=20)
    resumed = block(run_script(script, *options, "--resume", "--output_path=%s" % cut))
    for part in ("model", "optimizer"):
        assert_equal(loaded(cut)[part], loaded(whole)[part])
    title = next(key for key in result if key.startswith("Final") and "Accuracy" in key)
    assert resumed[title] == result[title]
    assert last_record(cut).get("val.top1_before") == last_record(whole).get("val.top1_before")


def assert_equal(one, other):
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_equal(one[key], other[key])
    elif torch.is_tensor(one):
        assert torch.equal(one, other)
    else:
        assert one == other


def test_a_known_job_goes_on(tiny_imagenet, tmp_path):
    """As upstream's: a job id whose checkpoint is there continues from it, bit for bit, instead of starting anew (defect 14)."""
    def run(job, epochs):
        subprocess.run([sys.executable, os.path.join(ROOT, "FixRes", "main_resnet50_scratch.py"), "--imnet_path=%s" % tiny_imagenet,
                        "--device=cpu", "--num_classes=4", "--input_size=32", "--batch=16", "--workers=1", "--max_steps=2",
                        "--epochs=%d" % epochs, "--job_id=" + job], cwd=str(tmp_path), check=True, env=environment())
        return checkpoint.load(str(tmp_path / "train_cache" / job / "checkpoint.pth"))

    run("two", 1)
    assert_equal(run("two", 2)["model"], run("one", 2)["model"])


# --- bad input --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("script, options, words", [
    (TRAIN_1P, ["--no_such_option=1"], ["unknown option --no_such_option"]),
    (TRAIN_1P, ["--eval_freq=0"], ["--eval_freq=0", "integer"]),
    (TRAIN_8P, [], ["--data_path is missing"]),
    (TRAIN_8P, ["--data_path=DATA", "--batch_size=20"], ["--batch_size=20", "multiple of 8"]),
    (TRAIN_1P, ["--data_path=/no/such $HOME/folder"], ["/no/such $HOME/folder"]),
    (TRAIN_1P, ["--data_path=EMPTY"], ["no folder train"]),
    (TRAIN_1P, ["--data_path=DATA", "--num_classes=3"], ["has 4 classes", "--num_classes 3"]),
    (FINETUNE_1P, ["--data_path=DATA"], ["--pth_path is missing"]),
    (FINETUNE_8P, ["--data_path=DATA", "--pth_path=/no/weights"], ["/no/weights"]),
    (FINETUNE_1P, ["--data_path=DATA", "--pth_path=EMPTY"], ["holds no weights", "checkpoint.pth"]),
    (FINETUNE_1P, ["--data_path=DATA", "--pth_path=WEIGHTS/seven.pth"], ["trained on 7 classes, this run has 4", "--num_classes"]),
    (FINETUNE_8P, ["--data_path=DATA", "--pth_path=WEIGHTS/seven.pth", "--device_list=0,1"], ["trained on 7 classes"]),
    (FINETUNE_1P, ["--data_path=DATA", "--pth_path=WEIGHTS/cut.pth"], ["cut.pth", "truncated"]),
    (FINETUNE_1P, ["--data_path=DATA", "--pth_path=WEIGHTS/four.pth", "--architecture=VGG"], ["--architecture=VGG", "PNASNet"]),
    (EVAL_1P, ["--data_path=DATA", "--pth_path=WEIGHTS/four.pth", "--architecture=PNASNet"], ["not a checkpoint of this network"]),
    (EVAL_8P, ["--data_path=DATA"], ["--pth_path is missing"]),
    (EVAL_1P, ["--pth_path=WEIGHTS/four.pth"], ["--data_path is missing"]),
])
def test_bad_input_touches_nothing(tiny_imagenet, weights, tmp_path, script, options, words):
    """One line that says what is wrong and what would be right, status 2, and not even an output folder."""
    (tmp_path / "empty").mkdir()
    places = {"DATA": tiny_imagenet, "EMPTY": tmp_path / "empty", "WEIGHTS": weights}
    for name, place in places.items():
        options = [option.replace(name, str(place)) for option in options]
    done = run_script(script, *(TINY + ["--output_path=%s" % (tmp_path / "a" / "o")] + options))
    assert_bad_input(done, *words)
    assert not (tmp_path / "a").exists()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with weights for 4 and for 7 classes, and a truncated file."""
    folder = tmp_path_factory.mktemp("weights")
    for name, classes in (("four", 4), ("seven", 7)):
        torch.save({"model": network_state(classes)}, str(folder / (name + ".pth")))
    shutil.copy(str(folder / "four.pth"), str(folder / "cut.pth"))
    with open(str(folder / "cut.pth"), "rb+") as stream:
        stream.truncate(100000)
    return folder


def test_entry_points_name_what_is_missing(tmp_path):
    """The Python programs say the same without the scripts; a missing data set is not taken for a missing shared folder (defect 13)."""
    for entry, options, words in (("main_resnet50_scratch.py", ["--imnet_path=/nowhere"], ["/nowhere is not a folder", "train/"]),
                                  ("main_evaluate_imnet.py", ["--imnet_path=/nowhere"], ["--weight_path"]),
                                  ("main_finetune.py", ["--nonsense"], ["--nonsense"])):
        done = subprocess.run([sys.executable, os.path.join(ROOT, "FixRes", entry), "--device=cpu"] + options, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, universal_newlines=True, cwd=str(tmp_path), env=environment())
        assert_bad_input(done, *words)
    assert os.listdir(str(tmp_path)) == []


def test_a_crash_is_a_failed_script(tiny_imagenet, tmp_path):
    """An exception inside the training: its status, the last lines of the log and the log's path; no result block (defect 8).
    Here: BatchNorm's refusal of a single value per channel."""
    done = subprocess.run(script_command(TRAIN_1P, "--data_path=%s" % tiny_imagenet, *TINY, "--batch_size=1",
                                         "--output_path=%s" % (tmp_path / "o")), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, env=environment())
    assert done.returncode == 1 and "Final" not in done.stdout
    assert "more than 1 value per channel" in done.stderr and "training failed with status 1" in done.stderr and "train_0.log" in done.stderr

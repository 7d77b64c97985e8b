"""--resume, and trainings that a launcher starts again: which checkpoint is taken, whose it is, and what stays as it was."""
import argparse
import json
import os
import subprocess
import sys
import time

import pytest
import torch

from common import checkpoint, cli, distributed, outputs, records, resume
from conftest import ROOT, assert_bad_input, block, differences, environment, free_port, load_script, run_script, script_command
from test_genet_data import write_cifar

ALONE = distributed.Rank(0, 1, 0, torch.device("cpu"))
NEVER, LONG_AGO = float("inf"), 1000.0

# --- what the flag takes ----------------------------------------------------------------------------------------------


def efficientnet_parser():
    from pycls.core import command
    return command._parser("", trains=True)


def fixres_parser():
    return load_script("FixRes/main_resnet50_scratch.py").parser()


PROGRAMS = {
    "ResNet50": (lambda: load_script("ResNet50/main.py").parser(), ["/data"], "<save-ckpt-path>/<checkpoint-nameprefix>.pth.tar"),
    "HRNet": (lambda: load_script("HRNet/tools/train.py").parser(), ["--cfg=x"], "<output-path>/checkpoint.pth.tar"),
    "GENet": (lambda: load_script("GENet/train.py").parser(), [], "<output-path>/checkpoint.pth.tar"),
    "EfficientNet-B3": (efficientnet_parser, ["--cfg=x"], "OUT_DIR/checkpoint.pth.tar"),
    "FixRes": (fixres_parser, [], "<checkpoint-file>, or <shared-folder-path>/<job-id>/checkpoint.pth"),
}


@pytest.mark.parametrize("model", sorted(PROGRAMS))
def test_what_the_flag_takes(model, capsys, tmp_path):
    """auto and a file, in upstream's spelling too; a bare --resume, which would swallow the next word, is refused with what is right.
    --help says which file auto is about."""
    make, words, own = PROGRAMS[model]
    parser = make()
    for given, value in ((["--resume=auto"], "auto"), (["--resume", "c.pth"], "c.pth"), ([], None)):
        assert parser.parse_args(given + words).resume == value
    for given in (["--resume"], ["--resume", "--device=cpu"], ["--resume="], ["--resume", str(tmp_path)]):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(given if given == ["--resume"] else given + words)
        error = capsys.readouterr().err
        assert ended.value.code == 2 and len(error.splitlines()) == 1 and "--resume=auto" in error and "--resume=FILE" in error
    assert own.replace(" ", "") in "".join(parser.format_help().split())  # lines break at hyphens


def test_what_the_option_of_the_scripts_takes(tmp_path):
    """A file that is not there is bad input, and nothing is touched; --help says what the option does."""
    script, out = "GENet/test/train_full_1p.sh", tmp_path / "o"
    words = ["--data_path=%s" % tmp_path, "--output_path=%s" % out, "--device=cpu"]
    assert_bad_input(run_script(script, *words + ["--resume=%s" % (tmp_path / "none.pth.tar")]), "none.pth.tar is no file", "--resume alone")
    assert_bad_input(run_script(script, *words + ["--resume="]), "no value, or the file of a checkpoint")
    assert not out.exists()


@pytest.mark.parametrize("script, flag", [("ResNet50/main.py", "--evaluate"), ("GENet/train.py", "--eval")])
def test_an_evaluation_wants_a_file(script, flag):
    """auto is the checkpoint of a training, if there is one: random weights would be evaluated where there is none."""
    program = load_script(script)
    with pytest.raises(cli.UserError, match="nothing to evaluate"):
        program.checked(program.parser().parse_args(["--resume=auto", "--dummy", flag]))


# --- which checkpoint -------------------------------------------------------------------------------------------------

def saved(path, epoch=1, step=0, **entries):
    checkpoint.save(dict(entries, epoch=epoch, step=step), str(path))


def test_auto_is_the_newest_of_the_own_ones(tmp_path):
    """The newest, the one before where it is gone, a new run where there is none; a file that is asked for has to be there."""
    own = str(tmp_path / "c.pth.tar")
    assert resume.choose("auto", own, ALONE) == ({}, "") == resume.choose("auto", None, ALONE)
    for epoch in (1, 2):
        checkpoint.save({"epoch": epoch, "step": 0}, own, keep=2)
    assert resume.choose("auto", own, ALONE) == ({"epoch": 2, "step": 0}, own)
    os.remove(own)
    assert resume.choose("auto", own, ALONE) == ({"epoch": 1, "step": 0}, own + ".1")
    assert resume.choose(None, own, ALONE) == ({}, "")
    for name in (own, own + ".2"):
        with pytest.raises(cli.UserError, match="no weights file %s" % name):
            resume.choose(name, own, ALONE)
    os.truncate(own + ".1", 10)
    with pytest.raises(cli.UserError, match="truncated"):
        resume.choose("auto", own, ALONE)


@pytest.mark.parametrize("name", ["c.pth.tar", "c.pth.tar.1"])
def test_ranks_that_are_started_again_take_what_they_have_written(tmp_path, monkeypatch, name):
    """Without --resume too; but not what an earlier run has left in the folder, and never where no torchrun has started them."""
    own = str(tmp_path / "c.pth.tar")
    saved(tmp_path / name)
    for launched_at, taken in ((NEVER, ""), (os.path.getmtime(str(tmp_path / name)) + 1, ""), (LONG_AGO, str(tmp_path / name))):
        monkeypatch.setattr(outputs, "launched_at", lambda: launched_at)
        assert resume.choose(None, own, ALONE)[1] == taken
        assert resume.choose("auto", own, ALONE)[1] == str(tmp_path / name)


def test_when_the_launcher_began():
    """The nearest ancestor without torchrun's variable is torchrun, whatever stands in between; its start is known to a second."""
    code = "import sys; sys.path.insert(0, %r); from common import outputs; print(outputs.launched_at())" % ROOT
    plain = [sys.executable, "-c", code]
    behind_a_shell = ["bash", "-c", '"$@"; true', "bash"] + plain
    now = time.time()
    times = [float(subprocess.run(command, stdout=subprocess.PIPE, env=environment(TORCHELASTIC_RUN_ID="none"), check=True).stdout)
             for command in (plain, behind_a_shell, behind_a_shell)]
    assert max(times) < now and max(times) - min(times) < 1
    assert subprocess.run(plain, stdout=subprocess.PIPE, env=environment(), check=True).stdout == b"inf\n"


# --- several machines -------------------------------------------------------------------------------------------------

def on_machines_of_their_own(args, rank):
    """Each rank as the first of a machine, with a path of its own; notes what it goes on with."""
    for folder, asked in args.cases:
        content, path = resume.choose(asked, os.path.join(folder, str(rank.rank), "c.pth.tar"), rank._replace(local_rank=0))
        with open(os.path.join(folder, "%d.json" % rank.rank), "w") as stream:
            json.dump([content.get("epoch"), content.get("step"), content and content["weights"].tolist(), path], stream)


def test_machines_with_paths_of_their_own(tmp_path, capfd):
    """Rank 0's machine has the checkpoint, or the one where rank 0 was before the restart: every rank gets the one that is furthest, and a
    line says where the records are. Of a file that is asked for, rank 0's is enough. Where no machine has any, a run begins."""
    cases, wanted = [], []
    for number, (there, source) in enumerate([({0: (1, 2)}, 0), ({0: (1, 2), 1: (1, 3)}, 1), ({0: (2, 0), 1: (1, 3)}, 0), ({}, None)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        for rank, (epoch, step) in there.items():
            saved(folder / str(rank) / "c.pth.tar", epoch, step, weights=torch.full((3,), rank + 0.1))
        cases.append((str(folder), "auto"))
        wanted.append([None, None, {}, ""] if source is None else list(there[source]) + [
            torch.full((3,), source + 0.1).tolist(), str(folder / str(source) / "c.pth.tar")])
    saved(tmp_path / "mine.pth.tar", 4, 1, weights=torch.ones(2))
    cases.append((str(tmp_path), str(tmp_path / "mine.pth.tar")))
    wanted.append([4, 1, [1.0, 1.0], str(tmp_path / "mine.pth.tar")])
    distributed.launch(on_machines_of_their_own, argparse.Namespace(cases=cases, stall_timeout=0), distributed.layout("cpu", [0, 1]))
    for rank in range(2):
        assert [json.loads(open(os.path.join(folder, "%d.json" % rank)).read()) for folder, _ in cases] == wanted
    assert capfd.readouterr().out.count("the newest checkpoint is that of rank 1") == 1


# --- another number of ranks ------------------------------------------------------------------------------------------

HAD = {"world_size": 4, "global_batch": 64}


@pytest.mark.parametrize("ranks, batch, accumulate, found", [
    (4, 16, 1, 16), (2, 16, 1, 32), (8, 16, 1, 8), (2, 8, 2, 16),
    (2, 32, 1, 32),  # it has the same images in an update already
    (4, 8, 1, 8), (2, 8, 1, 8)])  # another batch, which Progress.start_clock refuses
def test_an_update_keeps_its_images_on_other_ranks(monkeypatch, ranks, batch, accumulate, found):
    """Where a launcher starts fewer or more ranks with the same command, each takes more or fewer images; by hand nothing changes."""
    for name in resume._LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    rank = ALONE._replace(world_size=ranks)
    assert resume.batch_of_rank(batch, accumulate, HAD, rank) == batch
    monkeypatch.setenv("RANK", "0")
    assert resume.batch_of_rank(batch, accumulate, HAD, rank) == found
    assert resume.batch_of_rank(batch, accumulate, {}, rank) == batch


def test_an_update_that_cannot_be_divided(monkeypatch):
    """Both numbers are in the line."""
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(cli.UserError, match="64 images in an update, of 4 ranks; 3 ranks cannot share them evenly"):
        resume.batch_of_rank(16, 1, HAD, ALONE._replace(world_size=3))


# --- torchrun ---------------------------------------------------------------------------------------------------------

# Runs the program that its arguments name; once, rank 1 is killed when so many checkpoints have been written.
DIES_ONCE = """
import os, runpy, signal, sys
flag, count, sys.argv = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
sys.path[:0] = [os.path.dirname(sys.argv[0]), {root!r}]
from common.progress import Progress
save, seen = Progress.save, []
def save_and_die(self, copy_to=()):
    save(self, copy_to)
    seen.append(1)
    if self._rank.rank == 1 and len(seen) == count and not os.path.exists(flag):
        open(flag, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
Progress.save = save_and_die
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# What makes a run of a program small, and says where it writes. {data} and {out} are folders.
TINY = {
    "GENet": ["GENet/train.py", "--DataPath={cifar}", "--depth=10", "--width=1", "-b=8", "-j=0", "--epochs=2", "--output-path={out}"],
    "ResNet50": ["ResNet50/main.py", "{data}", "--arch=resnet18", "--image-size=32", "-b=8", "-j=0", "--epochs=2", "--lr=0.01",
                 "--save-ckpt-path={out}", "--workspace={out}", "--raport-file=metrics.jsonl"],
    "HRNet": ["HRNet/tools/train.py", "{data}", "--cfg=%s" % os.path.join(
        ROOT, "HRNet/experiments/cls_hrnet_w18_small_v1_sgd_lr5e-2_wd1e-4_bs32_x100.yaml"), "--bs=4", "--workers=0", "--train-epochs=2",
        "--lr=0.01", "--output-path={out}", "LOG_DIR", "", "MODEL.NUM_CLASSES", "4", "MODEL.IMAGE_SIZE", "[32,32]", "TRAIN.RESUME", "False"],
    "EfficientNet-B3": ["EfficientNet-B3/tools/train_net.py", "--cfg=%s" % os.path.join(
        ROOT, "EfficientNet-B3/configs/dds_baselines/effnet/EN-B3_dds_1npu_full.yaml"), "--data-path={data}",
        "OUT_DIR", "{out}", "NUM_GPUS", "{ranks}", "TRAIN.BATCH_SIZE", "8", "TEST.BATCH_SIZE", "8", "TRAIN.IM_SIZE", "32", "TEST.IM_SIZE", "36",
        "OPTIM.MAX_EPOCH", "2",
        "DATA_LOADER.NUM_WORKERS", "0", "PREC_TIME.NUM_ITER", "0", "TRAIN.MAX_STEPS", "3", "TRAIN.OPT_LEVEL", "O0",
        "TRAIN.SAVE_STEPS", "1", "TRAIN.AUTO_RESUME", "False"],
    "FixRes": ["FixRes/main_resnet50_scratch.py", "--imnet-path={data}", "--batch=4", "--input-size=48", "--num-classes=4", "--epochs=2",
               "--workers=1", "--eval-freq=1", "--checkpoint-file={out}/checkpoint.pth.tar"],
}


def trained(model, folder, out, *words, ranks=2, dies=()):
    """Train under torchrun, where `dies` says so with a rank that is killed after so many checkpoints; return the finished process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=%d" % ranks, "--rdzv-backend=c10d",
               "--rdzv-endpoint=127.0.0.1:%d" % free_port(), "--max-restarts=%d" % len(dies)]
    if dies:
        (folder / "dies.py").write_text(DIES_ONCE.format(root=ROOT))
        command += [str(folder / "dies.py"), str(folder / "killed"), str(dies[0])]
    places = {"data": folder / "data", "cifar": folder, "out": out, "ranks": ranks}
    program, *own = [word.format(**places) for word in TINY[model]]
    flags = ["--device=cpu"]
    if model != "EfficientNet-B3":
        flags += ["--seed=5", "--checkpoint-steps=1", ("--stop-step=" if model == "HRNet" else "--max-steps=") + "3"]
    command += [os.path.join(ROOT, program)] + flags + own + list(words)
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=600, env=environment())


def results(out):
    """Return (restarts, {step: results}) of the records of a run."""
    found = records.read(str(out / "metrics.jsonl"))
    measured = {tuple(record["step"]): {name: value for name, value in record["data"].items() if name[:6] in ("train.", "val.to", "val.lo")
                                        and not name.endswith(("ips", "wait", "time", "slowest_rank", "slowest_host"))}
                for record in found if isinstance(record.get("step"), list)}
    return [record["data"] for record in found if record.get("step") == "PARAMETER"][-1]["restarts"], measured


@pytest.mark.parametrize("model", [name if name == "GENet" else pytest.param(name, marks=pytest.mark.slow) for name in sorted(TINY)])
def test_a_killed_rank_is_started_again(model, tmp_path, tiny_imagenet):
    """torchrun --max-restarts=1 without --resume: the ranks go on in the middle of an epoch, with bit for bit the weights and the
    results of an undisturbed run, and the records say how often. What an earlier run has left in the folder is not taken for theirs."""
    pytest.importorskip("torch.distributed.run")
    write_cifar(tmp_path / "cifar-10-batches-py", per_batch=20)
    (tmp_path / "data").symlink_to(tiny_imagenet)
    whole, out = tmp_path / "whole", tmp_path / "o"
    done = trained(model, tmp_path, whole)
    assert done.returncode == 0, done.stderr[-3000:]
    for folder, _, names in os.walk(str(whole)):  # an earlier run, which is finished
        os.makedirs(folder.replace(str(whole), str(out)))
        for name in names:
            with open(os.path.join(folder, name), "rb") as one, open(os.path.join(folder.replace(str(whole), str(out)), name), "wb") as other:
                other.write(one.read())
            os.utime(other.name, (LONG_AGO, LONG_AGO))
    done = trained(model, tmp_path, out, dies=[2])
    assert done.returncode == 0 and (tmp_path / "killed").exists(), done.stderr[-3000:]
    restarts, measured = results(out)
    assert restarts == 1 and results(whole) == (0, measured)
    contents = [checkpoint.load(str(folder / "checkpoint.pth.tar")) for folder in (whole, out)]
    for content in contents:
        content.pop("cfg", "")  # EfficientNet-B3's, with the folder
    assert differences(*contents) == []


# The python3 of a script: the training is DIES_ONCE.
DYING_PYTHON = """#!/bin/bash
[[ ${{2:-}} != train.py ]] || exec {python} -u {folder}/dies.py {folder}/killed 2 "${{@:2}}"
exec {python} "$@"
"""


@pytest.mark.slow
def test_a_script_is_started_again(tmp_path):
    """torchrun --no-python with a script on two ranks: what the first attempt has written is not set aside, one block, and bit for bit the
    checkpoint of an undisturbed run."""
    pytest.importorskip("torch.distributed.run")
    write_cifar(tmp_path / "cifar-10-batches-py", per_batch=20)
    (tmp_path / "dies.py").write_text(DIES_ONCE.format(root=ROOT))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(DYING_PYTHON.format(python=sys.executable, folder=tmp_path))
    (tmp_path / "bin" / "python3").chmod(0o755)
    script, words = "GENet/test/train_full_8p.sh", [
        "--data_path=%s" % tmp_path, "--device=cpu", "--device_list=0,1", "--depth=10", "--width=1", "--workers=0", "--batch_size=8",
        "--opt_level=O0", "--train_epochs=2", "--max_steps=3", "--seed=3", "--checkpoint_steps=1"]
    whole, out = tmp_path / "whole", tmp_path / "o"
    block(run_script(script, *words + ["--output_path=%s" % whole]))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--no-python", "--nproc-per-node=2", "--max-restarts=1",
                "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:%d" % free_port()]
    env = environment()
    env["PATH"] = "%s:%s" % (tmp_path / "bin", env["PATH"])
    done = subprocess.run(launcher + script_command(script, *words + ["--output_path=%s" % out]), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=600, env=env)
    assert done.returncode == 0 and (tmp_path / "killed").exists(), done.stderr[-3000:]
    assert done.stdout.count("Final result") == 1 and results(out)[0] == 1
    assert sorted(os.listdir(str(out))) == sorted(os.listdir(str(whole)))
    assert differences(*(checkpoint.load(str(folder / "checkpoint.pth.tar")) for folder in (whole, out))) == []


@pytest.mark.slow
@pytest.mark.parametrize("model", sorted(TINY))
def test_a_run_goes_on_with_fewer_ranks(model, tmp_path, tiny_imagenet):
    """One machine of two is gone: the same command under a launcher of one rank goes on with the images of an update, the rate and the
    number of steps that it had."""
    pytest.importorskip("torch.distributed.run")
    write_cifar(tmp_path / "cifar-10-batches-py", per_batch=20)
    (tmp_path / "data").symlink_to(tiny_imagenet)
    out = tmp_path / "o"
    first, last = {"EfficientNet-B3": (["OPTIM.MAX_EPOCH", "1"], ["TRAIN.AUTO_RESUME", "True"]),
                   "HRNet": (["TRAIN.END_EPOCH", "1"], ["TRAIN.RESUME", "True"])}.get(model, (["--epochs=1"], ["--resume=auto"]))
    for ranks, words in ((2, first), (1, last)):
        done = trained(model, tmp_path, out, *words, ranks=ranks)
        assert done.returncode == 0, done.stderr[-3000:]
    content = checkpoint.load(str(out / "checkpoint.pth.tar"))
    assert (content["epoch"], content["global_batch"], content["world_size"]) == (2, 8, 1)
    rates = {tuple(record["step"]): record["data"]["lr"] for record in records.read(str(out / "metrics.jsonl"))
             if isinstance(record.get("step"), list) and len(record["step"]) == 1}
    assert set(rates) == {(0,), (1,)} and results(out)[0] == 1
    if model != "EfficientNet-B3":  # whose schedule changes it after each epoch
        assert rates[(0,)] == pytest.approx(rates[(1,)], rel=1e-9)

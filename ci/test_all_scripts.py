"""What the test/*.sh of every model promise, tested once for all of them.

A model is a directory with test/train_full_1p.sh; its line in TINY brings it in here. What is particular to it has a file of its
own. The tests of a model share its runs (`Model.once`): an undisturbed training on one rank, one on two, evaluations of it.
"""
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple

import pytest
import torch

from ci.campaign.forks import Forks
from common import checkpoint
from conftest import (MODELS, ROOT, assert_bad_input, block, differences, environment, free_port, group_of, run_script,
                      running_in, script_command, start_script, wait_until)
from test_genet_data import write_cifar

# What makes a model's runs small: options of its scripts; the layout of its data; a pattern of the network's name in the case
# files; whether --batch_size and --learning_rate are those of one rank; whether an epoch ends with a smaller batch.
Tiny = namedtuple("Tiny", "options layout network per_rank smaller_last")
SMALL_HRNET = os.path.join(ROOT, "HRNet", "experiments", "cls_hrnet_w18_small_v1_sgd_lr5e-2_wd1e-4_bs32_x100.yaml")
TINY = {
    "ResNet50": Tiny(["--arch=resnet18", "--image_size=32"], "imagenet", "ResNet50(_ID0095)?_for_PyTorch", False, False),
    "HRNet": Tiny(["--cfg=" + SMALL_HRNET, "--num_classes=4", "--image_size=32"], "imagenet", "HRNet_.*_for_PyTorch", True, True),
    "GENet": Tiny(["--depth=10", "--width=1"], "cifar", "GENET", False, True),
    "EfficientNet-B3": Tiny(["--image_size=32"], "imagenet", "EfficientNet-B3", False, False),
    "FixRes": Tiny(["--num_classes=4", "--image_size=48", "--eval_freq=1"], "imagenet", "FixRes_for_PyTorch", False, True),
    # The example, which test_example_model.py puts beside the others in a copy of the repository.
    "MobileNetV2": Tiny(["--num_classes=4", "--image_size=32"], "imagenet", "MobileNetV2_for_PyTorch", False, False),
}
EIGHT_RANKS = "GENet"  # whose performance script runs on all eight; the others on two

# Options of scripts that do nothing, and flags that the programs do not read when the scripts call them, and why: "Model script
# --option" or "Model program flag".
FILE_GIVEN, LEVEL_GIVEN = "--checkpoint-file is given", "--opt-level is given, and says it"
NO_EFFECT = {
    "ResNet50 main.py bin_mode": "upstream's; precompiled operators are always on",
    "ResNet50 main.py folder": "--data is given, and says it",
    "ResNet50 main.py amp": LEVEL_GIVEN, "ResNet50 main.py fp16": LEVEL_GIVEN, "ResNet50 main.py precision_mode": LEVEL_GIVEN,
    "FixRes main_resnet50_scratch.py job_id": FILE_GIVEN, "FixRes main_resnet50_scratch.py shared_folder_path": FILE_GIVEN,
    "FixRes main_finetune.py job_id": FILE_GIVEN, "FixRes main_finetune.py shared_folder_path": FILE_GIVEN,
    "FixRes main_evaluate_imnet.py job_id": "upstream's; an evaluation keeps no files",
    "FixRes main_evaluate_imnet.py shared_folder_path": "upstream's; an evaluation keeps no files",
}

FULL = {1: "train_full_1p.sh", 2: "train_full_8p.sh"}
EVAL = {1: "train_eval_1p.sh", 2: "train_eval_8p.sh"}
RANKS = pytest.mark.parametrize("ranks", [1, 2])
STEPS, EPOCHS, BATCH, RATE = 3, 3, 8, 0.01  # of the shared runs; evaluations are of 20 images

MEANS = {"train.loss", "train.loss_mean", "train.top1", "train.top5"}
RESULTS = MEANS | {"val.top1", "val.top5", "val.loss", "val.best_top1"}
# Keys of the records, by the number of numbers in their step.
KEYS = {2: MEANS | {"train.step_time", "train.data_time", "lr"}, 1: RESULTS | {"train.total_ips", "train.data_wait", "lr"},
        0: RESULTS | {"train.total_ips", "train.data_wait", "bad_images", "steady_steps", "warmup_steps", "peak_memory_bytes"}}
EVALUATION = {"val.top1", "val.top5", "val.loss", "bad_images"}
EARLIER = ["train_0.log", "metrics.jsonl", "checkpoint.pth.tar", "model_best.pth.tar"]
# Not results: they differ from run to run.
MEASURED = {"train.total_ips", "train.data_wait", "steady_steps", "warmup_steps", "train.step_time", "train.data_time",
            "peak_memory_bytes", "train.slowest_rank", "train.slowest_host", "train.slowest_time", "train.slowest_data_time",
            "train.median_time"}


# --- a model and its runs ---------------------------------------------------------------------------------------------

Ran = namedtuple("Ran", "out done")


class Model(object):
    """A model's scripts, and those of its runs that tests share."""

    def __init__(self, name, data, folder):
        self.name, self.tiny, self.data, self.folder = name, TINY[name], data, folder
        self.scripts = sorted(os.path.basename(path) for kind in ("train", "finetune")
                              for path in glob.glob(os.path.join(ROOT, name, "test", kind + "_*.sh")))
        self._once, self._help, self._forks = {}, {}, None

    def help(self, script):
        """Return {option: default} of --help, in its order."""
        if script not in self._help:
            found = re.findall(r"^  --(\w+) +(?:.*\[(.*)\]|.*)$", run_script(self.path(script), "--help").stdout, re.M)
            self._help[script] = {name: default for name, default in found if name != "help"}
        return self._help[script]

    def path(self, script):
        return "%s/test/%s" % (self.name, script)

    def words(self, script, out, *more, ranks=None, accumulate=1, data=None):
        """Return a script's path and the options of a small run, in which an update has BATCH images however it is divided."""
        on_list = "1p" not in script
        ranks = ranks or (2 if on_list else 1)
        parts = ranks * accumulate if self.tiny.per_rank else 1
        words = ["--data_path=%s" % (data or self.data), "--output_path=%s" % out, "--device=cpu", "--workers=0"]
        words += [word for word in self.tiny.options if word[2:].split("=")[0] in self.help(script)]
        words += ["--batch_size=%d" % (BATCH // parts)] + ["--device_list=" + ",".join(map(str, range(ranks)))] * on_list
        words += ["--opt_level=O0"] * ("performance" not in script)
        if "eval" not in script:
            words += ["--train_epochs=%d" % EPOCHS, "--max_steps=%d" % STEPS, "--seed=5", "--learning_rate=%s" % (RATE / parts)]
            words += ["--accumulate=%d" % accumulate] * (accumulate > 1)
        return [self.path(script)] + words + list(more)

    def run(self, script, out, *more, env=None, cwd=None, **division):
        """Run a script on the small data; return the finished process."""
        return run_script(*self.words(script, out, *more, **division), env=env or self.forking(), cwd=cwd)

    def close(self):
        """End what is left."""
        if self._forks:
            self._forks.close()

    def once(self, script, *more, earlier=(), **division):
        """Return the Ran of a run that tests share, in a path with a blank and a `$`, where files `earlier` lie. The flags that
        its program reads are noted."""
        if script not in self._once:
            out = self.folder / "out $HOME" / script
            write_earlier(out, earlier)
            noted = {"READS": str(self.folder / "reads")}  # a full training on one rank and on two is started as users start it
            done = self.run(script, out, *more, env=(self.hooked if script in FULL.values() else self.forking)(**noted), **division)
            self._once[script] = Ran(out, done)
        block(self._once[script].done)
        return self._once[script]

    def hooked(self, **variables):
        return self.environment(PYTHONPATH=str(self.folder / "hooks"), **variables)

    def forking(self, **variables):
        """Return the environment of a run whose program is a fork of a process that has the libraries, and whose ranks are forks of the
        program: a second less for each. Signals do not reach them."""
        self._forks = self._forks or Forks(str(self.folder), self.environment())
        env = self.hooked(FORK="1", **variables)
        env["PATH"] = self._forks.path + os.pathsep + env["PATH"]
        return env

    def environment(self, **variables):
        """Return the environment of a run, in which a network is narrow that has no option for it."""
        return environment(**dict(variables, **({} if "--width=1" in self.tiny.options else {"NARROW": "1"})))

    def evaluated(self, ranks):
        """Return the Ran of an evaluation, on 1 or 2 ranks, of what the training on two ranks has left."""
        exact = ["--deterministic", "--allow_tf32"] * (ranks == 2)  # the figures have to be the same
        return self.once(EVAL[ranks], "--pth_path=%s" % (self.once(FULL[2]).out / "checkpoint.pth.tar"), "--use_ema=false", *exact)


HOOKS = '''
import argparse, eager, os, sys, time
if "READS" in os.environ:  # note the flags of each program, and those that it reads
    noted = set()
    def note(kind, name):
        line = "%s %s %s\\n" % (kind, os.path.basename(sys.argv[0]), name)
        if line not in noted and "launch.py" not in line:  # takes them all at once
            noted.add(line)
            with open(os.environ["READS"], "a") as stream:
                stream.write(line)
    def get(self, name):
        if sys._getframe(1).f_code.co_filename != argparse.__file__ and not name.startswith("_"):
            note("read", name)
        return object.__getattribute__(self, name)
    argparse.Namespace.__getattribute__ = get
    parse = argparse.ArgumentParser.parse_known_args
    def parse_known_args(self, *words, **options):
        for action in self._actions:
            note("flag", action.dest)
        return parse(self, *words, **options)
    argparse.ArgumentParser.parse_known_args = parse_known_args
def slow(torch):
    backward = torch.Tensor.backward
    torch.Tensor.backward = lambda *words, **options: (time.sleep(float(os.environ["SLOW"])), backward(*words, **options))[1]
def held(torch):
    save, replace, when, last = torch.save, os.replace, os.environ["HOLD"].split(), []
    def noting(state, *words, **options):
        last[:] = [state["epoch"], state["step"]] if isinstance(state, dict) and "step" in state else last
        return save(state, *words, **options)
    def holding(source, target):
        hold = str(target).endswith("checkpoint.pth.tar") and last >= [int(word) for word in when[1:]]
        for moment in ("before", "after"):
            if moment == "after":
                replace(source, target)
            while hold and moment == when[0]:
                time.sleep(1)
    torch.save, os.replace = noting, holding
def forked(multiprocessing):
    context, start = multiprocessing.get_context, multiprocessing.start_processes
    multiprocessing.get_context = lambda method: context("fork")
    multiprocessing.spawn = lambda *words, **options: start(*words, start_method="fork", **options)
def frozen(torch):
    train = torch.nn.Module.train
    torch.nn.Module.train = lambda self, mode=True: train(self, False)
if "FORK" in os.environ:  # ranks begin with what the program has imported
    eager.After("torch.multiprocessing", forked)
if "SLOW" in os.environ:  # so many seconds more for each batch
    eager.After("torch", slow)
if "HOLD" in os.environ:  # "before 0 3": wait for a kill before the checkpoint of that epoch and step gets its name
    eager.After("torch", held)
if "FROZEN" in os.environ:  # train in evaluation mode: no statistics of a batch, no dropout
    eager.After("torch", frozen)
'''


@pytest.fixture(scope="module", params=[name for name in MODELS if name in TINY])
def model(request, tiny_imagenet, tmp_path_factory):
    """Each Model in turn, on a data set in its layout: at least 64 training images, 20 for validation."""
    folder, data = tmp_path_factory.mktemp(request.param), tiny_imagenet
    if TINY[request.param].layout == "cifar":
        data = folder / "tiny data $HOME"
        write_cifar(data / "cifar-10-batches-py", per_batch=20)
    (folder / "hooks").mkdir()
    (folder / "hooks" / "sitecustomize.py").write_text(HOOKS)
    made = Model(request.param, data, folder)
    yield made
    made.close()
    shutil.rmtree(str(folder))  # gigabytes of checkpoints


LAUNCH_PY = """#!/bin/bash
if [[ $1 == */launch.py ]]; then
    nnodes=1 started_by=nobody
    for word in "$@"; do case $word in --devices=*) devices=${word#*=} ;; --nnodes=*) nnodes=${word#*=} started_by=flags ;; esac; done
    echo "$((devices * nnodes)) $nnodes 0 0 $started_by"
    exit
fi
"""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """Return a function that runs a script with a python3 that only notes its words: gives the process and the words. As launch.py it
    knows no launcher."""
    folder = tmp_path_factory.mktemp("stand-in")
    python = folder / "python3"
    python.write_text(LAUNCH_PY + "printf '%s\\n' \"$@\" \"${HCCL_IF_IP:-}\" >>\"$CALLS\"\n")
    python.chmod(0o755)
    calls = folder / "calls"
    env = environment(CALLS=str(calls))
    env["PATH"] = "%s:%s" % (folder, env["PATH"])

    def run(path, *options):
        calls.write_text("")
        done = run_script(path, *options, env=env)
        return done, calls.read_text()
    return run


def logged(out):
    """Return [(step, values)] of a run's LOG records with numbers, after seeing that every line is strict JSON."""
    def refuse(word):
        raise AssertionError("%s is no JSON" % word)
    found = []
    for line in (out / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line[len("DLLL "):], parse_constant=refuse)
        if record["type"] == "LOG" and isinstance(record["step"], list):
            found.append((tuple(record["step"]), record["data"]))
    return found


def summary(out):
    """Return the last record of a run."""
    step, values = logged(out)[-1]
    assert step == ()
    return values


def results(out):
    """Return the records without what differs from run to run; no step is there twice."""
    found = [(step, {name: value for name, value in values.items() if name not in MEASURED}) for step, values in logged(out)]
    assert len({step for step, _ in found}) == len(found)
    return found


def content(out):
    """Return all that a checkpoint holds, without the configuration, which names the output path."""
    return {key: value for key, value in checkpoint.load(str(out / "checkpoint.pth.tar")).items() if key != "cfg"}


def write_earlier(out, names):
    """Write files of an earlier run."""
    for name in names:
        out.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("an earlier run's")


def files(folder):
    """Return {path: content} of what lies below `folder`; of large files the size and the time of the last change."""
    paths = [path for path in folder.glob("**/*") if path.is_file()]
    return {path: path.read_bytes() if os.path.getsize(str(path)) < 1 << 20 else os.stat(str(path))[6:9:2] for path in paths}


# --- what a model has -------------------------------------------------------------------------------------------------

def lacking(root, models, table):
    """Return a line for everything that a model directory below `root` has to have and has not."""
    wanted = [(model, path) for model in models for path in (model + "/README.md", "ci/golden/%s.json" % model)]
    found = ["%s has no %s" % pair for pair in wanted if not os.path.isfile(os.path.join(str(root), pair[1]))]
    return found + ["%s has no line in TINY of ci/test_all_scripts.py" % model for model in models if model not in table]


def test_every_model_is_complete():
    """A directory with scripts that has no README, no golden numbers or no tests fails (defect 10)."""
    assert len(MODELS) >= 5 and lacking(ROOT, MODELS, TINY) == []


def test_what_a_model_lacks_is_named(tmp_path):
    """The check itself, on a made-up sixth model."""
    (tmp_path / "Sixth").mkdir()
    found = [line.split(" has no ")[1].split()[0] for line in lacking(tmp_path, ["Sixth"], {})]
    assert found == ["Sixth/README.md", "ci/golden/Sixth.json", "line"]
    (tmp_path / "Sixth" / "README.md").write_text("")
    assert len(lacking(tmp_path, ["Sixth"], {"Sixth": None})) == 1


def test_tests_that_share_runs_stay_together():
    """The tests of a model are one group, those of another model and of another file are others."""
    nodes = ["all_scripts.py::test_x[HRNet]", "all_scripts.py::test_y[HRNet-1]", "all_scripts.py::test_x[GENet]",
             "y.py::test_x[GENet]"]
    groups = [group_of("ci/test_" + node) for node in nodes]
    assert groups[0] == groups[1] and len(set(groups)) == 3


# --- options ----------------------------------------------------------------------------------------------------------

def test_help(model, stand_in):
    """--help of every script answers with the options, their defaults and one example that it would take, and runs nothing."""
    assert {"train_%s_%s.sh" % (what, on) for what in ("full", "performance", "eval") for on in ("1p", "8p")} <= set(
        model.scripts)
    assert {"train_full_multinodes.sh", "train_performance_multinodes.sh"} <= set(model.scripts)
    for script in model.scripts:
        done, calls = stand_in(model.path(script), "--help")
        assert (done.returncode, done.stderr, calls) == (0, "", "")
        known = model.help(script)
        training = " pth_path train_epochs learning_rate seed accumulate checkpoint_steps resume"
        common = "data_path output_path device device_id batch_size workers opt_level precision_mode max_steps image_size"
        common += " deterministic allow_tf32"
        common += " pth_path use_ema" if "eval" in script else training
        assert set(common.split()) <= set(known), (script, set(common.split()) - set(known))
        assert ("device_list" in known) == ("1p" not in script)
        assert {"nnodes", "node_rank", "local_addr", "master_addr", "master_port"} <= set(known) or "multinodes" not in script
        assert all(known[name] for name in ("device", "batch_size", "workers", "opt_level"))
        example = done.stdout.split("Example:\n  bash test/%s " % script)[1].split()
        assert example and all(word[2:].split("=")[0] in known for word in example)


def mistakes(model, script):
    """Return [(options, words of the complaint)] of what the shell has to find out."""
    data, pth = "--data_path=/x", ["--pth_path=%s" % os.path.join(ROOT, "README.md")] * ("eval" in script or "finetune" in script)
    found = [(["--no_such_option=1"], ["unknown option --no_such_option"]), (["nonsense"], ["nonsense", "--name=value"]),
             (["--batch_size"], ["--batch_size has no value"]), (["--batch_size=many"], ["--batch_size=many", "integer"]),
             (["--opt_level=O7"], ["--opt_level=O7", "O0, O1, O2"]), (["--pth_path=/no/such $HOME"], ["/no/such $HOME"])]
    if "performance" not in script:
        found.append((pth + ["--nnodes=1"] * ("multinodes" in script), ["--data_path is missing"]))
    if pth:
        found.append(([data], ["--pth_path is missing"]))
    if "eval" not in script:
        found.append((["--learning_rate=fast"], ["--learning_rate=fast", "number"]))
    if "8p" in script and not model.tiny.per_rank:
        found.append(([data, "--batch_size=17", "--device_list=0,1"] + pth, ["--batch_size=17", "2"]))
        found.append(([data, "--batch_size=4"] + pth, ["--batch_size=4", "8"]))
    return found


def test_mistakes_that_the_shell_finds(model, stand_in, tmp_path):
    """Unknown options, wrong values, a batch that does not divide (defect 5): one line, status 2, and nothing is started."""
    for script in model.scripts:
        for options, words in mistakes(model, script):
            done, calls = stand_in(model.path(script), "--output_path=%s" % (tmp_path / "a" / "o"), *options)
            assert_bad_input(done, *words)
            assert calls == "" and not (tmp_path / "a").exists()


def test_mistakes_that_the_program_finds(model, tmp_path):
    """No data, no such device, batches of one pixel or (where an epoch has whole batches only) larger than the data set: one line,
    status 2; no folder is made, and an earlier run's files are as they were."""
    (tmp_path / "empty").mkdir()
    write_earlier(tmp_path / "earlier", EARLIER)
    before = files(tmp_path)
    mistakes = [("a/o", "--data_path=/no/such $HOME", "/no/such $HOME"), ("a/o", "--device=npu", "no such device"),
                ("earlier", "--data_path=%s" % (tmp_path / "empty"), str(tmp_path / "empty"))]
    mistakes += [("earlier", "--image_size=32 --batch_size=1", "BatchNorm cannot train on a batch of one image")] * (model.tiny.layout == "imagenet")
    mistakes += [("earlier", "--batch_size=10000", "larger than the data set")] * (not model.tiny.smaller_last)
    for out, option, word in mistakes:
        assert_bad_input(model.run(FULL[1], tmp_path / out, *re.split(" (?=--)", option)), word)
        assert files(tmp_path) == before and not (tmp_path / "a").exists()


def values(complaint):
    """Return values that an option takes, from what it says to a wrong one."""
    known = {"integer": ["2", "16", "96"], "number of at least": ["0.125"], "device numbers": ["0,1"], "no value": [None], "step numbers": ["3:5"]}
    found = [values for words, values in known.items() if words in complaint]
    return found[0] if found else complaint.strip().partition("one of ")[2].split(", ")


def test_scripts_start_without_torch():
    """What a script becomes until the program runs needs no torch: that would be another second before anything happens."""
    code = "import sys; sys.path.insert(0, %r); import common.run; sys.exit('torch' in sys.modules)" % ROOT
    assert subprocess.call([sys.executable, "-c", code]) == 0


def has_effect(stand_in, path, bases, word, number):
    """Return whether one more option than the base of that number, (options, words of the program), changes those words."""
    options, without = bases[number]
    done, words = stand_in(path, *(options + [word]))
    return done.returncode == 0 and words != without


def test_every_option_has_an_effect(model, stand_in, tmp_path, monkeypatch):
    """Each option of each script changes the words that the program gets, or says in NO_EFFECT why not (defect 11). Those that the script
    for several machines has as the one for eight devices are tried there."""
    for name in ("w.pth", "@"):
        (tmp_path / name).write_text("")
    (tmp_path / "checkpoint.pth.tar").write_text("")
    monkeypatch.chdir(tmp_path)
    useless, tried = [], {}
    for script in model.scripts:
        on_machines = "multinodes" in script
        with_weights = ["--data_path=/x", "--output_path=%s" % tmp_path, "--pth_path=w.pth"]
        with_weights[:0] = ["--nnodes=1"] * on_machines
        bases = [(base, stand_in(model.path(script), *base)[1]) for base in (with_weights, with_weights[:-1])]
        assert bases[0][1]
        for option in set(model.help(script)) - set(model.help(script.replace("multinodes", "8p")) if on_machines else []):
            if option not in tried:  # a model's scripts have one parser
                done, _ = stand_in(model.path(script), *(with_weights + ["--%s=@" % option]))
                words = ["--%s=%s" % (option, value) if value else "--" + option
                         for value in (["@"] if done.returncode == 0 else values(done.stderr))]
                tried[option] = [(word, number) for word in words for number in range(len(bases))]
            found = next((trial for trial in tried[option] if has_effect(stand_in, model.path(script), bases, *trial)), None)
            tried[option].sort(key=lambda trial: trial != found)  # what has an effect comes first with the next script
            useless += ["%s %s --%s" % (model.name, script, option)] * (found is None)
    assert useless == [entry for entry in NO_EFFECT if entry.startswith(model.name) and " --" in entry]


# --- runs and what they leave -----------------------------------------------------------------------------------------

def assert_records(out):
    """A name means the same in every model: steps, epochs and the summary have what plots need (defect 7), once and in order."""
    found = logged(out)
    epochs = [step for step, _ in found if len(step) == 1]
    assert epochs and epochs == [(epoch,) for epoch in range(len(epochs))]
    assert [step for step, _ in found].index(()) == len(found) - 1
    for step, values in found:
        assert KEYS[len(step)] <= set(values), (step, KEYS[len(step)] - set(values))
        assert None not in [values[name] for name in KEYS[len(step)] & RESULTS]


def assert_left(model, out, done, suffix, ranks):
    """The result block, the case's log, the report and the records are there and agree."""
    result, last, report = block(done), summary(out), json.loads((out / "report.json").read_text())
    assert re.match(model.tiny.network + "$", report["case"]["network"]), report["case"]
    name = "%s_bs%d_%dp_%s" % (report["case"]["network"], report["case"]["batch_size"], ranks, suffix)
    case = dict(line.split(" = ") for line in (out / (name + ".log")).read_text().splitlines())
    what, doing = ("Finetune", "Finetuning") if report["case"]["kind"] == "finetune" else ("Train", "Training")
    accuracy = "%.3f" % last["val.top1"]
    titles = ["Final %s Accuracy" % what, "E2E %s Duration sec" % doing]
    keys = ["Network", "RankSize", "BatchSize", "DeviceType", "CaseName", what + "Accuracy", "ActualLoss", "E2E%sTime" % doing]
    if suffix != "eval":
        titles = ["Final Performance images/sec", titles[0], "Best %s Accuracy" % what, titles[1]]
        keys[5:5] = ["ActualFPS", doing + "Time"]
        assert_records(out)
        assert result[titles[0]] == case["ActualFPS"] == "%.3f" % last["train.total_ips"] and last["train.total_ips"] > 0
        milliseconds = report["case"]["images_per_step"] * 1000 / last["train.total_ips"]
        assert float(case[doing + "Time"]) == pytest.approx(milliseconds, abs=0.01)
        assert {"checkpoint.pth.tar", "model_best.pth.tar"} <= set(os.listdir(str(out)))
        assert case["ActualLoss"] == "%.5f" % last["train.loss"]
        assert last["val.best_top1"] == pytest.approx(max(values["val.top1"] for step, values in logged(out) if len(step) == 1))
    assert (list(result), list(case)) == (titles, keys)
    assert result["Final %s Accuracy" % what] == case[what + "Accuracy"] == accuracy
    assert (case["CaseName"], case["RankSize"], report["summary"]) == (name, str(ranks), last)
    assert "train_0.log" in os.listdir(str(out)) and done.stdout.splitlines()[0] in (out / "train_0.log").read_text()


@RANKS
def test_full_training(model, ranks):
    """train_full_*.sh: result block, files and records; the validation set is counted once, each image of it. The names of the classes
    are in the checkpoint and in the report."""
    ran = model.once(FULL[ranks])
    assert_left(model, ran.out, ran.done, "acc", ranks)
    last = summary(ran.out)
    assert last["steady_steps"] + last["warmup_steps"] == EPOCHS * STEPS
    names = list("abcdefghij") if model.tiny.layout == "cifar" else ["n%08d" % number for number in range(4)]
    assert content(ran.out)["classes"] == json.loads((ran.out / "report.json").read_text())["parameters"]["classes"] == names
    assert 20 * last["val.top1"] / 100 == pytest.approx(round(20 * last["val.top1"] / 100), abs=1e-6)


@RANKS
def test_evaluation_agrees(model, ranks):
    """train_eval_*.sh of a checkpoint gives the training's own figures, on 1 rank as on 2."""
    ran, trained = model.evaluated(ranks), summary(model.once(FULL[2]).out)
    assert_left(model, ran.out, ran.done, "eval", ranks)
    found, other = summary(ran.out), summary(model.evaluated(3 - ranks).out)
    assert set(found) >= EVALUATION and (found["val.top1"], found["val.top5"]) == (trained["val.top1"], trained["val.top5"])
    assert found["val.loss"] == pytest.approx(other["val.loss"], rel=1e-6)
    assert found["val.loss"] == pytest.approx(trained["val.loss"], rel=1e-3)  # ResNet50's evaluation smooths in another form


@pytest.fixture(scope="module")
def unreadable(tiny_imagenet, tmp_path_factory):
    """The small data set with every second training image, and one for validation, empty."""
    root = tmp_path_factory.mktemp("unreadable") / "data"
    shutil.copytree(str(tiny_imagenet), str(root))
    for path in sorted((root / "train").glob("*/*"))[::2] + sorted((root / "val").glob("*/*"))[3:4]:
        path.write_bytes(b"")
    return root


def test_performance_1p(model, unreadable, tmp_path):
    """train_performance_1p.sh at the recipe's own opt level, from another folder, with a relative output path. Where there are
    image files: unreadable ones are left out and counted, in training and in validation (defect 7)."""
    script, has_files = "train_performance_1p.sh", model.tiny.layout == "imagenet"
    options = ["--skip_bad_images"] * has_files + ["--train_epochs=1", "--max_steps=11", "--batch_size=4"]
    done = model.run(script, "o", *options, data=unreadable if has_files else None, cwd=str(tmp_path))
    out = tmp_path / "o"
    assert_left(model, out, done, "perf", 1)
    assert {len(step) for step, _ in logged(out)} == {2, 1, 0}
    level = model.help(script)["opt_level"] if hasattr(torch, "autocast") else "O0"
    assert json.loads((out / "report.json").read_text())["parameters"]["opt_level_run"] == level
    skipped = [line for line in done.stdout.splitlines() if line.startswith("skipped unreadable image")]
    assert summary(out)["bad_images"] == len(skipped)
    assert [sum(split in line for line in skipped) > 0 for split in ("/train/", "/val/")] == [has_files] * 2


def test_a_step_on_made_up_images(model, tmp_path):
    """train_performance_1p.sh without a data set, in bf16, with a profile of a step: its speed is reported, an accuracy is not.
    Elsewhere --dummy is refused: no result may come from images that are made up."""
    level = "O1" if hasattr(torch, "compile") else "O0"
    done = model.run("train_performance_1p.sh", tmp_path / "o", "--dummy", "--profile_steps=4:5", "--amp_dtype=bf16", "--opt_level=" + level,
                     "--max_steps=7", "--train_epochs=1", data="/nowhere")
    assert block(done)["Final Train Accuracy"] == "not measured" and "Self CPU time total" in done.stdout
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    assert report["summary"]["train.total_ips"] > 0 and report["summary"]["train.loss"] > 0
    assert (report["parameters"]["amp_dtype"], report["parameters"]["opt_level_run"]) == ("bf16", level)
    assert len(os.listdir(str(tmp_path / "o" / "profile"))) == 1
    assert_bad_input(model.run("train_full_1p.sh", tmp_path / "p", "--dummy"), "unknown option --dummy")


def from_weights(model, script, *more, **division):
    """Return the Ran of a script that starts from the weights of the training on one rank."""
    return model.once(script, "--pth_path=%s" % (model.once(FULL[1]).out / "checkpoint.pth.tar"), *more, **division)


def performed(model):
    """Return the Ran of train_performance_8p.sh from such weights, where files of an earlier run lie."""
    return from_weights(model, "train_performance_8p.sh", "--train_epochs=1", "--deterministic", earlier=EARLIER + ["notes.txt"],
                        ranks=8 if model.name == EIGHT_RANKS else 2)


def test_performance_8p_sets_an_earlier_run_aside(model):
    """train_performance_8p.sh (of one model on eight ranks) in the output path of an earlier run, whose files are moved, not
    deleted; files of somebody else stay where they are."""
    out, done = performed(model)
    assert_left(model, out, done, "perf", 8 if model.name == EIGHT_RANKS else 2)
    assert "deterministic: only algorithms" in done.stdout
    assert sorted(os.listdir(str(out / "earlier-1"))) == sorted(EARLIER) and (out / "notes.txt").exists()
    assert {(out / "earlier-1" / name).read_text() for name in EARLIER} == {"an earlier run's"}


def test_finetuning(model):
    """finetune_*.sh, where a model has them, from the weights of a training. With it, every script is in a smoke test."""
    tested = list(FULL.values()) + list(EVAL.values()) + ["train_performance_1p.sh", "train_performance_8p.sh"]
    others = [script for script in model.scripts if script not in tested and "multinodes" not in script]
    for script in others:
        assert script.startswith("finetune_"), script
        ran = from_weights(model, script)
        assert_left(model, ran.out, ran.done, "perf" if "performance" in script else "acc", 1 if "1p" in script else 2)


def two_machines(model, script, folder, environments, *options):
    """Run a script as two machines with a rank each, each in one of `environments`: both end, and machine 0 reports for both."""
    outs = [folder / script / str(number) for number in range(2)]
    commands = [script_command(*model.words(script, out, "--device_list=%d" % (3 - number), *options)) for number, out in enumerate(outs)]
    nodes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, env=model.forking(**variables))
             for command, variables in zip(commands, environments)]
    found = [node.communicate(timeout=600) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], found
    assert_left(model, outs[0], subprocess.CompletedProcess([], 0, *found[0]), "perf" if "performance" in script else "acc", 2)
    assert "only on machine 0" in found[1][0] and "Final" not in found[1][0]


def test_two_machines(model, tmp_path):
    """train_full_multinodes.sh without an option that says which machine this is: the pods of a Volcano Job, whose RANK is their number."""
    cluster = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "VC_TASK_INDEX": "0"}
    two_machines(model, "train_full_multinodes.sh", tmp_path, [dict(cluster, RANK=str(number)) for number in range(2)])


@pytest.mark.slow
def test_two_machines_by_options(model, tmp_path):
    """train_performance_multinodes.sh with the options that say which machine this is."""
    script = "train_performance_multinodes.sh"  # NODE_RANK stands for --node_rank, which differs
    two_machines(model, script, tmp_path, [{"NODE_RANK": str(number)} for number in range(2)], "--nnodes=2", "--master_port=%d" % free_port())


# --- what ends a run --------------------------------------------------------------------------------------------------

def stamp(path):
    """Return what tells a file from the one before it, which may have had its inode in the same second."""
    found = os.stat(str(path))
    return found.st_ino, found.st_mtime_ns


def newest(out):
    """Return which file the newest checkpoint is, None without one, and its (epoch, step)."""
    path = out / "checkpoint.pth.tar"
    if not path.exists():
        return None, (-1, 0)
    found, state = stamp(path), checkpoint.load(str(path))
    return found, (state["epoch"], state["step"])


class Watch(object):
    """Looks at what a run has written since this was made."""

    def __init__(self, out):
        self._out, self._metrics = out, out / "metrics.jsonl"
        self._before, self._seen = self._starts(), (None, (-1, 0))

    def _starts(self):
        return self._metrics.read_text().count('"PARAMETER"') if self._metrics.exists() else 0

    def started(self):
        return self._starts() > self._before

    def passed(self, epoch, step):
        """Return whether there is a checkpoint of at least that step; one file is read once."""
        path = self._out / "checkpoint.pth.tar"
        if path.exists() and stamp(path) != self._seen[0]:
            self._seen = newest(self._out)
        return self._seen[1] >= (epoch, step)

    def writing(self):
        return (self._out / "checkpoint.pth.tar.part").exists()


def test_a_watch_sees_each_checkpoint(tmp_path):
    """Defect: of two checkpoints in one second the later one, with the freed inode of one before, was not seen: a run was waited for in
    vain."""
    watch, path = Watch(tmp_path), str(tmp_path / "checkpoint.pth.tar")
    for step in (1, 2):
        torch.save({"epoch": 0, "step": step}, path)  # into the same inode
        os.utime(path, ns=(0, 1000000000 + step))
        assert watch.passed(0, step) and not watch.passed(0, step + 1)


OFTEN, SELDOM = "--checkpoint_steps=1", "--checkpoint_steps=0"
INTERRUPTIONS = [  # ranks, name, signal, options, where a run waits for its kill, the moment
    (1, "before the first checkpoint", signal.SIGKILL, [OFTEN], "before 0 1", lambda watch: watch.started()),
    (2, "in the first epoch", signal.SIGKILL, [OFTEN], "after 0 1", lambda watch: watch.passed(0, 1)),
    (2, "while a checkpoint is written", signal.SIGKILL, [OFTEN, "--resume"], "before 0 3", lambda watch: watch.writing()),
    (1, "in the second epoch", signal.SIGKILL, [OFTEN, "--resume"], "after 1 1", lambda watch: watch.passed(1, 1)),
    (0, "by SIGTERM", signal.SIGTERM, [SELDOM, "--resume"], None, lambda watch: watch.started())]


@RANKS
def test_interrupted_runs_resume_exactly(model, tmp_path, ranks):
    """SIGKILL at two moments of one run, on one rank and on two at other ones, and SIGTERM at a third, --resume after each: bit for bit
    the checkpoint and the records of the undisturbed run (defects 1, 6), the same files, no process left. SIGTERM ends with 143 after
    writing a checkpoint."""
    out, whole = tmp_path / "o", model.once(FULL[ranks]).out
    for _, name, number, options, hold, moment in [row for row in INTERRUPTIONS if row[0] in (0, ranks)]:
        watch, before = Watch(out), newest(out)
        # SIGTERM has to come through before the last of a few short steps, however late this process sees its moment.
        process = start_script(*model.words(FULL[ranks], out, *options), env=model.hooked(FORK="1", **{"HOLD": hold} if hold else {"SLOW": "0.3"}))
        wait_until(lambda: process.poll() is not None or moment(watch))
        process.send_signal(number)
        assert process.wait(timeout=120) == (143 if number == signal.SIGTERM else -number), name
        wait_until(lambda: not running_in(out))
        assert name != "by SIGTERM" or newest(out)[0] != before[0] and newest(out)[1] >= before[1]  # in an evaluation: the same step
    assert newest(out)[1] < (EPOCHS, 0)
    block(model.run(FULL[ranks], out, "--resume"))
    assert differences(content(whole), content(out)) == []
    assert results(whole) == results(out)
    assert set(os.listdir(str(whole))) == set(os.listdir(str(out)))


def test_a_diverging_training_stops(model, tmp_path):
    """A loss that is not finite: status 3, one line that names epoch and step, no result block, strict JSON (defect 3)."""
    done = model.run(FULL[1], tmp_path / "o", "--learning_rate=1e30")
    assert_stopped(done, tmp_path / "o", r"loss is (nan|-?inf) in step \d+ of epoch \d+")


def test_weights_that_are_not_finite(model, tmp_path):
    """Such weights are bad input of an evaluation: status 2, and a line that names the file and the first of them."""
    state = content(model.once(FULL[1]).out)
    tensors = state[checkpoint.weights_key(state, use_ema="false")].values()
    next(tensor for tensor in reversed(list(tensors)) if tensor.is_floating_point()).fill_(float("nan"))
    torch.save(state, str(tmp_path / "w.pth"))
    done = model.run(EVAL[1], tmp_path / "o", "--pth_path=%s" % (tmp_path / "w.pth"), "--use_ema=false")
    assert done.returncode == 2 and not (tmp_path / "o").exists(), (done.returncode, done.stderr)
    assert re.search(r"w\.pth holds weights that are not finite numbers \(first: \S+\); take .*\n$", done.stderr), done.stderr
    assert len(done.stderr.splitlines()) == 1


def assert_stopped(done, out, pattern):
    assert done.returncode == 3 and "Final" not in done.stdout, (done.returncode, done.stderr)
    assert len(done.stderr.splitlines()) == 1 and re.search(pattern, done.stderr), done.stderr
    assert not any(step == () for step, _ in logged(out)) and not running_in(out)


def test_an_unreadable_image_is_named(model, unreadable, tmp_path):
    """Without --skip_bad_images a training stops with the name of the file, and what would go on without it."""
    if model.tiny.layout != "imagenet":
        pytest.skip("no image files")
    done = model.run(FULL[1], tmp_path / "o", "--workers=1", data=unreadable)
    assert_stopped(done, tmp_path / "o", r"\.JPEG \(.*--skip_bad_images")


@pytest.mark.parametrize("spoil, words", [
    (lambda path: open(path, "rb+").truncate(1000), ["truncated"]),
    (lambda path: torch.save({"state_dict": {"first.weight": torch.ones(2, 2)}}, path), ["not a checkpoint of this network"]),
    (lambda path: torch.save({"epoch": 1}, path), ["no model weights"])], ids=["truncated", "other network", "no weights"])
def test_bad_weights(model, tmp_path, spoil, words):
    """Truncated, of another architecture, none at all: named in one line, status 2, and no output path is made."""
    path = tmp_path / "w.pth"
    shutil.copy(str(model.once(FULL[1]).out / "checkpoint.pth.tar"), str(path))
    spoil(str(path))
    script = EVAL[1] if words != ["not a checkpoint of this network"] else FULL[1]
    assert_bad_input(model.run(script, tmp_path / "o", "--pth_path=%s" % path), "w.pth", *words)
    assert not (tmp_path / "o").exists()


# --- going on with something else, and other divisions of an update ---------------------------------------------------

def test_a_resume_must_fit(model, tmp_path):
    """--resume with another seed or batch is refused with both values, and nothing is touched (defect 4); with another number of
    ranks and the same batch it goes on."""
    out = tmp_path / "copy"
    shutil.copytree(str(model.once(FULL[2]).out), str(out))
    before = files(out)
    longer = ["--resume", "--train_epochs=%d" % (EPOCHS + 1)]
    for option, words in (("--seed=6", ["6", "5"]), ("--batch_size=4", ["4", "8"])):
        assert_bad_input(model.run(FULL[2], out, option, *longer, ranks=1), "resume", *words)
        assert files(out) == before
    block(model.run(FULL[2], out, *longer, ranks=1))
    assert newest(out)[1] == (EPOCHS + 1, 0)


def test_an_update_does_not_depend_on_its_division(model, tmp_path):
    """A batch at once, in two parts one after the other (--accumulate=2) and on two ranks: the same learning rate and, with the
    networks in evaluation mode, the same gradients, as the optimizer has them after one update."""
    found = []
    for ranks, accumulate in ((1, 1), (1, 2), (2, 1)):
        out = tmp_path / ("%d %d" % (ranks, accumulate))
        block(model.run(FULL[2], out, "--train_epochs=1", "--max_steps=%d" % accumulate, ranks=ranks, accumulate=accumulate,
                        env=model.forking(FROZEN="1")))
        last = summary(out)
        assert last["steady_steps"] + last["warmup_steps"] == accumulate
        optimizer = next(value for key, value in content(out).items() if key.startswith("optimizer"))
        found.append((optimizer["state"], [values["lr"] for step, values in logged(out) if step]))
    for state, rates in found[1:]:
        assert differences(found[0][0], state, tolerance=1e-4) == []
        assert rates[-1] == pytest.approx(found[0][1][-1], rel=1e-9)


def test_every_flag_is_read(model):
    """Each flag of each program that the scripts run is read in a training or an evaluation, or says in NO_EFFECT why not."""
    ran = [model.once(FULL[1]), model.evaluated(1), model.evaluated(2), performed(model)]
    assert ran + [from_weights(model, script) for script in model.scripts if script.startswith("finetune_full")]
    noted = {tuple(line.split()) for line in (model.folder / "reads").read_text().splitlines()}
    unread = {"%s %s %s" % (model.name, program, name) for kind, program, name in noted
              if kind == "flag" and name != "help" and ("read", program, name) not in noted}
    assert unread == {entry for entry in NO_EFFECT if entry.startswith(model.name) and " --" not in entry}

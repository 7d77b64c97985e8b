"""Signals and standard output: whenever a signal comes, its status and one true line; whatever becomes of stdout, the training goes
on.

Most of it is tried with stand-ins for a training that are there at once: a script of its own on common/test.sh, programs of a few
lines under common/run.py.
"""
import json
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from common import checkpoint, cli, distributed, evaluation, meters, preemption, spawn
from conftest import ROOT, environment, running_in, wait_until
from test_common import ALONE, CPU, NOBODY, MadeUpBatches, make_progress, run_steps, small_network

STOPS = pytest.mark.parametrize("number, status, word", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"),
                                                         (signal.SIGHUP, 129, "hung up")])
SUMMARY = 'DLLL {"type": "LOG", "step": [], "data": {"val.top1": 50.0}}'


@pytest.fixture(autouse=True)
def no_preemption():
    """A Progress of a test may not keep this process from ending."""
    yield
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


# --- from the first instruction of a script to its last line ----------------------------------------------------------

def write_script(folder, *lines):
    """Write a script as the models have them, with `lines` before its options are read; it runs the program `train`."""
    (folder / "test").mkdir()
    (folder / "test" / "x.sh").write_text("\n".join(
        ["source '%s/common/test.sh'" % ROOT, "on_one_device Trains.", "defaults batch_size=4"] + list(lines) +
        ['parse "$@"', "run_case Net perf train python3 '%s'" % (folder / "train")]))
    (folder / "train").write_text("import time; print('up', flush=True); time.sleep(60)")
    return ["bash", str(folder / "test" / "x.sh"), "--output_path=%s" % (folder / "o")]


def stopped(command, number, *moments, env=None, sent=os.devnull, **options):
    """Start a command, send a signal when it has printed each of the lines `moments`, then make a file `sent`; return the finished
    process."""
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               universal_newlines=True, env=env or environment(), **options)
    for moment in moments:
        assert moment in iter(lambda: process.stdout.readline().strip(), "")
        process.send_signal(number)
    open(str(sent), "w").close()
    out, errors = process.communicate(timeout=300)
    return SimpleNamespace(returncode=process.returncode, stdout=out, stderr=errors)


def assert_said(done, status, *words):
    assert done.returncode == status and len(done.stderr.splitlines()) == 1, (done.returncode, done.stderr)
    for word in words:
        assert word in done.stderr


@STOPS
def test_a_signal_to_the_shell(tmp_path, number, status, word):
    """While the shell reads its options and waits for a command: the status and a line, and no output path."""
    waits = "sh -c 'until [ -e \"$1\" ]; do sleep 0.05; done' - '%s'" % (tmp_path / "sent")
    done = stopped(write_script(tmp_path, "echo here", waits), number, "here", sent=tmp_path / "sent")
    assert_said(done, status, "x.sh: %s before" % word)
    assert not (tmp_path / "o").exists()


def test_a_signal_while_the_demo_data_are_made(tmp_path):
    """The shell does not wait for them: they are stopped."""
    (tmp_path / "python3").write_text("#!/bin/sh\necho making >&3\nexec sleep 60 # %s" % tmp_path)
    (tmp_path / "python3").chmod(0o755)
    done = stopped(write_script(tmp_path, "exec 3>&1", "demo_data_unless_given imagenet"), signal.SIGTERM, "making",
                   env=environment(PATH="%s:%s" % (tmp_path, os.environ["PATH"])))
    assert done.returncode == 143 and "terminated before" in done.stderr and "could not be made" not in done.stderr
    wait_until(lambda: not running_in(tmp_path))


@pytest.mark.skipif(subprocess.run(["env", "--block-signal=INT", "true"], stderr=subprocess.DEVNULL).returncode != 0,
                    reason="env cannot hold signals back before coreutils 8.31")
@pytest.mark.parametrize("ignored", [False, True])
@STOPS
def test_a_signal_while_python_starts(tmp_path, number, status, word, ignored):
    """It waits until run.py can answer it, also where SIGINT was ignored, as in a background job."""
    (tmp_path / "python3").write_text("#!/bin/bash\necho starting\nsleep 0.3\nexec '%s' \"$@\"" % sys.executable)
    (tmp_path / "python3").chmod(0o755)
    done = stopped(write_script(tmp_path), number, "starting", env=environment(PATH="%s:%s" % (tmp_path, os.environ["PATH"])),
                   preexec_fn=lambda: ignored and signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert_said(done, status, word, "without saving; there is no checkpoint")


@STOPS
def test_a_signal_to_a_training(tmp_path, number, status, word):
    """From the script, the signal reaches the training."""
    assert_said(stopped(write_script(tmp_path), number, "up"), status, word, "without saving; there is no checkpoint")


# --- what a training makes of a signal --------------------------------------------------------------------------------

def supervised(out, code, *options, kind="train"):
    """Return the command of run.py over a program."""
    return [sys.executable, os.path.join(ROOT, "common", "run.py"), "--network=N", "--batch-size=4", "--ranks=1", "--suffix=acc",
            "--kind=" + kind, "--output-path=%s" % out] + list(options) + ["--", sys.executable, "-u", "-c", code]


DEAF = """
import os, signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
if os.fork():
    print("up")
time.sleep(60)
"""
SAVES = """
import os, signal, sys, time
def save(*_):
    open(%(path)r, "w").close()
    os._exit(%(status)d)
signal.signal(signal.SIGTERM, save)
%(before)s
print("up")
time.sleep(60)
"""


def test_ctrl_c_ends_whatever_a_training_does(tmp_path):
    """All of its processes, also those that answer no signal."""
    assert_said(stopped(supervised(tmp_path / "o", DEAF + "# %s" % tmp_path), signal.SIGINT, "up"), 130, "there is no checkpoint")
    wait_until(lambda: not running_in(tmp_path))


def test_a_step_longer_than_the_grace(tmp_path):
    """After --term_grace it is killed, and the line says so."""
    done = stopped(supervised(tmp_path / "o", DEAF, "--term-grace=1"), signal.SIGTERM, "up")
    assert_said(done, 143, "terminated after --term_grace=1 s without saving", "no checkpoint")


def test_the_line_says_what_was_saved(tmp_path):
    """A checkpoint if and only if the line says so; one of before is named with its age; an evaluation has none."""
    path = str(tmp_path / "o" / "checkpoint.pth.tar")
    saves = {"path": path, "status": 143, "before": ""}
    assert_said(stopped(supervised(tmp_path / "o", SAVES % saves), signal.SIGTERM, "up"), 143, "terminated after saving;")
    asked_twice = SAVES.replace("os._exit", "signal.signal(15, signal.SIG_IGN); print('saved'); time.sleep(1); os._exit") % saves
    assert_said(stopped(supervised(tmp_path / "o", asked_twice), signal.SIGTERM, "up", "saved"), 143, "terminated after saving;")
    earlier = dict(saves, before="open(%r, 'w').close()" % path)
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        code = (SAVES % earlier).replace("signal.signal(", "0 and signal.signal(")
        done = stopped(supervised(tmp_path / "o", code), number, "up")
        assert_said(done, status, "without saving; --resume goes on from %s, saved " % path)
        assert int(re.search(r"saved (\d+) s ago", done.stderr).group(1)) < 300
    done = stopped(supervised(tmp_path / "e", SAVES % dict(saves, path=os.devnull), kind="eval"), signal.SIGTERM, "up")
    assert_said(done, 143, "terminated; log")


def test_a_signal_at_the_end(tmp_path):
    """A training that ends well all the same is reported; the status is the signal's."""
    (tmp_path / "o").mkdir()
    writes = "open(%r, 'w').write(%r)" % (str(tmp_path / "o" / "metrics.jsonl"), SUMMARY)
    code = SAVES % {"path": str(tmp_path / "x"), "status": 0, "before": writes}
    done = stopped(supervised(tmp_path / "o", code), signal.SIGTERM, "up")
    assert_said(done, 143, "terminated when all was done")
    assert "Final Train Accuracy : 50.000" in done.stdout


def test_a_training_that_was_killed(tmp_path):
    """One line, 128 and the signal, and what it mostly means."""
    done = subprocess.run(supervised(tmp_path / "o", "import os; os.kill(os.getpid(), 9)"), stderr=subprocess.PIPE,
                          universal_newlines=True)
    assert_said(done, 137, "killed by signal 9", "memory")


# --- standard output --------------------------------------------------------------------------------------------------

TALKS = """
import time
for line in range(20000):
    print(line)
open(%r, "w").write(%r)
"""


@pytest.mark.parametrize("screen", ["head -1", "closed", "full"])
def test_a_training_without_stdout(tmp_path, screen):
    """A reader that leaves, a closed descriptor, a full device: the training goes on, its log is whole, and so is the report."""
    command = write_script(tmp_path)
    (tmp_path / "train").write_text(TALKS % (str(tmp_path / "o" / "metrics.jsonl"), SUMMARY))
    line = {"head -1": '"$@" | head -1', "closed": '"$@" >&-', "full": '"$@" >/dev/full'}[screen]
    done = subprocess.run(["bash", "-c", "set -o pipefail; " + line, "-"] + command, stdin=subprocess.DEVNULL, env=environment(),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout == {"head -1": "0\n"}.get(screen, "")
    assert (tmp_path / "o" / "train_0.log").read_text().split() == [str(line) for line in range(20000)]
    assert json.loads((tmp_path / "o" / "report.json").read_text())["summary"] == {"val.top1": 50.0}


def test_a_log_that_cannot_be_written(tmp_path):
    """It ends the training: status 3 and a line."""
    code = TALKS % (os.devnull, "") + "time.sleep(60)"
    command = ["bash", "-c", 'ulimit -f 8; exec "$@"', "-"] + supervised(tmp_path / "o", code)
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, universal_newlines=True, timeout=300)
    assert_said(done, 3, "cannot write %s" % (tmp_path / "o" / "train_0.log"), "File too large")


# --- how ranks leave together -----------------------------------------------------------------------------------------

class Ranks(object):
    """Ranks in lockstep, each with a Preemption and a clock of its own; stands in for distributed.begin_sum."""

    def __init__(self, count, monkeypatch):
        self.sums, self._values, self.time = 0, [], [0.0] * count
        self.now = 0  # the rank whose turn it is
        monkeypatch.setattr(preemption.time, "monotonic", lambda: self.time[self.now])
        monkeypatch.setattr(distributed, "begin_sum", self._begin_sum)
        self.all = [preemption.Preemption(distributed.Rank(rank, count, rank, CPU), None) for rank in range(count)]
        self.clocks = [meters.Clock(CPU, 1) for _ in range(count)]
        for clock in self.clocks:
            next(clock.over([None]))

    def _begin_sum(self, values, rank):
        assert len(self._values) == rank.rank, "not every rank has begun the sum before"
        self._values.append(values)
        if len(self._values) == len(self.all):
            self.sums, self._complete, self._values = self.sums + 1, self._values, []
        return lambda: [sum(numbers) for numbers in zip(*self._complete)]

    def step(self, seconds):
        """Take a step, which each rank's clock measures as `seconds` says; return their answer."""
        answers = set()
        for self.now, each in enumerate(self.all):
            self.time[self.now] += seconds[self.now]
            answers.add(each.agreed(self.clocks[self.now]))
        assert len(answers) == 1 and not self._values
        return answers.pop()


@pytest.mark.parametrize("seconds", [0.001, 0.05, 0.7, 3.0, 4.9])
def test_ranks_leave_after_the_same_step_within_ten_seconds(monkeypatch, seconds):
    """Wherever two steps take less, and whatever the other ranks' clocks say; and the sums are few."""
    ranks = Ranks(3, monkeypatch)
    steps = max(20, int(60 / seconds))
    assert not any(ranks.step([seconds, 10 * seconds, 1e-6]) for _ in range(steps))
    assert ranks.sums <= max(steps / 100, steps * seconds / 3 + steps * (seconds > 1.5)) + 5
    ranks.all[1].seen = True
    taken = next(number for number in range(1, 1000) if ranks.step([seconds] * 3))
    assert taken * seconds <= 10


def test_steps_that_grow_longer(monkeypatch):
    """However short the steps were, the ranks ask after a hundred; then as often as the new ones need."""
    ranks = Ranks(2, monkeypatch)
    for seconds, count in ((1e-4, 1000), (2.0, 300)):
        before = ranks.sums
        for _ in range(count):
            ranks.step([seconds] * 2)
    assert ranks.sums - before >= 200


def test_who_is_waited_for(monkeypatch):
    """The sum over SIGTERM, and no other one, brings each rank's times to all: the record names the rank with the most time of its
    own, and its host; nothing before a rank has measured."""
    monkeypatch.setattr(distributed, "hosts", ["host0", "host1", "host2"])
    ranks = Ranks(3, monkeypatch)
    for _ in range(3):
        ranks.step([4.0] * 3)
    assert [clock.straggler() for clock in ranks.clocks] == [{}] * 3
    for clock, own, data in zip(ranks.clocks, (0.25, 0.75, 0.5), (0.125, 0.5, 0.0)):
        clock.own_time = own
        clock.data_time.update(data)
    sums = ranks.sums
    for _ in range(3):
        ranks.step([4.0] * 3)
    assert ranks.sums == sums + 3
    for clock in ranks.clocks:
        assert clock.straggler() == {
            "train.slowest_rank": 1, "train.slowest_host": "host1", "train.slowest_time": 0.75, "train.slowest_data_time": 0.5,
            "train.median_time": 0.5}


# --- in a training, and outside ---------------------------------------------------------------------------------------

def test_before_its_steps_a_training_has_nothing_to_save(tmp_path):
    """SIGTERM is the kernel's: it ends the process also where no Python runs. From the clock's start on it is noted."""
    ours = make_progress(tmp_path, small_network())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    ours.start_clock(MadeUpBatches(), 1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert preemption.Preemption.listening().seen


def test_ranks_that_sigterm_kills():
    """Ranks that have no step behind them die of the SIGTERM that is passed on to them: that is an end as asked, not a crash."""
    with pytest.raises(cli.Terminated):
        spawn.raise_for(*spawn.ending(-signal.SIGTERM, 1))


def evaluated(ours, learner, kill_at=None):
    """Evaluate three batches; SIGTERM comes in one of them. Returns (Result, batches seen)."""
    seen = []

    class Batches(MadeUpBatches):
        def __len__(self):
            return 3

        def __iter__(self):
            for number in range(3):
                if number == kill_at:
                    os.kill(os.getpid(), signal.SIGTERM)
                seen.append(number)
                yield torch.full((4, 3, 4, 4), float(number)), torch.zeros(4, dtype=torch.int64)

    result = None
    try:
        result = evaluation.evaluate(Batches(), learner, ALONE, clock=meters.Clock(CPU, 3))
    except cli.Terminated:
        pass
    return result, seen


def test_an_evaluation_in_a_training_leaves_and_is_made_anew(tmp_path):
    """SIGTERM in it: it ends after the batch in hand, with a checkpoint from which the evaluation alone is left of the epoch."""
    model = small_network()
    learner = NOBODY._replace(model=model, criterion=torch.nn.functional.cross_entropy)
    ours = make_progress(tmp_path, model)
    clock = ours.start_clock(MadeUpBatches(), 2)
    run_steps(ours, clock)
    assert evaluated(ours, learner, kill_at=1) == (None, [0, 1])
    assert evaluated(None, learner)[1] == [0, 1, 2], "a run that has left ends the next one in this process"
    content = checkpoint.load(str(tmp_path / "c.pth.tar"))
    assert (content["epoch"], content["step"]) == (0, len(MadeUpBatches()))
    again = make_progress(tmp_path, model)
    again.resume(content, "file")
    assert len(run_steps(again, again.start_clock(MadeUpBatches(), 2))) == 1, "a step was taken again"
    assert again.results == ours.results
    result, seen = evaluated(again, learner)
    assert seen == [0, 1, 2] and result.top1 >= 0


def test_an_evaluation_alone_is_not_held_up(tmp_path):
    """Outside a training nobody notes SIGTERM: it ends the process."""
    learner = NOBODY._replace(model=small_network(), criterion=torch.nn.functional.cross_entropy)
    assert evaluated(None, learner)[1] == [0, 1, 2] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

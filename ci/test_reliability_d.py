"""What becomes of a training whose data, or whose loader processes, are not as they should be."""
import os
import re
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from common import cli, data, distributed, loading, workers
from conftest import ROOT, block, environment, running_in, script_command, wait_until

CPU = torch.device("cpu")
ALONE = distributed.Rank(0, 1, 0, CPU)


class Pictures(torch.utils.data.Dataset):
    """Pictures of 2 x 3 pixels of their number; what `spoilt(number)` does happens on the way."""

    def __init__(self, length, spoilt=lambda number: None):
        self._length, self._spoilt = length, spoilt

    def __len__(self):
        return self._length

    def sample(self):
        return np.zeros((2, 3, 3), np.uint8)

    def __getitem__(self, key):
        self._spoilt(key[1])
        return (self.sample() + key[1] % 256, np.full(3, key[1], np.float32)), key[1], []


def loader(length=40, batch=4, count=2, spoilt=lambda number: None):
    return loading.Loader(Pictures(length, spoilt), data.EvalBatches(length, batch, ALONE), count)


def is_running(pid):
    """Return whether a process is there and no zombie."""
    try:
        with open("/proc/%d/stat" % pid) as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- loader processes that die ----------------------------------------------------------------------------------------

def when_it_is(number, act):
    return lambda at: act() if at == number else None


def killed_by(number):
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("act, words", [
    (killed_by(signal.SIGKILL), r"was killed by signal 9 \(by the kernel, where memory was short: fewer --workers take less\)$"),
    (killed_by(signal.SIGUSR1), "was killed by signal 10$"), (killed_by(signal.SIGTERM), "was killed by signal 15$"),
    (lambda: os._exit(7), "ended with status 7$")])
def test_a_dead_loader_process_is_named(act, words):
    """One line: which one, and which signal; at -9 a hint at memory. What was made before it died is used."""
    seen = []
    with pytest.raises(cli.TrainingStopped, match=r"loader process 2 of 2, pid \d+, " + words):
        for _, labels, _, _ in loader(spoilt=when_it_is(22, act)):
            seen += labels.tolist()
    assert seen == list(range(20))


def test_a_loader_process_that_died_between_two_epochs_is_named():
    """Nobody was waiting for it then."""
    source = loader()
    list(source)
    os.kill(source._workers[0].pid, signal.SIGKILL)
    wait_until(lambda: not is_running(source._workers[0].pid), timeout=20)
    with pytest.raises(cli.TrainingStopped, match="loader process 1 of 2"):
        list(source)


def fail(error):
    raise error


@pytest.mark.parametrize("error, kind, words", [
    (KeyError("of a bug"), RuntimeError, "in a loader process:\n.*KeyError: 'of a bug'"),
    (MemoryError(), cli.TrainingStopped, "^a loader process got no memory for a picture; fewer --workers"),
    (cli.TrainingStopped("why"), cli.TrainingStopped, "^why$")])
def test_what_fails_in_a_loader_process_fails_in_the_trainer(error, kind, words):
    """A bug with its traceback, once; what is no bug in a line. The process goes on."""
    source = loader(spoilt=when_it_is(4, lambda: fail(error)))
    with pytest.raises(kind) as raised:
        list(source)
    assert re.search(words, str(raised.value), re.DOTALL)
    assert all(is_running(each.pid) for each in source._workers)


def test_a_loader_process_has_no_handlers_of_the_trainer():
    """Not for an instant: a SIGTERM that came while it was made, and that the trainer only makes a note of, ended nothing, and
    whoever waited for the process waited for ever."""
    noted, before = [], signal.signal(signal.SIGTERM, lambda *_: noted.append(1))
    try:
        for _ in range(50):
            worker = workers.Worker("1 of 1", lambda task: task)
            os.kill(worker.pid, signal.SIGTERM)
            with pytest.raises(cli.TrainingStopped, match="signal 15"):
                worker.receive()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not noted


TRAINER = """
import os, signal, sys
sys.path[:0] = [%r, %r]
from test_reliability_d import loader
source = loader()
list(source)
os.kill(source._workers[0].pid, signal.SIGSTOP)
print(*[worker.pid for worker in source._workers], flush=True)
if sys.argv[1] == "waits":
    signal.pause()
""" % (ROOT, os.path.join(ROOT, "ci"))


@pytest.mark.parametrize("how", ["ends", "waits"])
def test_no_loader_process_outlives_the_trainer(how):
    """Neither one that is stopped nor one that waits; whether the trainer ends or is killed. The trainer waits for none of them."""
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER, how], stdout=subprocess.PIPE, env=environment())
    pids = [int(word) for word in trainer.stdout.readline().split()]
    assert len(pids) == 2
    if how == "waits":
        trainer.kill()
    trainer.communicate(timeout=60)
    wait_until(lambda: not any(is_running(pid) for pid in pids), timeout=20)


def test_loader_processes_end_with_their_loader():
    """A program that makes one after the other does not collect processes."""
    source = loader()
    pids = [worker.pid for worker in source._workers]
    del source
    assert not any(os.path.exists("/proc/%d" % pid) for pid in pids)


def loader_processes(top):
    """Return the processes below the process `top` that are forks of their parent: they have its command line."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,args"], stdout=subprocess.PIPE, universal_newlines=True).stdout
    rows = {int(pid): (int(parent), args) for pid, parent, args in (line.split(None, 2) for line in listed.splitlines()[1:])}

    def is_below(pid):
        return pid == top or pid in rows and is_below(rows[pid][0])
    return [pid for pid, (parent, args) in rows.items() if is_below(parent) and rows[parent][1] == args]


def test_a_killed_loader_process_of_a_training(tiny_imagenet, tmp_path):
    """The whole of it, with two ranks: status 3, one line, a log, and nothing that goes on."""
    command = script_command("ResNet50/test/train_full_8p.sh", "--data_path=%s" % tiny_imagenet, "--device=cpu", "--workers=4",
                             "--device_list=0,1", "--arch=resnet18", "--image_size=32", "--batch_size=8", "--train_epochs=5000",
                             "--output_path=%s" % tmp_path)
    script = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment())
    log = tmp_path / "train_0.log"
    wait_until(lambda: log.exists() and b"Epoch: [1]" in log.read_bytes())
    victims = loader_processes(script.pid)
    assert len(victims) == 2 * 2 * 2  # of two ranks, two for the training and two for the evaluation
    os.kill(victims[0], signal.SIGKILL)
    complaint = script.communicate(timeout=60)[1].decode()
    assert script.returncode == 3, complaint
    assert re.match(r"main.py: error: loader process 1 of 2, pid %d, was killed by signal 9 .*\n$" % victims[0], complaint), complaint
    wait_until(lambda: not running_in(tmp_path) and not any(is_running(pid) for pid in victims), timeout=20)


# --- what loader processes take ---------------------------------------------------------------------------------------

def test_an_iteration_that_is_broken_off():
    """The next one begins at its beginning."""
    source = loader()
    for _ in range(3):
        assert next(iter(source))[1].tolist() == [0, 1, 2, 3]
    assert [label for _, labels, _, _ in source for label in labels.tolist()] == list(range(40))


def test_batches_larger_than_a_pipe():
    """Nobody waits for a pipe that the other side does not read, as it is waiting too."""
    source = loader(length=50000, batch=10000, count=1)
    for number, (images, labels, _, shifts) in enumerate(source):
        assert torch.equal(labels, 10000 * number + torch.arange(10000)) and torch.equal(shifts[:, 2], labels.float())
        assert torch.equal(images[:, 1, 1, 2], labels.to(torch.uint8))


def test_too_few_open_files(monkeypatch):
    """Found before anything is trained, with room for what is opened later."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    present = len(os.listdir("/proc/self/fd"))
    try:
        for limit, count in ((present + 4, 8), (present + 8, 0)):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            with pytest.raises(cli.UserError, match=r"^cannot start %d loader processes .Too many open files.; .*--workers.*ulimit -n" % count):
                loader(count=count)
        resource.setrlimit(resource.RLIMIT_NOFILE, (present + 40, hard))
        assert len(list(loader(count=8))) == 10
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("batch", [10 ** 11, 10 ** 25])
def test_more_memory_than_there_is(batch):
    """A line with the figure, and what to change."""
    with pytest.raises(cli.UserError, match=r"^no memory for \d+.\d GB of batches, 6 in the making; .*--batch_size.*--workers"):
        loader(batch=batch)


CONTAINER = """
mount -t tmpfs -o size=64k tmpfs /dev/shm
exec "$@"
"""


@pytest.mark.skipif(subprocess.call(["unshare", "-m", "true"], stderr=subprocess.DEVNULL) != 0, reason="mounting takes root")
def test_a_container_with_next_to_no_shared_memory(tiny_imagenet, tmp_path):
    """A thousandth of what Docker gives: nothing of a training is in /dev/shm."""
    command = script_command("ResNet50/test/train_full_1p.sh", "--data_path=%s" % tiny_imagenet, "--device=cpu", "--workers=8",
                             "--arch=resnet18", "--image_size=64", "--batch_size=32", "--train_epochs=1", "--output_path=%s" % tmp_path)
    done = subprocess.run(["unshare", "-m", "bash", "-c", CONTAINER, "-"] + command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, env=environment(), timeout=300)
    assert block(done) and not done.stderr, done.stderr

"""common/loading.py: what loader processes write is what the trainer reads, and how batches travel to a device."""
import multiprocessing
import os
import runpy
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import npu_sim
from common import cli, data, device as devices, distributed, launch, loading, meters, records, workers
from conftest import CI, ROOT, environment, write_images

CPU = torch.device("cpu")
ALONE = distributed.Rank(0, 1, 0, CPU)
TRAINER = os.getpid()


class Numbered(torch.utils.data.Dataset):
    """Pictures of 5 x 4 pixels: the number of the picture, and in the other channels its epoch and whether a worker made it."""

    def __init__(self, length, shifts=False):
        self._length, self._shifts = length, shifts

    def __len__(self):
        return self._length

    def sample(self):
        return np.zeros((4, 5, 3), np.uint8)

    def __getitem__(self, key):
        pixels = self.sample()
        pixels[...] = key[1] % 256, key[0], os.getpid() != TRAINER
        return (pixels, np.full(3, key[1], np.float32)) if self._shifts else pixels, key[1], []


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_batch_stays_until_the_next_one_is_asked_for(count):
    """The memory of batches is used again and again, and never while the trainer looks at it, in several epochs, with a smaller
    last batch. Made in the processes that were asked for."""
    source = loading.Loader(Numbered(250), data.EvalBatches(250, 8, ALONE), count)
    addresses = set()
    for _ in range(2):
        seen = []
        for images, labels, bad in source:
            time.sleep(0.002)  # the workers run ahead as far as they may
            assert (images[:, 0] == labels[:, None, None]).all() and images.shape == (len(labels), 3, 4, 5) and not bad
            assert (images[:, 2] == (count > 0)).all()
            seen += labels.tolist()
            addresses.add(images.data_ptr())
        assert seen == list(range(250))
    assert len(addresses) == 3 * max(1, count)


def mapped_from(address):
    """Return what the memory at an address of this process is a mapping of."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            first, last = [int(end, 16) for end in line.split()[0].split("-")]
            if first <= address < last:
                return " ".join(line.split()[5:])


def test_pictures_cross_without_being_pickled(monkeypatch):
    """What the workers send is a few numbers a picture, no array and no tensor, and the shared memory is none of /dev/shm's, of
    which containers have little."""
    received, receive = [], workers.Worker.receive
    monkeypatch.setattr(workers.Worker, "receive", lambda worker: received.append(receive(worker)) or received[-1])
    images = next(iter(loading.Loader(Numbered(64), data.EvalBatches(64, 32, ALONE), 1)))[0]
    assert not any(isinstance(part, (torch.Tensor, np.ndarray)) for part in received[0])
    assert len(multiprocessing.reduction.ForkingPickler.dumps(received[0])) < 32 * 8
    assert mapped_from(images.data_ptr()).startswith("/dev/zero")


def test_a_picture_of_another_size_is_refused():
    """A picture may not be spread over the place of a larger one."""
    dataset = Numbered(4)
    source = loading.Loader(dataset, data.EvalBatches(4, 2, ALONE), 0)
    dataset.sample = lambda: np.zeros((1, 1, 3), np.uint8)
    with pytest.raises(ValueError, match="a picture of .1, 1, 3. in a batch of pictures of .4, 5, 3."):
        list(source)


@pytest.mark.parametrize("shifts", [False, True])
def test_normalisation(shifts):
    """(image + shift - 255 mean) / 255 std, each image with its own shift; in the layout that suits the device."""
    batches = loading.device_batches(Numbered(6, shifts), data.EvalBatches(6, 3, ALONE), 0, ALONE, (0.1, 0.2, 0.3), (0.5, 1, 2))
    (first, labels), (second, _) = list(batches)
    number = torch.arange(6.0)
    wanted = torch.stack([(number - 25.5) / 127.5, (0 * number - 51) / 255, (0 * number - 76.5) / 510], 1)
    if shifts:
        wanted += number[:, None] / torch.tensor([127.5, 255, 510])
    assert torch.allclose(torch.cat([first, second])[:, :, 0, 0], wanted, atol=1e-6)
    assert first.is_contiguous(memory_format=devices.memory_format(CPU))
    assert first.dtype == torch.float32 and labels.tolist() == [0, 1, 2] and labels.dtype == torch.int64


TRAVEL = """
import torch, torch_npu
from common import data, device, distributed, loading
from test_loading import Numbered

npu = device.pick("npu")
rank = distributed.Rank(0, 1, 0, npu)
to, copies, arrivals = torch.Tensor.to, [], []
def watched(self, *args, **kwargs):
    if self.device.type == "cpu" and args and args[0] == npu:
        assert self.is_pinned() and self.is_contiguous() and kwargs == {"non_blocking": True}, (self.shape, self.stride())
        copies.append((self.dtype, tuple(self.shape), torch.npu.current_stream(npu) != torch.npu.default_stream(npu)))
    return to(self, *args, **kwargs)
batches = loading.device_batches(Numbered(10), data.EvalBatches(10, 4, rank), 1, rank)
torch.Tensor.to = watched
on_cpu = list(loading.device_batches(Numbered(10), data.EvalBatches(10, 4, rank), 1, rank._replace(device=torch.device("cpu"))))
for number, (images, labels) in enumerate(batches):
    assert images.device == labels.device == npu and images.is_contiguous() and images.dtype == torch.float32
    assert torch.equal(images.cpu(), on_cpu[number][0]) and torch.equal(labels.cpu(), on_cpu[number][1])
    arrivals.append(len(copies))
print(arrivals, copies[0], copies[-1])
"""


@pytest.mark.skipif(npu_sim.skip_reason() is not None, reason=str(npu_sim.skip_reason()))
def test_batches_travel_pinned_contiguous_and_ahead():
    """To an NPU: bytes as (N, H, W, 3) from pinned memory, on another stream than the step's, the next batch before this one is
    given; there they have the CPU's values. (A copy that is not pinned or not contiguous would be waited for.)"""
    variables = environment(PYTHONPATH=os.pathsep.join([os.path.join(CI, "npu_sim"), ROOT, CI]), NPU_SIM_STRICT="1")
    done = subprocess.run([sys.executable, "-c", TRAVEL], stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
                          env=variables, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[4, 6, 6] (torch.uint8, (4, 4, 5, 3), True) (torch.int64, (2,), True)\n"


def test_unreadable_pictures_stop_the_batches():
    """As everywhere: the name of the file, and what to do."""
    source = [(torch.zeros(1, 3, 2, 2), torch.zeros(1), ["a.jpg (truncated)"])]
    with pytest.raises(cli.TrainingStopped, match="a.jpg .truncated.; --skip_bad_images"):
        list(loading.DeviceBatches(source, CPU))


@pytest.mark.parametrize("quota, ranks, cpus", [("max 100000", 1, 4), ("250000 100000", 1, 2), ("800000 100000", 4, 2),
                                                ("50000 100000", 1, 1), ("no quota", 1, 4), (None, 1, 4)])
def test_cpus_of_a_container(monkeypatch, tmp_path, quota, ranks, cpus):
    """What affinity allows, and of a container's quota the share of a rank: half a CPU more is none, and there is always one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr("common.environment._QUOTA", str(tmp_path / "cpu.max"))
    if quota:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    assert distributed.environment.cpus(ranks) == cpus


@pytest.mark.parametrize("number", ["0", "x"])
def test_a_launchers_number_that_is_none(monkeypatch, tmp_path, number):
    """Defect: in a container with a quota the import ended in a traceback, before anybody could say what is wrong."""
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    monkeypatch.setattr("common.environment._QUOTA", str(tmp_path / "cpu.max"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setenv("LOCAL_WORLD_SIZE", number)
    assert runpy.run_path(loading.__file__)["_CPUS"] == 2


@pytest.mark.parametrize("ranks, threads", [(1, 3), (2, 1), (8, 1)])
def test_threads_of_a_rank_in_a_container(monkeypatch, tmp_path, ranks, threads):
    """Ranks on a CPU share what a container may use. Defect: each took its part of the CPUs of the host, and the kernel held them all up."""
    (tmp_path / "cpu.max").write_text("300000 100000\n")
    monkeypatch.setattr("common.environment._QUOTA", str(tmp_path / "cpu.max"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    taken = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    place = launch.Place(1, 0, (0,), ranks, 0, 1, "127.0.0.1", None, "")
    distributed._run_rank(lambda args, rank: None, None, distributed.Layout("cpu", range(ranks), place), 0)
    assert taken == [threads]


@pytest.mark.parametrize("count", [0, 2])
def test_what_the_input_reaches_is_said_once(count, capsys):
    """A training says after its first batches how many images a second its loader processes can make; an evaluation does not."""
    batches = loading.device_batches(Numbered(400), data.TrainBatches(400, 10, ALONE), count, ALONE)
    for _ in range(2):
        list(batches)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("input: up to ")]
    assert len(told) == 1 and told[0].endswith(" images/s, loader processes: %d" % count) and float(told[0].split()[3]) > 0
    list(loading.device_batches(Numbered(400), data.EvalBatches(400, 10, ALONE), 0, ALONE))
    assert "input:" not in capsys.readouterr().out


def test_a_slow_scan_is_remarked_on(monkeypatch, tmp_path, capsys):
    """Where listing a data set takes long, a line says what would help; where it does not, nothing is said."""
    write_images(tmp_path, classes=2, per_class=3)
    data.Files(str(tmp_path))
    assert not capsys.readouterr().out
    monkeypatch.setattr(data, "_SLOW_SCAN", -1)
    data.Files(str(tmp_path))
    assert "6 pictures found" in capsys.readouterr().out


def test_waiting_for_data_is_recorded(tmp_path, capsys):
    """The share of an epoch's time that the trainer waited for batches: a line, a record of the epoch, one of the whole run."""
    def clock(waited, took):
        meters_ = [meters.AverageMeter(name) for name in ("data", "step")]
        for meter, value in zip(meters_, (waited, took)):
            meter.update(value, 10)
        return SimpleNamespace(data_time=meters_[0], step_time=meters_[1], images_per_second=None, summary=lambda: {})

    recorder = records.Recorder(str(tmp_path / "m.jsonl"), ALONE)
    progress = SimpleNamespace(epoch=0, results={})
    recorder.epoch(progress, clock(1.0, 4.0), 0.1)
    recorder.epoch(progress, clock(0.0, 12.0), 0.1)
    recorder.summary(progress, clock(0.0, 0.0), 0)
    found = [record["data"]["train.data_wait"] for record in records.read(str(tmp_path / "m.jsonl")) if record["type"] == "LOG"]
    assert found == [25.0, 0.0, 6.25]
    assert capsys.readouterr().out == "waited for data 25.0 % of the time\nwaited for data 0.0 % of the time\n"

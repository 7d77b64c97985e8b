"""Unit tests of common/: where the logic is subtle."""
import argparse
import importlib.util
import inspect
import json
import os
import pickle
import random
import resource
import socket
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from common import (checkpoint, cli, data, device as devices, distributed, evaluation, jpeg, meters, precision, progress, records,
                    report, transforms)
from conftest import ROOT, environment, free_port, write_images

CPU = torch.device("cpu")
ALONE = distributed.Rank(0, 1, 0, CPU)


# --- command lines ----------------------------------------------------------------------------------------------------

def test_hyphen_and_underscore_are_one_flag():
    """`--a-b` and `--a_b`, with `=` or without, and values keep their underscores."""
    parser = cli.Parser()
    parser.add_argument("--dist-url")
    for words in (["--dist_url=a_b"], ["--dist-url", "a_b"], ["--dist_url", "a_b"]):
        assert parser.parse_args(words).dist_url == "a_b"


def test_short_flags_take_their_value_joined():
    """`-j0` and `-j 0` are one flag on every Python (3.7 would refuse the first where abbreviations are off)."""
    parser = cli.Parser()
    parser.add_argument("-j", "--workers", type=int)
    assert [parser.parse_args(words).workers for words in (["-j3"], ["-j", "3"], ["--workers=3"])] == [3, 3, 3]


@pytest.mark.parametrize("words", [["--learn", "1"], ["--unknown"], ["--batch", "x"], ["--batch", "0"], ["--batch"]])
def test_wrong_flags_are_one_line_and_status_2(words, capsys):
    """Abbreviations, unknown flags, wrong and missing values: one line, status 2."""
    parser = cli.Parser(prog="prog")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--batch", type=cli.positive_int)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(words)
    assert ended.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


def test_booleans_mean_what_they_say():
    """`False` is false (the ports take any text as true)."""
    assert [cli.boolean(text) for text in ("True", "false", "0", "ON")] == [True, False, False, True]
    with pytest.raises(cli.argparse.ArgumentTypeError):
        cli.boolean("maybe")


def test_device_list_is_sorted_and_checked():
    """A device list is ascending and without repetition."""
    assert cli.int_list("7,5,6") == [5, 6, 7]
    for text in ("", "1,1", "a", "-1"):
        with pytest.raises(cli.argparse.ArgumentTypeError):
            cli.int_list(text)


# --- devices ----------------------------------------------------------------------------------------------------------

def test_torchvision_imports_without_its_compiled_part():
    """`import torchvision` works beside a CPU or NPU build of torch, and twice."""
    code = ("from common import device; device.import_torchvision(); import torchvision.models, torchvision.datasets; "
            "device.import_torchvision(); print(torchvision.models.resnet18().fc.out_features)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, universal_newlines=True, env=environment())
    assert done.stdout.strip() == "1000"


def test_absent_devices_are_named():
    """A device that is not there is an error that says what is there."""
    if not torch.cuda.is_available():
        with pytest.raises(cli.UserError, match="no such device"):
            devices.pick("gpu")
    assert devices.pick("auto" if not torch.cuda.is_available() else "cpu") == CPU


def test_too_few_devices_are_counted(monkeypatch):
    """Eight ranks on four NPUs: an error that says how many there are and names the option."""
    monkeypatch.setattr(devices, "count", lambda kind: 4)
    with pytest.raises(cli.UserError, match="has 4 npu .*--device_list"):
        distributed.layout("npu", list(range(8)))


# --- several ranks ----------------------------------------------------------------------------------------------------

def test_layout_refuses_a_taken_port():
    """A port in use is found before anything starts."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        with pytest.raises(cli.UserError, match="cannot listen"):
            distributed.layout("cpu", [0, 1], addr="127.0.0.1", port=taken.getsockname()[1])


RESERVED = """
import socket, subprocess, sys
from datetime import timedelta
import torch.distributed as dist
sys.path.insert(0, {root!r})
from common import distributed

subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
with open("/proc/sys/net/ipv4/ip_local_port_range", "w") as kernel:
    kernel.write("40000 40009")
port, taken = distributed.layout("cpu", [0, 1]).place.port, []
with socket.socket() as server:
    server.bind(("127.0.0.1", 5000))
    server.listen(20)
    try:
        while True:
            taken.append(socket.create_connection(("127.0.0.1", 5000)))
    except OSError:
        assert port not in [other.getsockname()[1] for other in taken] and len(taken) == 9
dist.TCPStore("127.0.0.1", port, 1, True, timedelta(seconds=20)).set("key", "value")
"""
HAS_NAMESPACES = not subprocess.call("unshare --net --map-root-user ip link", shell=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.skipif(not HAS_NAMESPACES, reason="no network namespaces here (unshare --net)")
def test_nobody_gets_the_port_before_rank_0_listens():
    """Ranks take seconds to start; until then, no connection of another program on this machine is given the port that was free."""
    code = RESERVED.format(root=ROOT)
    done = subprocess.run(["unshare", "--net", "--map-root-user", sys.executable, "-c", code], stderr=subprocess.PIPE,
                          universal_newlines=True, env=environment(), timeout=120)
    assert done.returncode == 0, done.stderr


def test_layout_checks_machines():
    """The number of a machine lies below the number of machines, and several need a meeting point."""
    with pytest.raises(cli.UserError, match="node rank 2"):
        distributed.layout("cpu", [0], nnodes=2, node_rank=2, addr="127.0.0.1", port=1)
    with pytest.raises(cli.UserError, match="--addr"):
        distributed.layout("cpu", [0], nnodes=2, node_rank=0)


RANKS = """
import os, signal, sys, time
import torch
sys.path.insert(0, {root!r})
from common import cli, distributed, progress

def worker(what, rank):
    total = distributed.sum_over_ranks([rank.rank, 1], rank)
    assert total == [sum(range(rank.world_size)), rank.world_size], total
    seed = progress.choose_seed(None, {{}}, rank)
    assert distributed.sum_over_ranks([seed], rank) == [seed * rank.world_size]
    model = torch.nn.BatchNorm1d(2)
    model.running_mean += rank.rank + 1
    distributed.broadcast_buffers(model, rank)
    assert model.running_mean.tolist() == [1, 1]
    if what == "bad" and rank.rank == 2:
        raise cli.UserError("the fault of rank 2")
    if what == "crash" and rank.rank == 1:
        raise RuntimeError("boom in rank 1")
    if what == "killed" and rank.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if what != "well":
        distributed.barrier(rank)  # where the others lose their peer
        time.sleep(60)
    if rank.is_main:
        print("sum", total)

def main():
    distributed.launch(worker, sys.argv[1], distributed.layout("cpu", [0, 1, 2]))

if __name__ == "__main__":
    cli.run(main)
"""


@pytest.fixture(scope="module")
def ranks_script(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks") / "ranks.py"
    path.write_text(RANKS.format(root=ROOT))
    return str(path)


@pytest.mark.parametrize("what, status, words", [
    ("well", 0, ""), ("bad", 2, "the fault of rank 2"), ("crash", 1, "boom in rank 1"), ("killed", 137, "rank 1 was killed by signal 9")])
def test_one_rank_ends_all(ranks_script, what, status, words):
    """Collectives agree; bad input, a crash or a kill in one rank ends all of them at once, with its status and its reason."""
    done = subprocess.run([sys.executable, ranks_script, what], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, env=environment(), timeout=240)
    assert done.returncode == status and words in done.stderr
    assert (done.stdout == "sum [3.0, 3.0]\n") == (status == 0)
    assert len(done.stderr.splitlines()) == {0: 0, 2: 1, 137: 1}.get(status, len(done.stderr.splitlines()))
    assert what != "crash" or done.stderr.count("Traceback") == 1


def test_lines_of_ranks_do_not_run_into_each_other(tmp_path):
    """A line is one write, even where Python does not buffer: several ranks share one stdout."""
    code = "import sys; sys.path.insert(0, %r); from common import cli; cli.print_line('step 1')" % ROOT
    trace = tmp_path / "writes"
    wrapped = ("import os, sys\nclass Raw:\n def write(self, text): open(%r, 'a').write(repr(text) + '|'); return len(text)\n"
               " def flush(self): pass\nsys.stdout = Raw()\n")
    subprocess.run([sys.executable, "-c", wrapped % str(trace) + code], check=True)
    assert trace.read_text() == "'step 1\\n'|"


def test_torchs_launcher_starts_the_ranks(ranks_script):
    """Started by PyTorch's own launcher (torchrun; before 1.9 torch.distributed.launch), each process is one rank and spawns nothing."""
    launcher = ["torch.distributed.run"] if _importable("torch.distributed.run") else ["torch.distributed.launch", "--use_env"]
    command = [sys.executable, "-m"] + launcher + ["--nproc_per_node=3", "--master_port=%d" % free_port(), ranks_script, "well"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, env=environment(), timeout=120)
    assert done.returncode == 0 and done.stdout.count("sum") == 1, done.stderr


def _importable(name):
    return importlib.util.find_spec(name) is not None


# --- data -------------------------------------------------------------------------------------------------------------

def rank_of(rank, world_size):
    return distributed.Rank(rank, world_size, rank, CPU)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_training_batches_do_not_depend_on_the_ranks(world_size):
    """In each step N ranks with B/N together see what one rank sees with B; each image at most once an epoch."""
    alone = [set(batch) for batch in data.TrainBatches(101, 8, ALONE, seed=3)]
    parts = [list(data.TrainBatches(101, 8 // world_size, rank_of(r, world_size), seed=3)) for r in range(world_size)]
    assert len(alone) == 12 and [set().union(*step) for step in zip(*parts)] == alone
    assert len(set().union(*alone)) == 96


def test_epochs_differ_and_can_start_in_the_middle():
    """Every epoch has an order of its own (defect 12), a function of seed and epoch, from any step on."""
    batches = data.TrainBatches(64, 8, ALONE, seed=1)
    orders = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        orders.append([index for batch in batches for _, index in batch])
    assert orders[0] != orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2])
    batches.set_epoch(1, first_step=5)
    assert [index for batch in batches for _, index in batch] == orders[1][40:]


@pytest.mark.parametrize("world_size, length", [(1, 10), (3, 10), (8, 5), (8, 50)])
def test_evaluation_sees_each_image_once(world_size, length):
    """Nothing is padded, nothing left out, whatever the number of ranks."""
    seen = [index for r in range(world_size) for batch in data.EvalBatches(length, 4, rank_of(r, world_size)) for _, index in batch]
    assert sorted(seen) == list(range(length))


def test_accumulated_batches_are_the_images_of_one_update():
    """Two batches that make one update hold the images of the one batch of twice as many ranks, and no update is left half."""
    together = [set(batch) for batch in data.TrainBatches(103, 16, ALONE, seed=3)]
    accumulated = list(data.TrainBatches(103, 8, ALONE, seed=3, accumulate=2))
    assert len(accumulated) == 12 and [set(accumulated[i] + accumulated[i + 1]) for i in range(0, 12, 2)] == together
    kept = data.TrainBatches(103, 8, ALONE, seed=3, drop_last=False, accumulate=2)
    assert len(kept) == 13 and (kept.images, kept.global_batch) == (103, 16)


def test_more_classes_than_outputs_are_refused(tmp_path):
    """The class count is checked where the classes are read, for every model."""
    write_images(tmp_path / "d", classes=3, per_class=1)
    with pytest.raises(cli.UserError, match="has 3 classes, the network has 2 outputs"):
        data.ImageFolder(str(tmp_path / "d"), None, 2)


def test_a_batch_larger_than_the_data_set_is_refused():
    """Without a single whole batch there would be nothing to train."""
    with pytest.raises(cli.UserError, match="larger than the data set"):
        data.TrainBatches(10, 4, rank_of(0, 3))


def random_crop(image, rng):
    box = transforms.random_resized_crop_box(image.size[0], image.size[1], rng)
    return np.asarray(transforms.crop_and_resize(image, box, 16))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_augmentation_does_not_depend_on_the_workers(tiny_imagenet, workers):
    """A sample is a function of (seed, epoch, index): the same batches from 0, 1 and 3 loader processes."""
    dataset = data.ImageFolder(str(tiny_imagenet / "train"), random_crop, 4, seed=5)
    source = data.Loader(dataset, data.TrainBatches(len(dataset), 16, ALONE, seed=5), workers)
    wanted = [(dataset[(0, index)][0].sum(), dataset[(0, index)][1]) for batch in data.TrainBatches(64, 16, ALONE, seed=5)
              for _, index in batch]
    got = [(int(image.sum()), int(label)) for images, labels, _ in source for image, label in zip(images, labels)]
    assert got == wanted
    assert (dataset[(0, 3)][0] != dataset[(1, 3)][0]).any()


def test_crop_boxes_have_inceptions_distribution():
    """Area uniform in 8 % to 100 %, aspect ratio log-uniform in 3/4 to 4/3, inside the image; a fall-back for odd shapes."""
    rng = random.Random(0)
    boxes = [transforms.random_resized_crop_box(400, 400, rng) for _ in range(4000)]
    assert all(0 <= l < r <= 400 and 0 <= t < b <= 400 for l, t, r, b in boxes)
    areas = np.array([(r - l) * (b - t) / 160000.0 for l, t, r, b in boxes])
    ratios = np.log([(r - l) / float(b - t) for l, t, r, b in boxes])
    assert 0.07 < areas.min() < 0.1 and areas.max() > 0.9 and abs(ratios.mean()) < 0.02
    assert ratios.min() > np.log(0.74) and ratios.max() < np.log(1.35)
    assert transforms.random_resized_crop_box(1000, 10, rng) == (493, 0, 506, 10)


def break_image(path, how):
    if how == "truncated":
        content = open(path, "rb").read()
        open(path, "wb").write(content[:len(content) // 2])
    else:
        open(path, "w").write("no image")


def small(image, rng):
    return np.asarray(image.resize((8, 8)))


@pytest.mark.parametrize("how", ["truncated", "text"])
def test_unreadable_images(tmp_path, how):
    """A bad file is named; with skip_bad_images it is replaced in training, left out in evaluation, and counted once."""
    write_images(tmp_path / "d", classes=2, per_class=4)
    dataset = data.ImageFolder(str(tmp_path / "d"), small, 2)
    break_image(dataset.path(2), how)
    batches = data.EvalBatches(8, 4, ALONE)
    with pytest.raises(cli.TrainingStopped, match="n00000000_2.JPEG.*--skip_bad_images"):
        list(data.DeviceBatches(data.Loader(dataset, batches, 0), CPU))
    for replace, images in ((False, 7), (True, 8)):
        dataset = data.ImageFolder(str(tmp_path / "d"), small, 2, replace=replace)
        source = data.DeviceBatches(data.Loader(dataset, batches, 0), CPU, skip_bad_images=True)
        assert sum(len(target) for _ in range(2) for _, target in source) == 2 * images
        assert source.count_bad(ALONE) == 1


def test_odd_modes_become_rgb(tmp_path):
    """Grey, palette, CMYK and transparent pictures are decoded to three channels."""
    for number, mode in enumerate(["L", "P", "CMYK", "RGBA", "1"]):
        path = str(tmp_path / ("%d.%s" % (number, "jpg" if mode in ("L", "CMYK") else "png")))
        Image.new(mode, (5, 4)).save(path)
        assert np.asarray(jpeg.open_rgb(open(path, "rb").read())).shape == (4, 5, 3)


@pytest.mark.parametrize("make, words", [
    (lambda root: None, "not a folder"), (lambda root: root.mkdir(), "no folder train"),
    (lambda root: write_images(root / "train"), "no folder val"),
    (lambda root: (write_images(root / "train"), (root / "val").mkdir()), "no class folders"),
    (lambda root: (write_images(root / "train", classes=3), write_images(root / "val", classes=2)), "different classes")])
def test_layout_of_the_data_set(tmp_path, make, words):
    """Each way in which a data set is not ImageNet's layout is told apart."""
    make(tmp_path / "set")
    with pytest.raises(cli.UserError, match=words):
        data.check_layout(str(tmp_path / "set"))


# --- precision --------------------------------------------------------------------------------------------------------

def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))


def train_at(level, loss_scale=None, steps=4, accumulate=1):
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model, optimizer, amp = precision.initialize(model, optimizer, level, loss_scale)
    losses = []
    for step in range(steps):
        images = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        with amp.autocast():
            output = model(images)
        loss = nn.functional.cross_entropy(output.float(), torch.arange(8) % 5)
        amp.backward(loss / accumulate)
        if (step + 1) % accumulate == 0:
            amp.step()
        losses.append(loss.item())
    return model, optimizer, amp, losses


can_run = {level: precision._runs(level, CPU, torch.bfloat16) for level in ("O1", "O2")}


@pytest.mark.parametrize("level, loss_scale", [("O0", None), ("O1", 128.0), ("O1", "dynamic"), ("O2", 1024.0), ("O2", "dynamic"), ("O2", None)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_levels_train_alike(level, loss_scale, accumulate):
    """Each level and kind of loss scale trains like fp32 up to the rounding of bf16, accumulation included."""
    _, _, amp, losses = train_at(level, loss_scale, accumulate=accumulate)
    assert amp.opt_level == (level if can_run.get(level, True) else "O0")
    assert (amp.note is None) == (amp.opt_level == level)
    assert np.allclose(losses, train_at("O0", accumulate=accumulate)[3], rtol=0.03)


def test_static_scale_changes_nothing_in_exact_arithmetic():
    """A power of two as loss scale leaves an O0 training bit for bit as it is."""
    assert train_at("O0", 1024.0)[3] == train_at("O0")[3]


@pytest.mark.skipif(not can_run["O2"], reason="this PyTorch has no bf16 convolution on a CPU")
def test_o2_saves_and_restores_fp32_masters():
    """Under O2 weights are half, BatchNorm is fp32, and a checkpoint holds the fp32 masters, which a resume gets back."""
    model, optimizer, amp, _ = train_at("O2", 128.0)
    assert model[0].weight.dtype == torch.bfloat16 and model[1].weight.dtype == torch.float32
    state = model.state_dict()
    assert all(value.dtype in (torch.float32, torch.int64) for value in state.values())
    assert (state["0.weight"] != model[0].weight.float()).any() and (state["0.weight"].bfloat16() == model[0].weight).all()
    other = small_network()
    other, other_optimizer, _ = precision.initialize(other, torch.optim.SGD(other.parameters(), 0.1), "O2", 128.0)
    other.load_state_dict(state)
    masters = [p for group in other_optimizer.param_groups for p in group["params"]]
    assert all((ours == theirs).all() for ours, theirs in zip(masters, [p for g in optimizer.param_groups for p in g["params"]]))


def test_levels_that_cannot_run_say_so(monkeypatch):
    """Where a level cannot run, O0 runs and a note says why."""
    monkeypatch.setattr(precision, "_runs", lambda level, device, half: False)
    _, _, amp, losses = train_at("O2")
    assert amp.opt_level == "O0" and "running O0" in amp.note and losses == train_at("O0")[3]


class FakeApexAmp(object):
    """apex.amp's documented signatures, on plain fp32."""

    def __init__(self):
        self.calls = []

    def initialize(self, models, optimizers=None, enabled=True, opt_level="O1", cast_model_type=None, patch_torch_functions=None,
                   keep_batchnorm_fp32=None, master_weights=None, loss_scale=None):
        self.calls.append((opt_level, loss_scale))
        return models if optimizers is None else (models, optimizers)

    def scale_loss(self, loss, optimizers, loss_id=0, model=None, delay_unscale=False):
        import contextlib
        self.calls.append("scale_loss")

        @contextlib.contextmanager
        def scaled():
            yield loss
        return scaled()

    def state_dict(self, destination=None):
        return {"loss_scaler0": {"loss_scale": 128.0, "unskipped": 3}}

    def load_state_dict(self, state_dict):
        self.calls.append(state_dict)


def test_apex_is_called_as_documented(monkeypatch):
    """Where apex is installed, its own amp trains: initialize, scale_loss, state."""
    fake = FakeApexAmp()
    monkeypatch.setattr(precision, "_apex_amp", lambda: fake)
    gpu = type("Device", (), {"type": "cuda"})()
    model = small_network()
    model, optimizer, amp = precision.initialize(model, torch.optim.SGD(model.parameters(), 0.1), "O2", 1024, gpu)
    with amp.autocast():
        loss = model(torch.randn(2, 3, 4, 4)).pow(2).sum()
    before = model[0].weight.clone()
    amp.backward(loss)
    amp.step()
    assert (model[0].weight != before).any() and not any(p.grad is not None and p.grad.abs().sum() for p in model.parameters())
    amp.load_state_dict(amp.state_dict())
    assert fake.calls == [("O2", 1024), "scale_loss", fake.state_dict()]
    assert precision.initialize(model, None, "O2", None, gpu)[0] is model


# --- checkpoints ------------------------------------------------------------------------------------------------------

class RunsCode(object):
    def __reduce__(self):
        return os.system, ("touch %s" % os.environ.get("PROOF", "/dev/null"),)


def test_a_pickle_with_code_is_refused(tmp_path, monkeypatch):
    """A checkpoint that would run code is refused, and the code is not run."""
    proof = tmp_path / "ran"
    monkeypatch.setenv("PROOF", str(proof))
    torch.save({"state_dict": RunsCode()}, str(tmp_path / "new.pth"))
    with open(str(tmp_path / "bare.pth"), "wb") as stream:
        pickle.dump(RunsCode(), stream)
    for name in ("new.pth", "bare.pth"):
        with pytest.raises(cli.UserError):
            checkpoint.load(str(tmp_path / name))
    assert not proof.exists()


def test_safe_pickle_of_old_pytorch(tmp_path):
    """The unpickler for PyTorch without weights_only reads checkpoints and refuses code, on this version too."""
    state = {"state_dict": small_network().state_dict(), "epoch": 3, "best_acc1": torch.tensor(2.5), "h": torch.ones(2).half()}
    options = {"weights_only": False} if "weights_only" in inspect.signature(torch.load).parameters else {}
    torch.save(state, str(tmp_path / "good.pth"))
    loaded = torch.load(str(tmp_path / "good.pth"), pickle_module=checkpoint._SAFE_PICKLE, **options)
    assert loaded["epoch"] == 3 and (loaded["state_dict"]["0.weight"] == state["state_dict"]["0.weight"]).all()
    torch.save(RunsCode(), str(tmp_path / "bad.pth"))
    with pytest.raises(pickle.UnpicklingError):
        torch.load(str(tmp_path / "bad.pth"), pickle_module=checkpoint._SAFE_PICKLE, **options)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_truncated_checkpoints_are_recognised(tmp_path, kept):
    """Whatever part of a file is left, the error is one line that names it."""
    path = str(tmp_path / "c.pth")
    torch.save(small_network().state_dict(), path)
    size = os.path.getsize(path)
    with open(path, "rb+") as stream:
        stream.truncate(int(kept * size) if isinstance(kept, float) else kept)
    with pytest.raises(cli.UserError, match="c.pth") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 1},
                                    lambda s: {"model_state": s}, lambda s: {"state_dict": {"module." + k: v for k, v in s.items()}},
                                    lambda s: {k: v for k, v in s.items() if "num_batches" not in k}])
def test_layouts_of_checkpoints(layout):
    """Bare, wrapped, with `module.`, and from before num_batches_tracked: all load."""
    state = small_network().state_dict()
    state["0.weight"] = state["0.weight"] + 1
    model = small_network()
    checkpoint.load_weights(model, layout(state), "file")
    assert (model[0].weight == state["0.weight"]).all()


def average_beside(own_key, average_key, **errors):
    own, average = small_network().state_dict(), small_network().state_dict()
    average["0.weight"] = average["0.weight"] + 1
    return dict(errors, **{own_key: own, average_key: average})


@pytest.mark.parametrize("keys", [("state_dict", "ema_state"), ("model_state", "ema_state"), ("model", "model_ema"),
                                  ("state_dict", "state_dict_ema")])
@pytest.mark.parametrize("errors, use_ema, taken", [
    ({}, "auto", 0), ({}, "true", 1), ({}, "false", 0), ({"ema_err": 20.0, "test_err": 21.0}, "auto", 1),
    ({"ema_err": 20.0}, "auto", 1), ({"ema_err": 20.0, "test_err": 20.0}, "auto", 0), ({"ema_err": 20.0, "test_err": 21.0}, "false", 0)])
def test_of_weights_and_their_average_one_is_chosen_and_named(keys, errors, use_ema, taken):
    """A file of any tool that holds both: the better one, or the one that was asked for, and the log says which (it used to be the
    first key, whatever the errors said)."""
    content = average_beside(*keys, **errors)
    assert torch.equal(checkpoint.weights(content, "f", use_ema)["0.weight"], content[keys[taken]]["0.weight"])
    assert checkpoint.describe(content, "f", use_ema) == "the weights are those under the key %s of f" % keys[taken]


def test_an_average_that_is_not_there_is_refused():
    """Asking for the average of a file without one is a mistake; a file without a choice needs no line in the log."""
    state = small_network().state_dict()
    with pytest.raises(cli.UserError, match="no moving average"):
        checkpoint.weights({"state_dict": state}, "f", "true")
    assert checkpoint.describe({"state_dict": state}, "f") == checkpoint.describe(state, "f") == ""
    assert checkpoint.weights({"ema_state": state}, "f", "false").keys() == state.keys()


def test_another_architecture_is_described():
    """What does not fit is said: how many keys, the first of them, the shapes. Nothing is loaded (defects 8 and 20)."""
    state = small_network().state_dict()
    model = small_network()
    for change, words in (({"0.weight": torch.zeros(4, 3, 5, 5)}, "4x3x5x5 in the file and 4x3x3x3"), ({"extra": torch.ones(1)},
                          "unexpected .first: extra"), ({"4.bias": None}, "missing .first: 4.bias")):
        changed = {k: v for k, v in dict(state, **change).items() if v is not None}
        with pytest.raises(cli.UserError, match=words):
            checkpoint.load_weights(model, changed, "file")
    with pytest.raises(cli.UserError, match="no model weights"):
        checkpoint.load_weights(model, {"epoch": 3}, "file")
    assert (model[0].weight == small_network()[0].weight).all()


def test_disk_full_leaves_the_old_checkpoint(tmp_path):
    """When the disk is full the error is one line, the old file is intact and nothing half-written stays."""
    path = str(tmp_path / "c.pth")
    checkpoint.save({"weights": torch.ones(10)}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100000, limits[1]))
    try:
        with pytest.raises(cli.TrainingStopped, match="intact"):
            checkpoint.save({"weights": torch.ones(100000)}, path, copy_to=[path + ".best"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(checkpoint.load(path)["weights"]) == 10 and os.listdir(str(tmp_path)) == ["c.pth"]


def test_a_folder_without_permission(tmp_path):
    """A place that cannot be written is one line."""
    (tmp_path / "file").write_text("")
    with pytest.raises(cli.TrainingStopped, match="cannot write"):
        checkpoint.save({}, str(tmp_path / "file" / "c.pth"))


# --- progress ---------------------------------------------------------------------------------------------------------

def make_progress(tmp_path, model, **options):
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return progress.Progress(ALONE, "state_dict", {"state_dict": model, "optimizer": optimizer}, str(tmp_path / "c.pth.tar"),
                             str(tmp_path / "best.pth.tar"), constants={"seed": 7}, **options)


class MadeUpBatches(object):
    """Stands in for DeviceBatches: batch b of an epoch holds four images of the value b."""

    images, global_batch, step_images = 24, 4, 2

    def __len__(self):
        return 6

    def of_epoch(self, epoch, first_step=0):
        return ((torch.full((4,), float(step)), torch.zeros(4, dtype=torch.int64)) for step in range(first_step, 6))


# What `steps` has to know of what learns, where nothing does.
NOBODY = progress.Learner(torch.nn.Sequential(), None, None, precision.initialize(torch.nn.Sequential(), None, "O0")[2])


def run_steps(ours, clock, accumulate=1, until=None, loss=lambda step: 1.0 / (step + 1)):
    """Take the steps that are left of the epoch; return (step, torch's draw, batches of the update, whether it is complete)."""
    seen = []
    for step, images, target in ours.steps(MadeUpBatches(), NOBODY, clock, accumulate):
        assert float(images[0]) == step
        seen.append((step, torch.rand(1).item(), ours.batches_in_update, ours.update_is_complete))
        ours.tally.add(torch.tensor(loss(step)), torch.eye(4)[[0, 0, 0, step % 4]], target)
        clock.lap(4)
        if step == until:
            return seen
    return seen + [torch.rand(1).item()]  # what is drawn between the epochs, too


def test_best_and_last_are_kept(tmp_path):
    """The best epoch has a file of its own, strictly better only, and the last one is where a resume goes on."""
    model = small_network()
    ours = make_progress(tmp_path, model)
    for epoch, top1 in enumerate([10.0, 30.0, 20.0, 30.0]):
        with torch.no_grad():
            model[0].bias.fill_(epoch)
        ours.note_evaluation(meters.Result(top1, 90.0, 1.0))
        ours.end_epoch()
    best, last = checkpoint.load(str(tmp_path / "best.pth.tar")), checkpoint.load(str(tmp_path / "c.pth.tar"))
    assert (best["epoch"], last["epoch"], last["best_acc1"]) == (2, 4, 30.0)
    assert float(best["state_dict"]["0.bias"][0]) == 1 and last["results"]["val.top1"] == 30.0


def test_upstreams_checkpoints_resume(tmp_path, capsys):
    """A file with epoch, weights and best_acc1 alone (the port's) resumes; what it lacks is named. Another one is refused."""
    model = small_network()
    ours = make_progress(tmp_path, model)
    absent = ours.resume({"epoch": 7, "best_acc1": torch.tensor(61.5), "arch": "x",
                          "state_dict": {"module." + k: v for k, v in model.state_dict().items()}}, "file")
    assert (ours.epoch, ours.step, ours.best, absent) == (7, 0, 61.5, ["optimizer"])
    assert capsys.readouterr().out == "file holds no optimizer: starting anew with that\n"
    with pytest.raises(cli.UserError, match="optimizer does not fit"):
        ours.resume({"state_dict": model.state_dict(), "optimizer": {"state": {}, "param_groups": []}}, "file")


def test_sigterm_saves_between_updates_only(tmp_path):
    """SIGTERM writes the checkpoint after the current step and raises Terminated; not in the middle of an update."""
    ours = make_progress(tmp_path, small_network())
    clock = ours.start_clock(MadeUpBatches(), 1)
    steps = ours.steps(MadeUpBatches(), NOBODY, clock, accumulate=2)
    next(steps)
    os.kill(os.getpid(), cli.signal.SIGTERM)
    clock.lap(4)
    next(steps)
    clock.lap(4)
    with pytest.raises(cli.Terminated):
        next(steps)
    assert checkpoint.load(str(tmp_path / "c.pth.tar"))["step"] == 2
    cli.signal.signal(cli.signal.SIGTERM, cli.signal.SIG_DFL)


@pytest.mark.parametrize("stopped_after", [0, 2, 5])
def test_steps_and_results_of_a_resumed_epoch(tmp_path, stopped_after):
    """Whatever step an epoch is interrupted after, the last one included, torch's draws in the steps that follow and the results of the
    epoch are those of an undisturbed one."""
    (tmp_path / "whole").mkdir()
    whole = make_progress(tmp_path / "whole", small_network())
    wanted = run_steps(whole, meters.Clock(CPU, 6))
    interrupted = make_progress(tmp_path, small_network(), every_steps=1)
    seen = run_steps(interrupted, meters.Clock(CPU, 6), until=stopped_after + 1)[:stopped_after + 1]
    resumed = make_progress(tmp_path, small_network(), every_steps=1)
    resumed.resume(checkpoint.load(str(tmp_path / "c.pth.tar")), "c")
    assert resumed.step == stopped_after + 1 and seen == wanted[:stopped_after + 1]
    assert run_steps(resumed, meters.Clock(CPU, 6)) == wanted[stopped_after + 1:]
    assert resumed.results == whole.results and whole.results["train.loss"] == pytest.approx(1 / 6)
    assert whole.results["train.loss_mean"] == pytest.approx(sum(1 / (step + 1) for step in range(6)) / 6)
    assert len({step[1] for step in wanted[:6]} | {wanted[6]}) == 7


def test_updates_of_an_epoch(tmp_path):
    """Every batch belongs to one update; the last one takes those that are left, and knows how many."""
    seen = run_steps(make_progress(tmp_path, small_network()), meters.Clock(CPU, 6), accumulate=4)
    assert [step[2:] for step in seen[:6]] == [(4, False)] * 3 + [(4, True), (2, False), (2, True)]


def test_ranks_exchange_gradients_once_an_update(tmp_path):
    """In between, DistributedDataParallel adds up in place; but for O2, whose master weights take the gradients of every batch."""
    for level, wanted in (("O0", [False, False, False, True, False, True]), ("O2", [True] * 6)):
        learner, clock = NOBODY._replace(amp=types.SimpleNamespace(opt_level=level)), meters.Clock(CPU, 6)
        exchanged = []
        for _ in make_progress(tmp_path, small_network()).steps(MadeUpBatches(), learner, clock, accumulate=4):
            exchanged.append(learner.model.require_backward_grad_sync)
            clock.lap(4)
        assert exchanged == wanted


def test_a_loop_that_forgets_the_clock_is_told(tmp_path):
    """`steps` is the contract of the loop: without clock.lap the speed would be wrong in silence."""
    steps = make_progress(tmp_path, small_network()).steps(MadeUpBatches(), NOBODY, meters.Clock(CPU, 6))
    next(steps)
    with pytest.raises(AssertionError, match="clock.lap"):
        next(steps)


@pytest.mark.parametrize("key, value, words", [
    ("global_batch", 8, "4 images in an update, the run to resume has 8"), ("train_images", 23, "24 training images, the run to resume has 23"),
    ("run_length", 32, "this run has 1 pictures side by side .--shuffle_shards., the run to resume has 32"),
    ("classes", ["cat", "dog"], r"the classes \[\], the run to resume has \['cat', 'dog'\]")])
def test_another_batch_or_data_set_is_refused(tmp_path, key, value, words):
    """A step of the checkpoint would be another place in the data: images would be left out or seen twice; and the number of a class whose
    folder was renamed, or one before it, is another one."""
    ours = make_progress(tmp_path, small_network())
    ours.resume({"state_dict": small_network().state_dict(), "epoch": 1, "step": 2, key: value}, "file")
    with pytest.raises(cli.UserError, match=words):
        ours.start_clock(MadeUpBatches(), 3)


@pytest.mark.parametrize("stored, step", [({}, 4), ({"step_images": 2}, 4), ({"step_images": 4, "step": 3}, 6), ({"step_images": 1}, 2)])
def test_a_resume_with_another_accumulation_starts_at_the_same_image(tmp_path, stored, step):
    """An update may be computed in more or fewer batches than before the interruption: what counts is the images that were seen."""
    ours = make_progress(tmp_path, small_network())
    ours.resume(dict({"state_dict": small_network().state_dict(), "step": 4}, **stored), "file")
    ours.start_clock(MadeUpBatches(), 3)
    assert ours.step == step


def test_the_seed_of_a_resumed_run(monkeypatch):
    """Asked for: that one, unless the run to resume has another; else the run's own; else a random one. No algorithm changes."""
    before = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    assert progress.choose_seed(3, {}, ALONE) == progress.choose_seed(None, {"seed": 3}, ALONE) == progress.choose_seed(3, {"seed": 3}, ALONE) == 3
    assert progress.choose_seed(None, {}, ALONE) != progress.choose_seed(None, {}, ALONE)
    with pytest.raises(cli.UserError, match="seed 4, the run to resume has 3"):
        progress.choose_seed(4, {"seed": 3}, ALONE)
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == before


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    """Found where the numbers are fetched anyway, and named by epoch and step, whenever that is."""
    for every in (1, 100):
        ours = make_progress(tmp_path, small_network(), every_steps=every)
        with pytest.raises(cli.TrainingStopped, match="the loss is nan in step 3 of epoch 0"):
            run_steps(ours, meters.Clock(CPU, 6), loss=lambda step: float("nan") if step == 3 else 1.0)
    assert checkpoint.load(str(tmp_path / "c.pth.tar"))["step"] == 3


# --- meters, records, report ------------------------------------------------------------------------------------------

class MadeUpTime(object):
    """Stands in for the clock of the machine and for a device of which every step takes 2 s after the host has launched it."""

    def __init__(self, monkeypatch):
        self.now, self.device_free_at, self.waits = 0.0, 0.0, 0
        monkeypatch.setattr(meters.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(meters.devices, "synchronize", self.synchronize)

    def launch(self, seconds=2.0):
        self.device_free_at = max(self.device_free_at, self.now) + seconds
        self.now += 0.001

    def synchronize(self, device):
        self.waits += 1
        self.now = max(self.now, self.device_free_at)


def test_clock_measures_the_device_over_steady_steps(monkeypatch):
    """Warm-up, pauses and what lies between epochs do not count, and a step's time is the device's, not that of its launch; the
    host waits for the device only where it is asked to, and once when the warm-up ends."""
    time = MadeUpTime(monkeypatch)
    clock = meters.Clock(CPU, 20, usual_warmup=2)

    def batches():
        for step in range(5):
            time.now += 0.5 if step == 3 else 0.0
            yield step

    for epoch in range(2):
        for step in clock.over(batches()):
            time.launch(100.0 if (epoch, step) == (0, 0) else 2.0)
            clock.lap(10)
            if step == 3:
                with clock.paused():
                    time.now += 1000.0
        clock.stop()
        time.now += 1000.0
    assert (clock.steps, clock.images, clock.warmup_steps) == (8, 80, 2)
    assert clock.images_per_second == pytest.approx(80 / 16.0, rel=1e-2)
    assert clock.step_time.avg == pytest.approx(2.0, rel=1e-2) and clock.data_time.avg == pytest.approx(0.1, rel=0.1)
    assert time.waits == 2 * 4 + 2
    assert meters.Clock(CPU, 9).images_per_second is None
    assert [meters.Clock(CPU, steps).warmup_steps for steps in (1, 3, 8, 1000)] == [1, 1, 4, 10]


def test_time_of_a_ranks_own(monkeypatch):
    """It ends where the rank may wait for others: its wait for the batch, and forward, of the steps since the last line."""
    time = MadeUpTime(monkeypatch)
    clock = meters.Clock(CPU, 100, usual_warmup=1)

    def batches():
        for forward in (9.0, 1.0, 3.0):
            time.now += 0.5
            yield forward

    for forward in clock.over(batches()):
        time.now += forward
        clock.forward_is_over()
        time.now += 10.0
        clock.lap(10)
    clock.split()
    assert clock.own_time == pytest.approx(0.5 + (1.0 + 3.0) / 2) and clock.step_time.val == pytest.approx(12.5)


def test_tally_counts_each_image_once():
    """Means are over images, not over batches; top-5 of fewer than five classes is of all of them; the state goes on where it was."""
    tally, half = meters.Tally("a test"), meters.Tally("a test")
    batches = [(2.0, torch.eye(3)[[0, 1, 2]], torch.tensor([0, 1, 0])), (5.0, torch.eye(3)[[0]], torch.tensor([0]))]
    for number, (loss, output, target) in enumerate(batches):
        tally.add(torch.tensor(loss), output, target)
        half.add(torch.tensor(loss), output, target)
        if number == 0:
            half.fetch()
            state = json.loads(json.dumps(half.state_dict()))
            half = meters.Tally("a test")
            half.load_state_dict(state)
    assert tally.result(ALONE) == half.result(ALONE) == meters.Result(75.0, 100.0, 2.75)
    tally.read()
    half.read()
    assert tally.recent == half.recent and [batch.images for batch in tally.recent] == [3, 1]
    assert (tally.loss.val, tally.loss.avg, tally.top1.val) == (5.0, 2.75, 100.0)
    with pytest.raises(cli.UserError, match="no image"):
        meters.Tally("the evaluation").result(ALONE)


def test_recent_batches_are_those_since_the_last_line(tmp_path):
    """A line's window begins after the line before it, also where a checkpoint is written in between, and does not grow over an epoch."""
    ours, clock, windows = make_progress(tmp_path, small_network(), every_steps=1), meters.Clock(CPU, 6), []
    for step, _, target in ours.steps(MadeUpBatches(), NOBODY, clock):
        ours.tally.add(torch.tensor(float(step)), torch.eye(4), target)
        clock.lap(4)
        if step in (2, 4):
            ours.read(clock)
            windows.append([batch.loss for batch in ours.tally.recent])
    ours.read(clock)
    assert windows == [[0.0, 1.0, 2.0], [3.0, 4.0]] and [batch.loss for batch in ours.tally.recent] == [5.0]


def test_evaluation_uses_the_network_as_it_is():
    """Evaluation mode, no gradients, and a line after every second batch; a loss that is no number is not a result."""
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    batches = [(torch.eye(4)[:size], torch.arange(size)) for size in (4, 4, 3)]
    learner = progress.Learner(network, torch.nn.functional.cross_entropy, None, precision.initialize(network, None, "O0")[2])
    lines = []
    result = evaluation.evaluate(batches, learner, ALONE, lambda step, tally, clock: lines.append((step, tally.loss.count)), every=2)
    with torch.no_grad():
        output, target = network.eval()(torch.cat([images for images, _ in batches])), torch.cat([target for _, target in batches])
    assert result.loss == pytest.approx(float(torch.nn.functional.cross_entropy(output, target)), rel=1e-5)
    assert result.top1 == pytest.approx(100 * (output.argmax(1) == target).float().mean().item()) and lines == [(0, 4), (2, 11)]
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    with torch.no_grad():
        network[0].weight.fill_(float("nan"))
    with pytest.raises(cli.TrainingStopped, match="the loss is nan in step 0 of the evaluation"):
        evaluation.evaluate(batches, learner, ALONE)


def test_records_have_dlloggers_format(tmp_path):
    """Prefix, keys, their order and their types are those of DLLogger's JSON backend."""
    path = str(tmp_path / "m.jsonl")
    recorder = records.Recorder(path, ALONE)
    recorder.parameters({"lr": 1.6, "odd": CPU})
    recorder.log((0, 10), {"train.loss": 6.9})
    lines = open(path).read().splitlines()
    assert all(line.startswith("DLLL {") for line in lines)
    last = json.loads(lines[-1][5:])
    assert list(last) == ["timestamp", "datetime", "elapsedtime", "type", "step", "data"]
    assert (last["type"], last["step"], last["data"]) == ("LOG", [0, 10], {"train.loss": 6.9})
    assert isinstance(last["timestamp"], str) and last["datetime"].endswith("+00:00")
    assert set(json.loads(lines[0][5:])) == {"timestamp", "elapsedtime", "datetime", "type", "metric", "metadata"}
    assert json.loads(lines[-2][5:])["data"] == {"lr": 1.6, "odd": "cpu"}


@pytest.mark.parametrize("can_append", [True, False])
def test_dllogger_is_used_where_installed(tmp_path, monkeypatch, can_append):
    """With the real package its own backend writes, with the options that its version has."""
    calls = []

    class Backend(object):
        def __init__(self, verbosity, filename, append=False):
            calls.append((verbosity, filename, append))

    class OldBackend(object):
        def __init__(self, verbosity, filename):
            calls.append((verbosity, filename, True))

    class Logger(object):
        def __init__(self, backends):
            assert isinstance(backends[0], (Backend, OldBackend))

        def log(self, step, data, verbosity=1):
            calls.append((step, data, verbosity))

        def metadata(self, metric, metadata):
            pass

        def flush(self):
            pass

    fake = type(sys)("dllogger")
    fake.JSONStreamBackend, fake.Logger, fake.Verbosity = Backend if can_append else OldBackend, Logger, type("Verbosity", (), {"VERBOSE": 1})
    monkeypatch.setitem(sys.modules, "dllogger", fake)
    records.Recorder(str(tmp_path / "m"), ALONE, append=True).log((), {"val.top1": 1.0})
    assert calls == [(1, str(tmp_path / "m"), True), ((), {"val.top1": 1.0}, 0)]


@pytest.mark.parametrize("epoch, step, kept", [(0, 2, [[0, 0]]), (1, 0, [[0, 0], [0, 2], [0]]), (1, 1, [[0, 0], [0, 2], [0], [1, 0]])])
def test_a_resumed_run_records_every_step_once(tmp_path, epoch, step, kept):
    """What was recorded after the checkpoint is recorded again, so it goes, with the half line of a killed run; nothing else does."""
    path = str(tmp_path / "m.jsonl")
    recorder = records.Recorder(path, ALONE)
    recorder.parameters({"run": 1})
    for taken in [(0, 0), (0, 2), (0,), (1, 0), (1, 2), ()]:
        recorder.log(taken, {"train.loss": 1.0})
    with open(path, "a") as stream:
        stream.write('DLLL {"timestamp": "17')
    ours = make_progress(tmp_path, small_network())
    ours.epoch, ours.step, ours.resumed = epoch, step, True
    records.start(path, ALONE, argparse.Namespace(run=2), argparse.Namespace(opt_level="O0"), ours)
    assert [record["step"] for record in records.read(path) if record["type"] == "LOG"] == ["PARAMETER"] + kept + ["PARAMETER"]


def test_a_resumed_record_file_stays_readable(tmp_path):
    """The half line of a killed run is closed and passed over; the summary is that of the newest run."""
    path = str(tmp_path / "m.jsonl")
    recorder = records.Recorder(path, ALONE)
    recorder.parameters({"run": 1})
    recorder.log((), {"val.top1": 1.0})
    with open(path, "a") as stream:
        stream.write('DLLL {"timestamp": "17')
    assert report.summary(path) == ({"run": 1}, {"val.top1": 1.0})
    with open(path, "a") as stream:
        stream.write("\n")
    recorder = records.Recorder(path, ALONE, append=True)
    recorder.parameters({"run": 2})
    assert report.summary(path) == ({"run": 2}, None)
    recorder.log((), {"val.top1": 2.0})
    assert report.summary(path) == ({"run": 2}, {"val.top1": 2.0})


@pytest.mark.parametrize("kind, summary, block, lines", [
    ("train", {"train.total_ips": 1259.5912, "val.top1": 76.702, "val.best_top1": 77.0, "train.loss": 2.5},
     ["Final Performance images/sec : 1259.591", "Final Train Accuracy : 76.702", "Best Train Accuracy : 77.000", "E2E Training Duration sec : 4242"],
     ["ActualFPS = 1259.591", "TrainingTime = 406.48", "TrainAccuracy = 76.702", "ActualLoss = 2.50000", "E2ETrainingTime = 4242"]),
    ("train", {"train.total_ips": None, "train.loss": 2.5},
     ["Final Performance images/sec : not measured", "Final Train Accuracy : not measured", "Best Train Accuracy : not measured",
      "E2E Training Duration sec : 4242"],
     ["ActualFPS = not measured", "TrainingTime = not measured", "TrainAccuracy = not measured", "ActualLoss = 2.50000", "E2ETrainingTime = 4242"]),
    ("eval", {"val.top1": 0.0, "val.loss": 7.0}, ["Final Train Accuracy : 0.000", "E2E Training Duration sec : 4242"],
     ["TrainAccuracy = 0.000", "ActualLoss = 7.00000", "E2ETrainingTime = 4242"]),
    ("finetune", {"train.total_ips": 512.0, "val.top1": 50.0, "val.best_top1": 50.0, "train.loss": 1.0},
     ["Final Performance images/sec : 512.000", "Final Finetune Accuracy : 50.000", "Best Finetune Accuracy : 50.000",
      "E2E Finetuning Duration sec : 4242"],
     ["ActualFPS = 512.000", "FinetuningTime = 1000.00", "FinetuneAccuracy = 50.000", "ActualLoss = 1.00000", "E2EFinetuningTime = 4242"])])
def test_report(tmp_path, kind, summary, block, lines):
    """The block and the case's log to the letter; what was not measured says so, a measured zero is a zero."""
    path = str(tmp_path / "m.jsonl")
    recorder = records.Recorder(path, ALONE)
    recorder.parameters({})
    recorder.log((), summary)
    case = {"network": "Net", "batch_size": 512, "images_per_step": 512, "ranks": 8, "suffix": "acc", "kind": kind}
    assert report.write(case, path, str(tmp_path), 4242.7) == ["------------------ Final result ------------------"] + block
    written = (tmp_path / "Net_bs512_8p_acc.log").read_text().splitlines()
    assert written[:3] + written[4:5] == ["Network = Net", "RankSize = 8", "BatchSize = 512", "CaseName = Net_bs512_8p_acc"]
    assert written[5:] == lines
    assert json.loads((tmp_path / "report.json").read_text())["summary"] == summary

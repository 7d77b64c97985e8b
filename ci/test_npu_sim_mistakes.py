"""The example training script on the simulated NPU: right, it matches the CPU; with a mistake in it, it fails and says why."""
import os

import pytest

import npu_sim
from conftest import free_port
from npu_sim import launch

EXAMPLE = os.path.join(npu_sim.HERE, "example", "train.py")
pytestmark = pytest.mark.skipif(npu_sim.skip_reason() is not None, reason=str(npu_sim.skip_reason()))


def losses(done):
    assert done.returncode == 0, done.stderr
    return [float(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("step")]


@pytest.fixture
def port():
    """A free port of this host, for ranks to meet at."""
    return str(free_port())


@pytest.mark.parametrize("ranks", [1, 2])
def test_example_matches_the_cpu(launch_fork, ranks, port):
    """The example trains on 1 and 2 NPUs to the losses that it has on the CPU."""
    begin = launch_fork if ranks == 1 else launch
    npu, cpu = (losses(begin(EXAMPLE, "--device", device, "--ranks", ranks, "--steps", 5, MASTER_PORT=port)) for device in ("npu", "cpu"))
    assert len(npu) == 5 and npu == pytest.approx(cpu, abs=1e-5)


def test_example_resumes_across_devices(launch_fork, tmp_path):
    """A checkpoint from the NPU continues on the CPU and the other way round, with the same losses."""
    runs = []
    for first, second in (("npu", "cpu"), ("cpu", "npu")):
        path = tmp_path / (first + ".pth")
        runs.append([losses(launch_fork(EXAMPLE, "--device", device, "--checkpoint", path)) for device in (first, second)])
    assert runs[0][0] == pytest.approx(runs[1][0], abs=1e-5) and runs[0][1] == pytest.approx(runs[1][1], abs=1e-5)
    assert runs[0][1] != pytest.approx(runs[0][0], abs=1e-3)


MODEL, IMAGES = "model = build_model().to(device)", "images, labels = images.to(device), labels.to(device)"
SEED, PEAK = "torch.npu.manual_seed_all(0)", "torch.npu.max_memory_allocated()"
AUTOCAST, SCALER = "torch.autocast(device.type, ", "torch.amp.GradScaler(device.type, "
MISTAKES = {  # what is replaced, by what, what the message says, the line that the traceback shows
    "labels left on the CPU": (IMAGES, "images = images.to(device)", "same device", "loss = criterion(model(images), labels)"),
    "images left on the CPU": (IMAGES, "labels = labels.to(device)", "same device", "loss = criterion(model(images), labels)"),
    "model left on the CPU": (MODEL, "model = build_model()", "same device", "loss = criterion(model(images), labels)"),
    "model.cuda()": (MODEL, "model = build_model().cuda()", "not compiled with CUDA", "model = build_model().cuda()"),
    "images.cuda()": (IMAGES, "images, labels = images.cuda(), labels.to(device)", "not compiled with CUDA", "images.cuda()"),
    "a cuda device": ('torch.device("npu", rank)', 'torch.device("cuda", rank)', "Expected a npu device, but got: cuda:0",
                      "torch.npu.set_device(device)"),
    "backend nccl": ("if options.ranks > 1:\n        dist.init_process_group(\"hccl\"", "if True:\n        dist.init_process_group(\"nccl\"",
                     "doesn't have NCCL built in", "dist.init_process_group"),
    "backend gloo": ("if options.ranks > 1:\n        dist.init_process_group(\"hccl\"", "if True:\n        dist.init_process_group(\"gloo\"",
                     "No backend type associated with device type npu", "DistributedDataParallel("),
    "CUDA guard": (MODEL, "model = build_model()\n    if torch.cuda.is_available():\n        model.cuda()",
                   "torch.cuda.is_available()", "if torch.cuda.is_available():"),
    "CUDA seed": (SEED, "torch.cuda.manual_seed_all(0)", "torch.cuda.manual_seed_all()", "torch.cuda.manual_seed_all(0)"),
    "CUDA memory": (PEAK, "torch.cuda.max_memory_allocated()", "torch.cuda.max_memory_allocated()", "torch.cuda.max_memory_allocated()"),
    "CUDA autocast": (AUTOCAST, 'torch.autocast("cuda", ', "autocast('cuda') has no effect on an NPU", 'torch.autocast("cuda"'),
    "CPU autocast": (AUTOCAST, 'torch.autocast("cpu", ', "autocast is enabled for 'cpu'", "loss = criterion(model(images), labels)"),
    "CUDA scaler": (SCALER, "torch.amp.GradScaler(", "GradScaler('cuda') has no effect on an NPU", "scaler = torch.amp.GradScaler("),
    "float64 images": (IMAGES, "images, labels = images.double().to(device), labels.to(device)\n        model.double()",
                       "float64 (double) is not supported", "loss = criterion(model(images), labels)"),
    "device index": ('torch.device("npu", rank)', 'torch.device("npu", 8 + rank)', "NPU device index 8 is out of range",
                     "torch.npu.set_device(device)"),
    "no import torch_npu": ("import torch_npu", "import torch", "device string: npu", 'torch.device("npu", rank)'),
}


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_mistake(launch_fork, tmp_path, mistake, port):
    """A copy of the example with one mistake fails, with a message about it and a traceback to the line."""
    right, wrong, message, line = MISTAKES[mistake]
    with open(EXAMPLE) as handle:
        source = handle.read()
    assert source.count(right) == 1
    script = tmp_path / "train.py"
    script.write_text(source.replace(right, wrong))
    amp = ["--amp"] if right in (AUTOCAST, SCALER) else []
    autoload = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"} if mistake == "no import torch_npu" else {}
    done = launch_fork(script, *amp, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **autoload)
    assert done.returncode != 0 and message in done.stderr.strip().splitlines()[-1], done.stderr
    assert str(script) in done.stderr and line in done.stderr

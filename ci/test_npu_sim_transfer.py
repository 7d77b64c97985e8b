"""torch_npu.contrib.transfer_to_npu on the simulated NPU: a script for CUDA trains on NPUs, where that is asked for."""
import functools
import json

import pytest

import npu_sim
from conftest import free_port
from npu_sim import launch

pytestmark = pytest.mark.skipif(npu_sim.skip_reason() is not None, reason=str(npu_sim.skip_reason()))

SCRIPT = """
import sys
import torch
import torch_npu
from torch_npu.contrib import transfer_to_npu
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.cuda.amp import GradScaler, autocast


def main(rank, ranks, path):
    assert torch.cuda.is_available() and torch.cuda.device_count() == 8
    torch.cuda.set_device(rank)
    torch.manual_seed(0)
    torch.cuda.manual_seed_all(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(body, nn.Linear(8, 4)).cuda()
    if ranks > 1:
        dist.init_process_group(backend="nccl", init_method="tcp://127.0.0.1:%s" % sys.argv[2], rank=rank, world_size=ranks)
        model = nn.parallel.DistributedDataParallel(model, device_ids=[rank], output_device=rank)
    optimizer, scaler = torch.optim.SGD(model.parameters(), 0.5), GradScaler(init_scale=128.0)
    images, labels = torch.randn(8, 3, 8, 8).cuda(rank, non_blocking=True), torch.arange(8).to("cuda") % 4
    for step in range(6):
        with autocast():
            output = model(images)
            loss = nn.functional.cross_entropy(output, labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if rank == 0:
            sys.stdout.write("loss %.6f\\n" % loss.item())
    torch.cuda.synchronize()
    assert output.dtype == torch.float16 and scaler.get_scale() == 128 and torch.cuda.max_memory_allocated() > 0
    if rank == 0:
        torch.save(model.state_dict(), path)
        state = torch.load(path, map_location="cuda:%d" % rank)
        sys.stdout.write("%s %s\\n" % (next(iter(state.values())).device, next(model.parameters()).is_cuda))
    if ranks > 1:
        sys.stdout.write("rank %d %s %d\\n" % (rank, dist.get_backend(), torch.cuda.current_device()))
        dist.destroy_process_group()


if __name__ == "__main__":
    ranks = int(sys.argv[1])
    mp.spawn(main, (ranks, sys.argv[3]), nprocs=ranks) if ranks > 1 else main(0, 1, sys.argv[3])
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def port():
    """A free port of this host, for ranks to meet at."""
    return free_port()


@pytest.mark.parametrize("ranks", [1, 2])
def test_training(launch_fork, script, port, tmp_path, ranks):
    """model.cuda(), torch.cuda.amp, DDP over nccl: all of it runs on the NPUs, in strict mode as well."""
    begin = launch_fork if ranks == 1 else functools.partial(launch, "-W", "error::FutureWarning")
    done = begin(script, ranks, port, tmp_path / "weights.pth", NPU_SIM_TRANSFER="1",
                 NPU_SIM_REPORT=str(tmp_path / "report"))
    assert done.returncode == 0, done.stderr
    losses = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("loss")]
    assert len(losses) == 6 and losses[-1] < losses[0] and "npu:0 True" in done.stdout
    assert [line for line in sorted(done.stdout.splitlines()) if line.startswith("rank")] == [
        "rank %d hccl %d" % (rank, rank) for rank in range(ranks if ranks > 1 else 0)]
    reports = [json.loads(path.read_text()) for path in (tmp_path / "report").iterdir()]
    assert sum(report["operators"].get("aten::convolution", 0) for report in reports) == 6 * ranks


DEVICES = """
import torch, torch_npu
from torch import nn
from torch_npu.contrib import transfer_to_npu
cuda = torch.device("cuda:1")
made = [torch.ones(2, device="cuda:1"), torch.zeros(2).to(cuda), torch.ones_like(torch.ones(2), device=cuda),
        torch.ones(2).cuda(1), torch.ones(2).new_zeros(2, device=cuda), nn.Linear(2, 2).to(1).weight,
        nn.Linear(2, 2, device="cuda:1").weight, torch.randn(2, device=cuda, generator=torch.Generator(device="cuda:1"))]
with cuda:
    made.append(torch.ones(2))
with torch.cuda.device(cuda), torch.cuda.stream(torch.cuda.Stream()):
    made.append(torch.ones(2, device="cuda"))
assert [str(t.device) for t in made] == ["npu:1"] * len(made), made
assert isinstance(torch.default_generator, torch.Generator) and not isinstance(1, torch.Generator)
with torch.autocast("cuda", dtype=torch.bfloat16):
    assert torch.is_autocast_enabled() and torch.get_autocast_gpu_dtype() == torch.bfloat16
    assert nn.functional.linear(torch.ones(2, 2, device="cuda"), torch.ones(2, 2, device="cuda")).dtype == torch.bfloat16
assert not torch.is_autocast_enabled() and torch.amp.GradScaler("cuda").is_enabled() and torch.amp.GradScaler().is_enabled()
start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
start.record(), end.record()
assert start.elapsed_time(end) >= 0 and torch.distributed.is_nccl_available() and torch.cuda.get_device_name("cuda:0")
assert torch.jit.script(len) is len and torch.ones(1).device.type == "cpu"
try:
    torch.asarray([1.0], device="cuda")  # not among the functions that the real module changes
except (AssertionError, RuntimeError) as error:
    assert "cuda" in str(error).lower()
else:
    raise SystemExit("torch.asarray took a CUDA device")
"""


def test_devices(launch_fork):
    """Every way to name a CUDA device names the NPU of that number; tensors of the CPU stay there."""
    done = launch_fork("-c", DEVICES, NPU_SIM_TRANSFER="1")
    assert done.returncode == 0, done.stderr


def test_texts_that_are_no_devices(launch_fork):
    """As with the real module, positional texts are changed whatever they mean, the name of a file too."""
    code = "import torch, torch_npu\nfrom torch_npu.contrib import transfer_to_npu\ntorch.load('/none/cuda_weights.pth')"
    done = launch_fork("-c", code, NPU_SIM_TRANSFER="1")
    assert done.returncode == 1 and "FileNotFoundError" in done.stderr and "/none/npu_weights.pth" in done.stderr


def test_off_by_default(launch_fork, script, tmp_path):
    """Without the switch the import fails, and names it. With it, strict mode holds for a script that does not import."""
    done = launch_fork(script, 1, 0, tmp_path / "weights.pth")
    assert done.returncode == 1 and "NPU_SIM_TRANSFER=1" in done.stderr.splitlines()[-1]
    done = launch_fork("-c", "import torch, torch_npu\nif torch.cuda.is_available(): pass", NPU_SIM_TRANSFER="1")
    assert done.returncode == 1 and "torch.cuda.is_available()" in done.stderr

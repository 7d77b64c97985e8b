"""Faults of the simulated NPU: what a script sees of a device that hangs or is full, of a lost rank, and of fp16 overflow."""
import os
import signal
import subprocess
import sys

import pytest

import npu_sim
from npu_sim import launch
from test_npu_sim import CHECKS, built, check_names, outcomes, start_checks  # noqa: F401  (a fixture)

pytestmark = pytest.mark.skipif(npu_sim.skip_reason() is not None, reason=str(npu_sim.skip_reason()))


@pytest.fixture(scope="session")
def saturating(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saturating")
    reports = [folder / ("rank%d.xml" % rank) for rank in range(2)]
    processes = [start_checks(report, ["check_overflow.py"], RANK=str(rank), WORLD_SIZE="2", NPU_SIM_OVERFLOW="saturate",
                              INIT_METHOD="file://%s/meeting" % folder) for rank, report in enumerate(reports)]
    return [outcomes(report, process) for report, process in zip(reports, processes)]


@pytest.mark.parametrize("name", check_names("check_overflow.py"))
def test_saturating(saturating, name):
    """What the check of this name in npu_sim/checks/check_overflow.py says, on both ranks."""
    assert [rank[name] for rank in saturating] == [[], []]


def test_settings(launch_fork):
    """The switches reach the process: the device's own for the mode of fp16, and a mistake that ends it."""
    done = launch_fork("-c", "import torch, torch_npu; print(torch.npu.utils.is_support_inf_nan())", INF_NAN_MODE_FORCE_DISABLE="1")
    assert done.stdout == "False\n"
    done = launch("-c", "import torch_npu", NPU_SIM_FAULT="fire@step=1")
    assert done.returncode == 1 and "NPU_SIM_FAULT: 'fire@step=1' is none of hang, oom" in done.stderr.splitlines()[-1]


# A training that says which step it has done, on one rank or, with a meeting place, on several.
TRAIN = """
import datetime, os, sys, time, torch, torch_npu
import torch.distributed as dist
sys.path.insert(0, os.environ["CHECKS"])
from nets import Net, sgd

rank = int(os.environ.get("RANK", "0"))
torch.npu.set_device(rank)
model = Net().npu()
if "MEETING" in os.environ:
    here = os.environ["MEETING"] + " %d"
    open(here % rank, "w").close()
    while not os.path.exists(here % (1 - rank)):  # the time-out below is not for ranks that start late
        time.sleep(0.01)
    dist.init_process_group("hccl", init_method="file://" + os.environ["MEETING"], rank=rank, world_size=2,
                            timeout=datetime.timedelta(seconds=5))
    model = torch.nn.parallel.DistributedDataParallel(model)
optimizer, scaler = sgd(model.parameters()), torch.npu.amp.GradScaler()
scales = []
images, labels = torch.randn(4, 3, 16, 16).npu(), torch.zeros(4, dtype=torch.long).npu()
for step in range(1, 6):
    optimizer.zero_grad()
    try:
        with torch.autocast("npu", dtype=torch.float16):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        scaler.scale(loss).backward()
        scales.append(scaler._scale.clone())  # to be read after the loop: reading is waiting
    except torch.OutOfMemoryError as error:
        print("caught", type(error).__name__, error, flush=True)
        continue
    scaler.step(optimizer)
    scaler.update()
    print("step", step, flush=True)
print(*(scale.item() for scale in scales))
"""


def test_out_of_memory(launch_fork):
    """The allocation fails with the class and words of the real one, once: a script that catches it goes on."""
    done = launch_fork("-c", TRAIN, CHECKS=CHECKS, NPU_SIM_FAULT="oom@step=3")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and [line.split()[1] for line in lines[:5]] == ["1", "2", "OutOfMemoryError", "4", "5"]
    assert "NPU out of memory. Tried to allocate " in lines[2] and "(NPU 0; 64.00 GiB total capacity; " in lines[2]
    assert "reserved in total by PyTorch). If reserved memory is >> allocated memory" in lines[2]


def test_overflow_once(launch_fork):
    """One overflow in a backward pass: the scaler skips that step and halves the scale."""
    done = launch_fork("-c", TRAIN, CHECKS=CHECKS, NPU_SIM_FAULT="overflow@step=2")
    assert [float(scale) for scale in done.stdout.splitlines()[-1].split()] == [2.0**16] * 2 + [2.0**15] * 3


def start(**environment):
    return subprocess.Popen([npu_sim.RUN, sys.executable, "-c", TRAIN], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=dict(os.environ, OMP_NUM_THREADS="1", CHECKS=CHECKS, **environment), universal_newlines=True)


def test_hang():
    """A device that hangs lets launches pass; the host stays in its next wait for it until it is killed."""
    process = start(NPU_SIM_FAULT="hang@step=3")
    lines = [process.stdout.readline() for _ in range(2)]  # step 3 waits in its GradScaler
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=2)
    process.terminate()
    rest, _ = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGTERM and [line.split()[1] for line in lines] == ["1", "2"] and rest == ""


LOST = {"collective_timeout@step=3,rank=1": {}, "hang@step=3,rank=1": {},
        "collective_timeout@step=2,rank=0": {"HCCL_BLOCKING_WAIT": "1", "HCCL_EXEC_TIMEOUT": "3"}}


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    """{fault: [(status, stdout, stderr) of each rank]} of trainings on two ranks, which wait for their time-outs together."""
    started = {}
    for fault, variables in LOST.items():
        meeting = str(tmp_path_factory.mktemp("lost") / "meeting")
        started[fault] = [start(RANK=str(rank), MEETING=meeting, NPU_SIM_FAULT=fault, **variables) for rank in range(2)]
    said = {fault: [process.communicate(timeout=300) for process in ranks] for fault, ranks in started.items()}
    return {fault: [(process.returncode,) + text for process, text in zip(started[fault], texts)] for fault, texts in said.items()}


@pytest.mark.parametrize("fault", [fault for fault, variables in LOST.items() if not variables])
def test_a_rank_that_does_not_come(lost, fault):
    """A rank that stays away from a collective, or whose device hangs: after the group's time-out the watchdog takes every
    process down, in torch_npu's words."""
    for rank, (status, out, err) in enumerate(lost[fault]):
        assert status == -signal.SIGABRT and [line.split()[1] for line in out.splitlines()] == ["1", "2"], err
        assert "[Rank %d] Watchdog caught collective operation timeout: WorkHCCL(SeqNum=" % rank in err
        assert "Timeout(ms)=5000) ran for " in err


def test_blocking_wait(lost):
    """With HCCL_BLOCKING_WAIT=1 the wait for the collective raises. HCCL_EXEC_TIMEOUT is a shorter time-out."""
    for status, _, err in lost["collective_timeout@step=2,rank=0"]:
        assert status == 1 and "DistBackendError" in err and "Timeout(ms)=3000) timed out in blocking wait" in err

"""Reports of the simulated NPU: what is counted, where it is written, limits that fail a process, and the pytest fixture."""
import json
import os
import subprocess
import sys
import xml.etree.ElementTree

import pytest

import npu_sim
from npu_sim import launch
from test_npu_sim import CHECKS, built  # noqa: F401  (a fixture)

pytestmark = pytest.mark.skipif(npu_sim.skip_reason() is not None, reason=str(npu_sim.skip_reason()))

TRAIN = """
import os, sys, torch, torch_npu
import torch.distributed as dist
sys.path.insert(0, os.environ["CHECKS"])
from nets import Net, sgd

steps, hidden, rank = int(os.environ.get("STEPS", "5")), "HIDDEN" in os.environ, int(os.environ.get("RANK", "0"))
if "MEETING" in os.environ:
    dist.init_process_group("hccl", init_method=os.environ["MEETING"], rank=rank, world_size=2)
torch.npu.set_device(rank)
model, optimizer = Net().npu(), None
optimizer = sgd(model.parameters())
batch, labels = torch.randn(4, 3, 16, 16), torch.zeros(4, dtype=torch.long).npu()
batch = batch if hidden else batch.pin_memory()
for _ in range(steps):
    images = batch.to("npu", non_blocking=True)  # the copy
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    if hidden:
        print(loss.item())  # the read
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
with torch.no_grad():
    print(model(images).sum().item())
sys.exit(int(os.environ.get("STATUS", "0")))
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(TRAIN)
    return path


def line_of(text):
    return 1 + [text in line for line in TRAIN.split("\n")].index(True)


def train(script, **environment):
    return launch(script, CHECKS=CHECKS, **environment)


BATCH = 4 * 3 * 16 * 16 * 4  # bytes


def test_report_of_a_loop_that_waits(script, tmp_path):
    """A loop with a pageable copy and a read each step: both are counted with their lines, by step; limits that it breaks end
    the process with 1 and say what was seen and where; the same as JUnit."""
    done = train(script, HIDDEN="1", NPU_SIM_REPORT="%s,%s" % (tmp_path / "r.json", tmp_path / "r.xml"),
                 NPU_SIM_LIMITS="host_waits_per_step<=0.1, to_device_bytes_per_step == %d" % BATCH)
    assert done.returncode == 1 and "the limit host_waits_per_step<=0.1 is broken: 2.0" in done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    figures = report["figures"]
    assert figures["steps"] == 5 and figures["pageable_copies_per_step"] == 1 and figures["to_device_bytes_per_step"] == BATCH
    waits = {wait["line"]: (wait["reason"], wait["per_step"], wait["count"]) for wait in report["host_waits"][:2]}
    assert waits == {"%s:%d" % (script, line_of("# the copy")): ("copy from pageable memory", 1, 5),
                     "%s:%d" % (script, line_of("# the read")): ("aten::_local_scalar_dense", 1, 5)}
    assert all("%s:" % script in line for line in done.stderr.splitlines() if "a step" in line)
    by_step = report["by_step"]
    assert len(by_step) == 5 and [step["host_waits"] for step in by_step[1:]] == [2] * 4
    assert all(step["peak_memory_bytes"] > 10 * BATCH and step["operators"] == by_step[1]["operators"] for step in by_step[1:])
    suite = xml.etree.ElementTree.parse(str(tmp_path / "r.xml")).getroot()
    assert suite.get("tests") == "3" and suite.get("failures") == "1"
    failed = {case.get("name"): case.find("failure") for case in suite.iter("testcase")}
    assert failed["host_waits_per_step<=0.1"].get("message") == "2.0 was seen"
    assert str(script) in failed["host_waits_per_step<=0.1"].text
    assert failed["to_device_bytes_per_step == %d" % BATCH] is None and failed["an NPU was used"] is None


def test_report_of_a_good_loop(script, tmp_path):
    """The loop with pinned memory and no read keeps the same limits. Operators are told apart by phase."""
    done = train(script, NPU_SIM_REPORT=str(tmp_path / "r.json"),
                 NPU_SIM_LIMITS="host_waits_per_step<=0.1,pageable_copies_per_step<1,operators_per_step>=50,steps==5")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert [limit["kept"] for limit in report["limits"]] == [True] * 4 and report["figures"]["host_waits"] > 0
    phases = report["operators_by_phase"]
    assert phases["forward"]["aten::convolution"] == 5 * 7 and phases["other"]["aten::convolution"] == 7  # the evaluation
    assert phases["backward"]["aten::convolution_backward"] == 5 * 7 and not set(phases["optimizer"]) & set(phases["backward"]) & {
        "aten::convolution", "aten::convolution_backward"} and sum(phases["optimizer"].values()) > 50
    assert sum(sum(calls.values()) for calls in phases.values()) == report["figures"]["operators"]


@pytest.mark.parametrize("environment, status, message", [
    ({"STATUS": "7", "HIDDEN": "1", "NPU_SIM_LIMITS": "host_waits_per_step<=0.1"}, 7, "is broken: 2.0"),
    ({"STEPS": "1", "NPU_SIM_LIMITS": "host_waits_per_step<=0.1"}, 1, "is broken: not measured, with 1 steps")])
def test_limits(script, environment, status, message):
    """A status of the script's own stays; a figure that nothing was measured for is not kept."""
    done = train(script, **environment)
    assert done.returncode == status and message in done.stderr


def test_a_process_without_an_npu(tmp_path):
    """A process that imports the plug-in and uses no NPU, such as a launcher, has no limits and writes no file of its own."""
    done = launch("-c", "import torch_npu", NPU_SIM_REPORT=str(tmp_path / "r.json"), NPU_SIM_LIMITS="steps>=1")
    assert done.returncode == 0 and not (tmp_path / "r.json").exists()


def test_a_report_for_each_rank(script, tmp_path):
    """On several ranks the name of the file gets the rank."""
    started = [subprocess.Popen([npu_sim.RUN, sys.executable, str(script)], stdout=subprocess.DEVNULL,
                                env=dict(os.environ, OMP_NUM_THREADS="1", CHECKS=CHECKS, RANK=str(rank), STEPS="2",
                                         MEETING="file://%s/meeting" % tmp_path, NPU_SIM_REPORT=str(tmp_path / "r.json")))
               for rank in range(2)]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    reports = [json.loads((tmp_path / ("r.rank%d.json" % rank)).read_text()) for rank in range(2)]
    assert [report["rank"] for report in reports] == [0, 1] and not (tmp_path / "r.json").exists()
    assert [report["peak_memory_bytes"][1] > 0 for report in reports] == [False, True]


TESTS = """
import pytest, torch, torch_npu

def step(read):
    weight = torch.ones(3, device="npu", requires_grad=True)
    optimizer = torch.optim.SGD([weight], 0.1)
    for _ in range(4):
        loss = weight.sum()
        if read:
            loss.item()
        loss.backward()
        optimizer.step()

@pytest.mark.parametrize("read", [True, False])
def test_loop(npu_report, read):
    step(read)
    assert npu_report.steps == 4 and npu_report.operators_per_step > 2
    assert [wait.per_step for wait in npu_report.waits] == [1] * read
    assert npu_report.host_waits_per_step <= 0.1

def test_names(npu_report):
    assert npu_report.host_waits_per_step is None and npu_report.host_waits == 0
    npu_report.waits_per_hour
"""


def test_fixture(tmp_path):
    """A test asks for npu_report and holds its figures against a limit; each test's figures are its own."""
    (tmp_path / "test_it.py").write_text(TESTS)
    done = launch("-m", "pytest", "-q", "-p", "pytest_npu_sim", "-p", "no:cacheprovider", tmp_path / "test_it.py")
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 2 and "test_loop[True]" in failed[0] and "test_names" in failed[1] and "1 passed" in done.stdout
    assert "a report has no 'waits_per_hour'; it has waits, operators" in done.stdout

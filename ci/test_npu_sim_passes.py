"""The simulated NPU lets nothing pass that a device would not: a training that stayed on the CPU, two ranks on one NPU."""
import os
import signal
import subprocess
import sys

import pytest

import npu_sim

pytestmark = pytest.mark.skipif(npu_sim.skip_reason() is not None, reason=str(npu_sim.skip_reason()))

USE, IDLE = "import torch; torch.ones(2).npu()", "import torch; torch.npu.set_device(1); torch.ones(2) + 1"
SPAWN = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', %r]))"


def run(*command, **environment):
    """Run a command under `run`, whose options it may start with; return the finished process."""
    env = dict({key: value for key, value in os.environ.items() if key not in ("CI", "NPU_SIM_REQUIRE")}, **environment)
    return subprocess.run([npu_sim.RUN] + list(command), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True)


@pytest.mark.parametrize("options, code, environment, fails", [
    (["--require-npu"], IDLE, {}, True), (["--require-npu"], USE, {}, False), (["--require-npu"], SPAWN % USE, {}, False),
    ([], IDLE, {}, False), ([], IDLE, {"CI": "true"}, True), (["--no-require-npu"], IDLE, {"CI": "true"}, False),
    ([], IDLE, {"NPU_SIM_REQUIRE": "1"}, True), ([], IDLE, {"NPU_SIM_REQUIRE": "0", "CI": "1"}, False),
    (["--require-npu", npu_sim.RUN, "--require-npu"], USE, {}, False)], ids=str)
def test_require_npu(options, code, environment, fails):
    """A command that ends with 0 and held nothing on an NPU in any process fails, where that is asked for, and in CI."""
    done = run(*options, sys.executable, "-c", code, **environment)
    assert (done.returncode, "none of its processes used an NPU" in done.stderr) == (int(fails), fails), done.stderr


@pytest.mark.parametrize("code, status", [("import torch", 1), (USE, 0), (USE + "; assert 0", 1)])
def test_require_npu_under_pytest(tmp_path, code, status):
    """Tests that ran on the CPU alone have tested nothing here; the status of failed tests is theirs."""
    (tmp_path / "test_a.py").write_text("def test_a():\n    " + code)
    done = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path))
    assert done.returncode == status and ("used an NPU" in done.stderr) == (code == "import torch")


def test_require_npu_hands_signals_on():
    """SIGTERM reaches the command; where a signal has ended the command, it ends `run` as well."""
    code = ("import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); print('up', flush=True); "
            "time.sleep(60)")
    process = subprocess.Popen([npu_sim.RUN, "--require-npu", sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 5
    for number in (signal.SIGKILL, signal.SIGTERM):
        assert run("--require-npu", "sh", "-c", "kill -%d $$" % number).returncode == -number
    assert run("--require-npu", "/no/such/command").returncode == run("/no/such/command").returncode == 127


RANKS = """
import datetime, os, sys
import torch, torch.distributed as dist
rank = int(os.environ["RANK"])
dist.init_process_group("hccl", init_method=os.environ["MEET"], rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60))
tensor = lambda: torch.full((2,), 1.0, device="npu:%s" % os.environ.get("DEVICE", "0"))
lists = lambda: [tensor(), tensor()]
def barrier(group):
    torch.npu.set_device(tensor().device)
    dist.barrier(group=group)
uses = {
    "all_reduce": lambda group: dist.all_reduce(tensor(), group=group),
    "broadcast": lambda group: dist.broadcast(tensor(), 0, group=group),
    "reduce": lambda group: dist.reduce(tensor(), 0, group=group),
    "all_gather": lambda group: dist.all_gather(lists(), tensor(), group=group),
    "gather": lambda group: dist.gather(tensor(), lists() if rank == 0 else None, group=group),
    "scatter": lambda group: dist.scatter(tensor(), lists() if rank == 0 else None, group=group),
    "reduce_scatter": lambda group: dist.reduce_scatter(tensor(), lists(), group=group),
    "all_to_all_single": lambda group: dist.all_to_all_single(tensor(), tensor(), group=group),
    "barrier": barrier,
    "named barrier": lambda group: dist.barrier(group=group, device_ids=[tensor().device.index]),
    "send and recv": lambda group: (dist.recv if rank else dist.send)(tensor(), 1 - rank, group=group),
}
for name, use in uses.items():
    group = dist.new_group([0, 1])
    try:
        use(group)
        refused = False
    except RuntimeError as error:
        refused = "hccl: ranks 0 and 1 are both on NPU host:" in str(error)
        assert refused, error
    print(name, "refused" if refused else "ran")
"""


@pytest.mark.parametrize("environments, outcome", [
    ([{}, {}], "refused"), ([{"ASCEND_RT_VISIBLE_DEVICES": "1,2"}, {"ASCEND_RT_VISIBLE_DEVICES": "2"}], "ran"),
    ([{"ASCEND_RT_VISIBLE_DEVICES": "1,2", "DEVICE": "1"}, {"ASCEND_RT_VISIBLE_DEVICES": "2"}], "refused"),
    ([{"NPU_SIM_HOST": "a"}, {"NPU_SIM_HOST": "b"}], "ran")], ids=str)
def test_two_ranks_on_one_npu(tmp_path, environments, outcome):
    """The first operation of a group, whichever it is, refuses two ranks on one NPU, and none on two NPUs or two hosts."""
    common = dict(os.environ, OMP_NUM_THREADS="1", NPU_SIM_REQUIRE="0", NPU_SIM_HOST="host", MEET="file://%s/meeting" % tmp_path)
    processes = []
    for rank, own in enumerate(environments):
        processes.append(subprocess.Popen([npu_sim.RUN, sys.executable, "-W", "ignore", "-c", RANKS], stdout=subprocess.PIPE,
                                          env=dict(common, **dict(own, RANK=str(rank))), universal_newlines=True))
    for process in processes:
        lines = process.communicate(timeout=300)[0].splitlines()
        assert len(lines) == 11 and {line.split()[-1] for line in lines} == {outcome}

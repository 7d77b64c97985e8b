"""The models' real scripts on simulated NPUs: one device, several over hccl, the precision levels, and the CPU's losses."""
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

import npu_sim
import test_versions
from common import checkpoint, records
from conftest import CI, MODELS, ROOT, environment, run_script, start_script, wait_until
from test_versions import TINY

data_of = test_versions.data_of  # a fixture
pytestmark = pytest.mark.skipif(npu_sim.skip_reason() is not None, reason=str(npu_sim.skip_reason()))
NPU = {"PYTHONPATH": os.path.join(CI, "npu_sim"), "NPU_SIM_STRICT": "1", "NARROW": "1"}  # as ci/npu_sim/run sets them; small networks
each_model = pytest.mark.parametrize("model", MODELS)


def run_model(data_of, script, out, device, *options, **variables):
    """Run a script of a model on simulated NPUs or on the CPU; return its report and the losses that it recorded."""
    done = run_script(*command(data_of, script, out, device, *options), env=where(device, **variables))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    with open(os.path.join(str(out), "report.json")) as stream:
        report = json.load(stream)
    return report, losses(os.path.join(str(out), "metrics.jsonl"))


def command(data_of, script, out, device, *options):
    """Return the script with all its options."""
    model = script.split("/")[0]
    return [script, "--data_path=%s" % data_of(model), "--device=%s" % device, "--output_path=%s" % out,
            "--workers=0"] + TINY[model] + list(options)


CPU = {"NARROW": "1"}  # and a test's own variables for runs on the CPU


def where(device, **variables):
    """Return the environment in which the simulated NPU, or the CPU, is used."""
    return environment(**dict(NPU if device == "npu" else CPU, **variables))


# In a file sitecustomize.py: a CPU whose images and weights lie in memory as an NPU's do. Its kernels round otherwise with channels last.
CONTIGUOUS = """
import eager, sys, torch
sys.path.append(%r)
from common import device
device.memory_format = lambda _: torch.contiguous_format
""" % ROOT


def losses(path):
    """Return the training loss of each epoch's summary."""
    return [record["data"]["train.loss"] for record in records.read(path)
            if record["type"] == "LOG" and len(record["step"]) == 1 and record["data"].get("train.loss") is not None]


def pickled(path):
    """Return the bytes of a checkpoint that say what it consists of."""
    with zipfile.ZipFile(str(path)) as archive:
        return archive.read([name for name in archive.namelist() if name.endswith("data.pkl")][0])


SAVING = """
import os, sys, torch, torch_npu
import torch.distributed as dist
from common import checkpoint, device, distributed
from collections import OrderedDict

def save(path, rank):
    bound = getattr(dist.group.WORLD, "bound_device_id", None)
    assert bound == rank.device and rank.device.index == rank.local_rank + 2, bound
    if rank.is_main:
        big = torch.ones(1 << 20, device=rank.device)
        state = OrderedDict([("a", big), ("b", big)])
        state._metadata = {"version": 1}
        checkpoint.save({"own": state, "other": [big, (big.half(), 3)], "scale": big[0]}, path)
    distributed.barrier(rank)

if __name__ == "__main__":
    distributed.launch(save, sys.argv[1], distributed.layout("npu", [2, 3]))
"""


def test_a_tensor_of_the_device_is_written_once_and_as_the_cpus(tmp_path):
    """Tensors of a device go into a checkpoint as plain ones, each place in memory once, in the containers they were in. Ranks are bound
    to their own device."""
    (tmp_path / "saving.py").write_text(SAVING)
    path = tmp_path / "c.pth"
    subprocess.run([sys.executable, str(tmp_path / "saving.py"), str(path)], check=True,
                   env=environment(**dict(NPU, PYTHONPATH=os.pathsep.join([NPU["PYTHONPATH"], ROOT]))))
    assert b"npu:" not in pickled(path) and 6 << 20 < os.path.getsize(str(path)) < 6.1 * (1 << 20)
    content = checkpoint.load(str(path))
    assert content["own"]["a"].data_ptr() == content["own"]["b"].data_ptr() and content["own"]["a"].sum() == 1 << 20
    assert content["other"][1][0].dtype == torch.float16 and content["other"][1][1] == 3 and content["scale"] == 1


def on_the_device(folder):
    """Return the reports of the processes of a run that ran convolutions on simulated devices."""
    reports = []
    for name in os.listdir(str(folder)):
        with open(os.path.join(str(folder), name)) as stream:
            reports.append(json.load(stream))
    return [report for report in reports if report["operators"].get("aten::convolution", 0) > 20]


@each_model
def test_performance_script_on_one_npu(data_of, tmp_path, model):
    """train_performance_1p.sh at the recipe's mixed precision, on device 3: the convolutions really run on the device. That device
    is slow, by the simulator's clock: the script does not report a speed at which only the launches went."""
    os.makedirs(str(tmp_path / "counts"))
    report, _ = run_model(data_of, model + "/test/train_performance_1p.sh", tmp_path / "o", "npu", "--device_id=3",
                          "--batch_size=8", "--max_steps=3", "--train_epochs=1", "--learning_rate=0.001", *larger(model),
                          NPU_SIM_CLOCK="1", NPU_SIM_CLOCK_TABLE="operator_us=300", NPU_SIM_REPORT=str(tmp_path / "counts"))
    assert report["parameters"]["device_type"] == "npu" and report["parameters"]["opt_level_run"] != "O0"
    assert report["summary"]["train.total_ips"] > 0 and report["summary"]["peak_memory_bytes"] > 0
    simulated, = on_the_device(tmp_path / "counts")
    steps = simulated["by_step"][1:]  # none where GradScaler, in its search for a scale, skipped them all
    assert all(step["device_ns"] > 300 * 1000 * 200 for step in steps) and (steps or model == "FixRes")
    assert all(8 / report["summary"]["train.total_ips"] > 0.9e-9 * step["device_ns"] for step in steps)


@pytest.mark.parametrize("model, ranks", [(model, 8 if model == "GENet" else 2) for model in MODELS])
def test_full_script_on_several_npus(data_of, tmp_path, model, ranks):
    """train_full_8p.sh at O1 over hccl: the ranks, four images each, train, evaluate and report."""
    devices = [] if ranks == 8 else ["--device_list=4,5"]
    batch = 4 if model == "HRNet" else 4 * ranks  # HRNet's scripts count one rank's
    report, _ = run_model(data_of, model + "/test/train_full_8p.sh", tmp_path, "npu", "--batch_size=%d" % batch, "--max_steps=2",
                          "--train_epochs=1", "--opt_level=O1", "--learning_rate=0.01", *(devices + larger(model)))
    assert report["case"]["ranks"] == ranks and report["parameters"]["opt_level_run"] == "O1"
    assert 0 <= report["summary"]["val.top1"] <= 100 and np.isfinite(report["summary"]["train.loss"])


def larger(model):
    """Return options for pictures at which the last maps are larger than one pixel: BatchNorm over so few values has gradients
    that overflow fp16 under a constant loss scale."""
    return [] if model == "GENet" else ["--image_size=64"]


@each_model
def test_losses_are_those_of_the_cpu(data_of, tmp_path, monkeypatch, model):
    """Four fp32 steps on the simulated NPU have the CPU's losses, and a checkpoint written on either goes on on the other. Nothing in
    one names the device that it was written on: a machine without it can read the file."""
    script = model + "/test/train_full_1p.sh"
    options = ["--batch_size=8", "--max_steps=1", "--train_epochs=4", "--opt_level=O0", "--seed=7", "--learning_rate=0.01",
               "--deterministic", "--keep_checkpoints=4"]
    (tmp_path / "cpu's").mkdir()
    (tmp_path / "cpu's" / "sitecustomize.py").write_text(CONTIGUOUS)
    monkeypatch.setitem(CPU, "PYTHONPATH", str(tmp_path / "cpu's"))
    traces = dict((device, run_model(data_of, script, tmp_path / device, device, *options)[1]) for device in ("npu", "cpu"))
    assert np.allclose(traces["npu"], traces["cpu"], rtol=1e-5) and len(set(traces["cpu"])) == 4
    for device, other in (("npu", "cpu"), ("cpu", "npu")):
        first = tmp_path / device / "checkpoint.pth.tar.3"  # of the first epoch
        assert checkpoint.load(str(first))["epoch"] == 1 and pickled(first).count(b"npu:") == 0
        _, moved = run_model(data_of, script, tmp_path / ("on the " + other), other, "--resume=%s" % first, *options)
        assert len(moved) == 3 and np.allclose(moved, traces["cpu"][1:], rtol=1e-5)


def test_an_interrupted_run_resumes_exactly_on_an_npu(data_of, tmp_path):
    """With --deterministic a run on the device that SIGTERM has interrupted ends bit for bit like an undisturbed one."""
    script = "GENet/test/train_full_1p.sh"
    options = ["--batch_size=8", "--max_steps=2", "--train_epochs=6", "--opt_level=O1", "--seed=7", "--learning_rate=0.01", "--deterministic"]
    run_model(data_of, script, tmp_path / "whole", "npu", *options)
    out = tmp_path / "cut"
    process = start_script(*command(data_of, script, out, "npu", *options), env=where("npu"))
    wait_until(lambda: os.path.isfile(str(out / "metrics.jsonl")) and len(losses(str(out / "metrics.jsonl"))) >= 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 143 and len(losses(str(out / "metrics.jsonl"))) < 6
    run_model(data_of, script, out, "npu", "--resume", *options)
    whole, cut = (checkpoint.load(str(path / "checkpoint.pth.tar")) for path in (tmp_path / "whole", out))
    assert whole["epoch"] == cut["epoch"]
    assert all(torch.equal(value, cut["state_dict"][key]) for key, value in whole["state_dict"].items())


def test_fine_tuning_of_fixres_on_an_npu(data_of, tmp_path):
    """The second phase of FixRes, from a checkpoint of the first, at another resolution."""
    run_model(data_of, "FixRes/test/train_full_1p.sh", tmp_path / "train", "npu", "--batch_size=8", "--max_steps=2", "--train_epochs=1")
    shutil.copy(str(tmp_path / "train" / "checkpoint.pth.tar"), str(tmp_path / "weights.pth"))
    report, _ = run_model(data_of, "FixRes/test/finetune_full_1p.sh", tmp_path / "tune", "npu", "--batch_size=8", "--max_steps=2",
                          "--train_epochs=1", "--image_size=64", "--pth_path=%s" % (tmp_path / "weights.pth"))
    assert report["case"]["kind"] == "finetune" and report["parameters"]["device_type"] == "npu"

"""Libraries that others wrote train on the simulated NPU, unchanged, at pinned versions: npu_sim/compat. Each has an environment of
its own, in the simulator's cache. The table in ci/npu_sim/README.md says what ran."""
import hashlib
import json
import os
import pathlib

import pytest
import torch

import npu_sim
from conftest import free_port, write_images
from environments import Environment, run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(npu_sim.skip_reason() is not None, reason=str(npu_sim.skip_reason()))]
COMPAT = pathlib.Path(npu_sim.HERE, "compat")


def environment_of(library):
    """The environment with what compat/<library>.txt lists, kept until that or PyTorch changes."""
    text = (COMPAT / (library + ".txt")).read_text()
    root = os.environ.get("NPU_SIM_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "npu_sim")
    key = hashlib.sha256((text + torch.__file__ + torch.__version__).encode()).hexdigest()[:16]
    made = Environment(pathlib.Path(root, "compat", "%s-%s" % (library, key)))
    if not (made.site / "complete").exists():
        made.install("-r", COMPAT / (library + ".txt"))
        (made.site / "complete").touch()
    return made


@pytest.fixture
def train(tmp_path):
    """A function that runs a program of compat/ on NPUs, or where it is told to take the CPU, and returns its result."""
    def started(library, program, *arguments, ranks=1, on_npu=True, **environment):
        python = environment_of(library).bin / "python"
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", ranks, "--master_port", free_port()] if ranks > 1 else []
        done = run(npu_sim.RUN, "--require-npu" if on_npu else "--no-require-npu", python, *launcher, COMPAT / program, *arguments,
                   cwd=tmp_path, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hub"), **environment)
        results = [json.loads(line.split(" ", 1)[1]) for line in done.stdout.splitlines() if line.startswith("result ")]
        assert done.returncode == 0 and len(results) == 1, done.stdout[-2000:] + done.stderr[-4000:]
        return results[0]

    return started


@pytest.mark.parametrize("name, dtype", [("resnet10t", "float32"), ("resnet10t", "bfloat16"), ("test_vit", "float32"),
                                         ("test_vit", "float16")])
def test_timm(train, tmp_path, name, dtype):
    """timm's loader with prefetcher and Mixup, optimizers, schedule, scaler, moving average and checkpoints learn four colours."""
    write_images(tmp_path / "data" / "train", per_class=16)
    write_images(tmp_path / "data" / "val", per_class=8, seed=1)
    result = train("timm", "timm_train.py", tmp_path / "data", name, dtype)
    assert len(result["losses"]) == 4 and min(result["losses"]) < 0.9 * result["losses"][0] and result["accuracy"] > 75


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_trainer(train, kind):
    """transformers' Trainer trains, evaluates, saves and resumes on one NPU, with the CPU's losses."""
    on_npu = train("transformers", "transformers_trainer.py", kind, "out")
    on_cpu = train("transformers", "transformers_trainer.py", kind, "cpu", "use_cpu=true", on_npu=False)
    assert (on_npu["device"], on_npu["weights"], on_cpu["device"]) == ("npu:0", ["npu:0"], "cpu")
    assert on_npu["losses"] == pytest.approx(on_cpu["losses"], rel=1e-3) and on_npu["steps"] == on_cpu["steps"] == 32
    assert on_npu["accuracy"] > 0.75


@pytest.mark.parametrize("kind, precision", [("vit", "bf16"), ("resnet", "fp16")])
def test_trainer_in_half_precision(train, kind, precision):
    """Trainer's mixed precision learns, too."""
    result = train("transformers", "transformers_trainer.py", kind, "out", precision + "=true")
    assert result["device"] == "npu:0" and result["accuracy"] > 0.75


def test_trainer_on_two_ranks(train):
    """Trainer under torchrun takes two NPUs and hccl: half as many steps."""
    result = train("transformers", "transformers_trainer.py", "resnet", "out", ranks=2)
    assert result["device"] == "npu:0" and result["steps"] == 16 and result["losses"][-1] < 0.9 * result["losses"][0]


@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
def test_accelerate(train, precision):
    """Accelerate's loop on one NPU, in float32 with the CPU's losses; what it saved is what it loads."""
    result = train("accelerate", "accelerate_loop.py", "state", precision)
    assert (result["type"], result["ranks"], result["counted"]) == ("npu", 1, 36)
    assert result["accuracy"] == result["again"] > 0.9
    if precision == "no":
        on_cpu = train("accelerate", "accelerate_loop.py", "cpu", on_npu=False, ACCELERATE_USE_CPU="true")
        assert on_cpu["type"] == "cpu" and result["losses"] == pytest.approx(on_cpu["losses"], rel=1e-3)


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_accelerate_on_two_ranks(train, precision):
    """Under torchrun Accelerate takes hccl and an NPU for each rank; each picture of an uneven evaluation counts once."""
    result = train("accelerate", "accelerate_loop.py", "state", precision, ranks=2)
    assert (result["backend"], result["devices"], result["counted"]) == ("hccl", [0, 1], 36)
    assert result["accuracy"] == result["again"] > 0.9

"""tools/certify.sh: quick certificates of CPU and simulated NPU, that each stage can fail, and whose a certificate is."""
import json
import os
import shutil
import subprocess
import sys

import jsonschema
import pytest

import npu_sim
from conftest import CI, MODELS, ROOT, environment

sys.path.append(os.path.join(ROOT, "tools"))

SCHEMA = os.path.join(ROOT, "tools", "certificate", "schema.json")
NPU = {"PYTHONPATH": os.path.join(CI, "npu_sim"), "NPU_SIM_STRICT": "1"}
has_simulator = pytest.mark.skipif(npu_sim.skip_reason() is not None, reason=str(npu_sim.skip_reason()))
# Mutants: file, what stands there, what stands there instead.
DROPS_AN_IMAGE = ("common/data.py", "class EvalBatches(object):", """class EvalBatches(object):
    def __new__(cls, *args):
        found = object.__new__(cls)
        EvalBatches.__init__(found, *args)
        keys = [keys[:-1] for keys in found]
        EvalBatches.__iter__ = lambda self: iter(keys)
        return found
""")
SKIPS_THE_ALL_REDUCE = ("common/distributed.py", "    if rank.world_size == 1:\n        return model\n    wrapper",
                        "    if rank.world_size >= 1:\n        return model\n    wrapper")
READS_EVERY_LOSS = ("GENet/train.py", "    progress.update(learner.amp, loss)",
                    "    progress.update(learner.amp, loss)\n    loss.item()")


def certify(out, *options, root=ROOT, **variables):
    """Run tools/certify.sh of the checkout `root`; return the finished process and, where one was written, the certificate."""
    done = subprocess.run(["bash", os.path.join(str(root), "tools", "certify.sh"), "--output_path=%s" % out] + list(options),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=1200,
                          env=environment(**variables))
    path = os.path.join(str(out), "certificate.json")
    if not os.path.exists(path):
        return done, None
    with open(path) as stream:
        return done, json.load(stream)


def check_form(found):
    with open(SCHEMA) as stream:
        jsonschema.validate(found, json.load(stream))


@pytest.mark.parametrize("device, models", [
    ("cpu", ["GENet"]), pytest.param("npu", ["GENet"], marks=has_simulator),
    pytest.param("cpu", MODELS, marks=pytest.mark.slow), pytest.param("npu", MODELS, marks=[pytest.mark.slow, has_simulator])])
def test_quick_certificate(device, models, tmp_path):
    """The quick form passes in every stage; what the simulated NPU cannot show is said, not passed; it names no folder here."""
    out = tmp_path / "certificate"
    variables = NPU if device == "npu" else {}
    done, found = certify(out, "--device=" + device, "--models=" + ",".join(models), "--quick", "--jobs=2", **variables)
    assert done.returncode == 0 and not done.stderr, done.stdout[-3000:] + done.stderr[-3000:]
    check_form(found)
    assert found["verdict"] == "passed" and [stage["number"] for stage in found["stages"]] == [1, 2, 3, 4]
    assert found["device"]["simulated"] == (device == "npu")
    of_models = [check["model"] for check in found["checks"] if check["stage"] in (2, 4) and check["passed"]]
    assert set(models) <= set(of_models)
    said = [check for check in found["checks"] if check["passed"] is None]
    assert all(check["note"] for check in said)
    wanted = "simulated" if device == "npu" else "the device is the CPU"
    assert any(wanted in check["note"] for check in said)
    text = (out / "certificate.md").read_text() + json.dumps(found)
    assert ROOT + os.sep not in text and str(tmp_path) not in text
    assert found["rows"][0]["NAME"].startswith("GENET") and (out / "runs.html").exists()


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of this checkout's sources, without git."""
    folder = tmp_path_factory.mktemp("copy") / "a b"
    ignore = shutil.ignore_patterns("output", "__pycache__", "*.pth*")
    for room in ("common", "tools", "GENet", "ci/golden", "ci/eager"):
        shutil.copytree(os.path.join(ROOT, room), str(folder / room), ignore=ignore)
    yield folder
    shutil.rmtree(str(folder))


def test_each_stage_can_fail(copy, tmp_path):
    """A loader that drops an image fails in stage 3, ranks that skip the all-reduce in stage 4, a loop that reads each loss in
    stage 5; each by the check that is about it. The certificate is then this checkout's, until a file or it is changed."""
    for path, old, new in (DROPS_AN_IMAGE, SKIPS_THE_ALL_REDUCE, READS_EVERY_LOSS):
        text = (copy / path).read_text()
        assert text.count(old) == 1
        (copy / path).write_text(text.replace(old, new))
    done, found = certify(tmp_path / "out", "--device=cpu", "--models=GENet", "--quick", "--stages=3,4,5", "--jobs=2", root=copy,
                          CERTIFY_COMMIT="0" * 40)
    assert done.returncode == 1 and found["verdict"] == "failed", done.stdout[-3000:] + done.stderr[-3000:]
    check_form(found)
    failed = {(check["stage"], check["what"].split(",")[0].split(":")[-1].strip())
              for check in found["checks"] if check["passed"] is False}
    assert failed == {(3, "validation pictures that were evaluated"), (4, "mean of gradients"), (5, "host waits a step"),
                      (4, "tensors that differ after an update on 2 ranks and on one (cpu)")}
    for stage, what in failed:
        assert any(line.startswith("FAILED in stage %d" % stage) and what in line for line in done.stdout.splitlines())
    verified(copy, tmp_path)


def test_curves_outside_the_band():
    """Curves within the spread of the seeds agree; one that is shifted by more, or is not a number, does not, and its epoch is named."""
    from certificate import agreement
    cpu = [[3.0, 2.0, 1.0], [3.1, 2.1, 1.1], [3.2, 2.2, 1.2]]  # a variance of 0.01 each
    figure, bound, _ = agreement.farthest([[3.1, 2.1, 1.1], [3.2, 2.2, 1.2], [3.3, 2.3, 1.3]], cpu)
    assert figure == pytest.approx(0.1 / (2 * 0.01 / 3) ** 0.5) and bound == 8.610 and figure < bound
    figure, bound, where = agreement.farthest([[3.1, 2.9, 1.1], [3.2, 3.0, 1.2], [3.0, 2.8, 1.0]], cpu)
    assert figure > bound and where == "epoch 1"
    assert agreement.farthest([[3.1, 2.1, float("nan")]] * 3, cpu)[0] == float("inf")
    one = [[3.0, 2.0, 1.8, 1.7]]
    assert agreement.farthest([[3.1, 2.1, 1.7, 1.8]], one)[:2] == (pytest.approx(0.5), 1.0)
    assert agreement.farthest([[3.1, 2.1, 1.7, 2.1]], one)[0] > 1


def verified(copy, tmp_path):
    path = tmp_path / "out" / "certificate.json"

    def verify():
        done, _ = certify(tmp_path / "unused", "--verify", str(path), root=copy)
        assert not done.stderr and not (tmp_path / "unused").exists()
        return done.returncode, done.stdout.split(":")[0]
    assert verify() == (0, "yes")
    with open(str(copy / "GENet" / "train.py"), "a") as stream:
        stream.write("# another line\n")
    assert verify() == (1, "no")
    shutil.copy(os.path.join(ROOT, "GENet", "train.py"), str(copy / "GENet" / "train.py"))
    assert verify() == (1, "no")  # the mutant was certified
    found = json.loads(path.read_text())
    found["verdict"] = "passed"
    path.write_text(json.dumps(found))
    done, _ = certify(tmp_path / "unused", "--verify", str(path), root=copy)
    assert done.returncode == 1 and "has been changed since it was made" in done.stdout


@pytest.mark.parametrize("words, said", [(["--models=VGG"], "VGG: choose of"), (["--stages=7"], "numbers from 1 to 6"),
                                         (["--device=gpu"], "--device gpu"),
                                         (["--verify=none.json"], "none.json is no certificate")])
def test_bad_words(words, said, tmp_path):
    """One line, status 2, nothing written."""
    done, _ = certify(tmp_path / "out", *words, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and said in done.stderr
    assert not (tmp_path / "out").exists()

"""What has to hold on every supported PyTorch; ci/version_matrix.sh runs this file once for each.

The smoke runs of a model see the packages that its own requirements file installs, and no others. With EXCHANGE=FOLDER in the
environment each version leaves what it has trained there, and reads what the other versions have left.
"""
import ast
import glob
import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

import test_all_scripts
from common import checkpoint
from conftest import CI, MODELS, ROOT, environment, run_script
from fill import make_input
from narrow import narrowed
from test_genet_data import write_cifar

try:
    from importlib import metadata
except ImportError:  # before Python 3.8
    import importlib_metadata as metadata

VERSIONS = ("1.5", "1.8", "2.1", "2.x")
HERE = next((version for version in VERSIONS if torch.__version__.startswith(version + ".")), "2.x")
EXCHANGE = os.environ.get("EXCHANGE")
STANDINS = os.path.join(CI, "version_matrix_standins")

B3 = os.path.join(ROOT, "EfficientNet-B3", "configs", "dds_baselines", "effnet", "EN-B3_dds_8npu_full.yaml")
# The smallest run of each model: options that all its scripts have. GENet's has more kinds of layers here.
TINY = dict((model, tiny.options) for model, tiny in test_all_scripts.TINY.items())
TINY.update({"GENet": TINY["GENet"] + ["--extra_params=true", "--mlp=true"], "FixRes": ["--num_classes=4", "--image_size=32"]})
each_model = pytest.mark.parametrize("model", MODELS)


def python_files(*folders):
    """Return the programs below `folders` of the repository (ignoring what runs have left)."""
    found = [path for folder in folders for path in glob.glob(os.path.join(ROOT, folder, "**", "*.py"), recursive=True)]
    return sorted(path for path in found if os.sep + "output" + os.sep not in path)


# --- the code ---------------------------------------------------------------------------------------------------------

# An expression that is a version: torch.__version__, sys.version_info, torch.version.cuda, Version("1.8"), parse_version(x).
_VERSION = re.compile(r"(^|_)version(_info)?(_|$)|^(Loose|Strict)?Version$", re.IGNORECASE)


def version_comparisons(source):
    """Return the lines on which `source` decides something by a version: a comparison, `in`, or a text's startswith."""
    lines = set()
    for node in ast.walk(ast.parse(source)):
        asks = isinstance(node, ast.Compare) or (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("startswith", "match", "split"))
        names = [getattr(part, "attr", getattr(part, "id", "")) for part in ast.walk(node) if asks]
        if any(_VERSION.search(name) for name in names):
            lines.add(node.lineno)
    return sorted(lines)


@pytest.mark.parametrize("line, found", [
    ('if torch.__version__ >= "1.8": pass', True), ('old = LooseVersion(torch.__version__) < LooseVersion("1.6")', True),
    ('if torch.__version__.startswith("1.5"): pass', True), ("if sys.version_info[0] == 3: pass", True),
    ("if torch.version.cuda is None: pass", True), ('print("PyTorch", torch.__version__)', False),
    ('if hasattr(torch, "autocast"): pass', False), ("if conversion == 3: pass", False)])
def test_version_comparisons_are_found(line, found):
    """The search below finds each usual form of a version comparison, and nothing else."""
    assert bool(version_comparisons(line)) == found


def test_no_version_is_compared():
    """Versions are met by asking for the feature: no program of the models, of common/ or of tools/ compares a version, but the
    doctor, who says which versions fit together, and what names a PyTorch that is too old for the models."""
    found = []
    for path in python_files("common", "tools", *MODELS):
        if os.path.relpath(path, ROOT).startswith((os.path.join("tools", "doctor"), os.path.join("common", "environment.py"))):
            continue
        with open(path, encoding="utf-8") as stream:
            found += ["%s:%d" % (os.path.relpath(path, ROOT), line) for line in version_comparisons(stream.read())]
    assert not found


def test_syntax_is_that_of_python_3_7():
    """Python 3.7 can read every program (no walrus, no positional-only marker, no match), whichever Python tests it."""
    options = {"feature_version": (3, 7)} if sys.version_info >= (3, 8) else {}
    files = python_files("common", "tools", *MODELS)
    for path in files:
        with open(path, encoding="utf-8") as stream:
            ast.parse(stream.read(), path, **options)
    assert len(files) > 50


# --- the requirements files -------------------------------------------------------------------------------------------

def requirements(path, **machine):
    """Return the Requirements of a file (a path in the repository) that apply to this Python, or to one like `machine`, e.g.
    python_version="3.7"."""
    with open(os.path.join(ROOT, path)) as stream:
        lines = [line.split("#")[0].strip() for line in stream]
    wanted = [Requirement(line) for line in lines if line]
    return [requirement for requirement in wanted if requirement.marker is None or requirement.marker.evaluate(machine)]


def requirements_of(model):
    """Return the Requirements of a model on this PyTorch."""
    return requirements(os.path.join(model, ("2.x" if HERE.startswith("2") else HERE) + "_requirements.txt"))


def distributions(wanted):
    """Return {name: distribution} of everything that pip installs for the Requirements `wanted`."""
    found = {}
    waiting = list(wanted)
    while waiting:
        requirement = waiting.pop()
        extras = sorted(requirement.extras) or [""]
        try:
            distribution = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:
            pytest.skip("%s is not installed here; ci/version_matrix.sh makes an environment that has it" % requirement)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found and not requirement.extras:
            continue
        found[name] = distribution
        for text in distribution.requires or ():
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    return found


@pytest.fixture(scope="session")
def environments(tmp_path_factory):
    """Return a function from a model to the `bin` folder of an environment like one freshly made from its requirements file.

    It holds links to the packages of this environment: those that the file names, and those that they need.
    """
    made = {}

    def of(model):
        if model not in made:
            made[model] = make_environment(model, tmp_path_factory.mktemp("environment"))
        return made[model]
    return of


def make_environment(model, folder):
    wanted = requirements_of(model)
    for requirement in wanted:
        check_pin(requirement)
    return link_environment(wanted, folder)


def link_environment(wanted, folder):
    """Make an environment of links to the packages of this one: the Requirements `wanted`, and what they need. Return its `bin`."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = folder / "lib" / ("python%d.%d" % sys.version_info[:2]) / "site-packages"
    fresh = [Requirement(name) for name in ("pip", "setuptools") if installed(name)]  # what every new environment has
    for distribution in distributions(wanted + fresh).values():
        for name in {path.parts[0] for path in distribution.files} - {"..", "__pycache__"}:
            if not (packages / name).exists():
                (packages / name).symlink_to(distribution.locate_file(name))
    return str(folder / "bin")


def installed(name):
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def check_pin(requirement):
    """An environment that was not made from the requirements files proves nothing about them."""
    distribution = installed(requirement.name)
    if not distribution or not requirement.specifier.contains(distribution.version, prereleases=True):
        pytest.skip("%s is not what is installed here; ci/version_matrix.sh makes an environment that has it" % requirement)


IMPORT_ALL = """
import importlib.util, os, sys
root, model, paths = sys.argv[1], os.path.join(sys.argv[1], sys.argv[2]), sys.argv[3:]
sys.path[:0] = [root, model]
for number, path in enumerate(paths):
    if os.path.exists(os.path.join(os.path.dirname(path), "__init__.py")):
        importlib.import_module(os.path.relpath(path, model)[:-len(".py")].replace(os.sep, ".").replace(".__init__", ""))
        continue
    spec = importlib.util.spec_from_file_location("program_%d" % number, path)
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])
print(len(paths))
"""


@each_model
def test_requirements(environments, model):
    """Each program of the model imports with what the model's own requirements file installs."""
    paths = python_files(model)
    done = subprocess.run([os.path.join(environments(model), "python"), "-W", "ignore", "-c", IMPORT_ALL, ROOT, model] + paths,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, env=environment())
    assert done.stdout.strip() == str(len(paths)), done.stderr


# --- smoke runs through the real scripts ------------------------------------------------------------------------------

@pytest.fixture(scope="session")
def data_of(tiny_imagenet, tmp_path_factory):
    """Return a function from a model to the path of a data set for it."""
    cifar = tmp_path_factory.mktemp("cifar")
    write_cifar(cifar / "cifar-10-batches-py", per_batch=20)
    return lambda model: cifar if model == "GENet" else tiny_imagenet


def run_model(environments, data_of, model, script, out, *options, **variables):
    """Run a script of the model, with a narrow network and the packages of its requirements file, and return its report."""
    path = os.pathsep.join([environments(model), os.environ["PATH"]])
    done = run_script("%s/test/%s" % (model, script), "--data_path=%s" % data_of(model), "--output_path=%s" % out, "--workers=0",
                      "--batch_size=8", *(TINY[model] + list(options)), env=dict(environment(NARROW="1", **variables), PATH=path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "------------------ Final result ------------------" in done.stdout
    with open(os.path.join(str(out), "report.json")) as stream:
        return json.load(stream)


@each_model
def test_one_device(environments, data_of, tmp_path, model):
    """train_performance_1p.sh at the recipe's precision, or at O0 where this PyTorch cannot: a speed is measured."""
    report = run_model(environments, data_of, model, "train_performance_1p.sh", tmp_path, "--device=cpu", "--max_steps=3",
                       "--train_epochs=1")
    assert report["summary"]["train.total_ips"] > 0 and np.isfinite(report["summary"]["train.loss"])
    assert report["case"]["ranks"] == 1


@pytest.mark.skipif(HERE == "2.x" and not EXCHANGE, reason="test_all_scripts.py trains on two ranks; ci/version_matrix.sh runs this here, too")
@each_model
def test_two_ranks(environments, data_of, tmp_path, model):
    """train_full_8p.sh with two ranks trains, evaluates, and leaves a checkpoint (which the other versions read later)."""
    report = run_model(environments, data_of, model, "train_full_8p.sh", tmp_path, "--device=cpu", "--device_list=0,1",
                       "--max_steps=3", "--train_epochs=1", "--learning_rate=0.01")
    assert report["case"]["ranks"] == 2 and 0 <= report["summary"]["val.top1"] <= 100
    content = checkpoint.load(str(tmp_path / "checkpoint.pth.tar"))
    assert content["epoch"] == 1
    if EXCHANGE:
        leave_for_others(model, content, tmp_path / "checkpoint.pth.tar")


# --- on an Ascend build, with apex and DLLogger -----------------------------------------------------------------------

# --opt_level of the recipe: what apex is asked for.
OPT_LEVELS = dict.fromkeys(MODELS, "O2")
OPT_LEVELS["FixRes"] = "O1"


@each_model
def test_as_ascend(environments, data_of, tmp_path, model):
    """With --device=npu the scripts train on two devices and evaluate on one, calling torch.npu, hccl, apex and DLLogger as those
    are documented (stand-ins: 1.5 has torch.npu built in, later versions import torch_npu)."""
    if HERE == "2.x" and model != MODELS[0]:
        pytest.skip("on 2.x the models run on the simulated NPU (test_npu_models.py)")
    out, calls = tmp_path / "o", tmp_path / "calls"
    variables = dict(PYTHONPATH=STANDINS, STANDIN_CALLS=str(calls), NPU_BUILT_IN=str(int(HERE == "1.5")))
    run_model(environments, data_of, model, "train_full_8p.sh", out, "--device=npu", "--device_list=3,1", "--max_steps=2",
              "--train_epochs=1", "--learning_rate=0.01", **variables)
    made = calls.read_text().splitlines()
    for wanted in ("npu.set_device 1", "npu.set_device 3", "init_process_group hccl", "DistributedDataParallel [1]",
                   "DistributedDataParallel [3]", "amp.scale_loss", "dllogger.JSONStreamBackend False"):
        assert wanted in made, made
    assert ("import torch_npu" in made) == (HERE != "1.5")
    assert [call.split()[1::2] for call in made if call.startswith("amp.initialize ")] == [[OPT_LEVELS[model], "training"]] * 2, made
    assert any(call.startswith("npu.manual_seed_all ") for call in made)

    calls.unlink()
    report = run_model(environments, data_of, model, "train_eval_1p.sh", tmp_path / "e", "--device=npu", "--device_id=5",
                       "--pth_path=%s" % (out / "checkpoint.pth.tar"), **variables)
    made = calls.read_text().splitlines()
    assert "npu.set_device 5" in made and not {"init_process_group hccl", "amp.scale_loss"} & set(made), made
    assert 0 <= report["summary"]["val.top1"] <= 100


# --- checkpoints between versions -------------------------------------------------------------------------------------

def network(model, content):
    """Return the network that a tiny run of the model has trained, with the weights of its loaded checkpoint."""
    with narrowed(torch):
        made = NETWORKS[model]()
    checkpoint.load_weights(made, content, model)
    return made.eval()


def resnet():
    import resnet as networks
    return networks.resnet18()


def hrnet():
    from lib.config import new_config, update_config
    from lib.models import build_model
    config = new_config()
    update_config(config, SimpleNamespace(cfg=test_all_scripts.SMALL_HRNET, modelDir="", logDir="", dataDir="", testModel="",
                                          opts=["MODEL.NUM_CLASSES", "4"]))
    return build_model(config)


def genet():
    from models.wideresnet import WideResNet
    return WideResNet(depth=10, width=1, extent=0, extra_params=True, mlp=True, num_classes=10)


def efficientnet():
    from pycls.core import config
    from pycls.models.effnet import EffNet
    config.reset_cfg()
    config.cfg.merge_from_file(B3)
    made = EffNet()
    config.reset_cfg()
    return made


def fixres():
    from imnet_common import networks
    return networks.build("ResNet50", num_classes=4)


NETWORKS = {"ResNet50": resnet, "HRNet": hrnet, "GENet": genet, "EfficientNet-B3": efficientnet, "FixRes": fixres}


def logits(model, content):
    """Return logits in float64: a few steps leave running statistics that amplify float32's rounding a thousandfold."""
    side = 32 if model == "GENet" else 64
    with torch.no_grad():
        return network(model, content).double()(make_input(3, side, side).double()).numpy()


def leave_for_others(model, content, path):
    folder = os.path.join(EXCHANGE, HERE, model)
    os.makedirs(folder, exist_ok=True)
    shutil.copy(str(path), os.path.join(folder, "checkpoint.pth.tar"))
    with open(os.path.join(folder, "logits.json"), "w") as stream:
        json.dump(logits(model, content).tolist(), stream)


@each_model
@pytest.mark.parametrize("writer", [version for version in VERSIONS if version != HERE])
def test_exchange(writer, model):
    """A checkpoint that another version has trained and written loads here, all of it, and gives the writer's logits."""
    folder = os.path.join(EXCHANGE or "/nowhere", writer, model)
    if not os.path.exists(os.path.join(folder, "logits.json")):
        pytest.skip("PyTorch %s has left nothing here (ci/version_matrix.sh lets them exchange checkpoints)" % writer)
    content = checkpoint.load(os.path.join(folder, "checkpoint.pth.tar"))
    with open(os.path.join(folder, "logits.json")) as stream:
        wanted = np.array(json.load(stream))
    assert np.abs(wanted).max() > 0 and len({row.tobytes() for row in wanted}) == len(wanted)
    assert np.allclose(logits(model, content), wanted, rtol=1e-4, atol=1e-4 * np.sqrt((wanted ** 2).mean()))


# --- the table of version_matrix.sh -----------------------------------------------------------------------------------

def write_results(folder, version, spoil=None):
    """Write JUnit results in which all went well, but for the test `spoil` = (name, tag)."""
    (folder / version).mkdir()
    names = [("test_%s_golden" % model.lower().split("-")[0], "test_x") for model in MODELS]
    names += [("test_versions", test % model) for model in MODELS
              for test in ("test_requirements[%s]", "test_one_device[%s]", "test_two_ranks[%s]", "test_as_ascend[%s]",
                           "test_exchange[1-%s]", "test_exchange[2-%s]", "test_exchange[3-%s]")]
    names += [("test_requirements", "test_torch_stays[%s]" % model) for model in MODELS if version == "2.1"]
    cases = "".join('<testcase classname="ci.%s" name="%s">%s</testcase>' % (
        module, test, "<%s/>" % spoil[1] if spoil and spoil[0] in (module, test) else "") for module, test in names)
    (folder / version / "tests.xml").write_text("<testsuites><testsuite>%s</testsuite></testsuites>" % cases)


def matrix(folder, *options):
    done = subprocess.run([sys.executable, os.path.join(CI, "version_matrix.py"), str(folder)] + list(options),
                          stdout=subprocess.PIPE, universal_newlines=True)
    return done.returncode, done.stdout


@pytest.mark.parametrize("version, spoil, status, words", [
    ("1.8", None, 0, "checkpoints" + "      3 / 0 / 0" + "    3 / 0 / 0" * 3),
    ("1.8", ("test_hrnet_golden", "failure"), 1, "PyTorch 1.8: test_hrnet_golden::test_x failed"),
    ("1.8", ("test_two_ranks[GENet]", "skipped"), 1, "PyTorch 1.8: not proved: GENet, 2 ranks"),
    ("1.8", ("test_exchange[1-FixRes]", "skipped"), 1, "PyTorch 1.8: not proved: FixRes, checkpoints"),
    ("1.8", ("test_as_ascend[FixRes]", "error"), 1, "test_as_ascend[FixRes] failed"),
    ("2.1", ("test_as_ascend[FixRes]", "skipped"), 1, "PyTorch 2.1: not proved: FixRes, Ascend stand-in"),
    ("2.1", ("test_torch_stays[FixRes]", "skipped"), 1, "PyTorch 2.1: not proved: FixRes, PyTorch stays")])
def test_matrix_fails_for_what_is_not_proved(tmp_path, version, spoil, status, words):
    """A failure, and a check that was skipped although the version needs it, each make the matrix fail and are named."""
    for other in VERSIONS:
        write_results(tmp_path, other, spoil if other == version else None)
    assert matrix(tmp_path)[0] == status and words in matrix(tmp_path)[1], matrix(tmp_path)


def test_matrix_without_a_python(tmp_path):
    """A column without a Python says so and fails, unless that is allowed; one that could not be installed always fails."""
    for version in VERSIONS:
        write_results(tmp_path, version)
    (tmp_path / "1.5" / "tests.xml").unlink()
    (tmp_path / "1.5" / "state").write_text("no Python 3.7\n")
    assert matrix(tmp_path)[0] == 1 and matrix(tmp_path, "--allow-missing")[0] == 0
    assert "no Python 3.7" in matrix(tmp_path)[1].splitlines()[1]
    (tmp_path / "1.5" / "state").write_text("not installed\n")
    assert matrix(tmp_path, "--allow-missing")[0] == 1

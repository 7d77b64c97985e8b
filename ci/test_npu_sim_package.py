"""The simulated NPU as an installed package: npu-sim run, pytest --npu-sim, its wheels, and a real torch_npu beside it."""
import os
import shutil
import sys
import zipfile

import pytest

import npu_sim
from environments import OUTSIDE, Environment, run
from npu_sim import launch

pytestmark = pytest.mark.skipif(npu_sim.skip_reason() is not None, reason=str(npu_sim.skip_reason()))
NO_INDEX = ["--no-index", "--no-deps", "--no-build-isolation"]


def sources():
    """The files of ci/npu_sim, but for what Python compiles on import."""
    walked = [(folder, names) for folder, _, names in os.walk(npu_sim.HERE) if "__pycache__" not in folder]
    return {os.path.join(folder, name) for folder, names in walked for name in names}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment into which ci/npu_sim is installed; the sources are as they were."""
    made, before = Environment(tmp_path_factory.mktemp("installed") / "venv"), sources()
    made.install(*NO_INDEX, npu_sim.HERE)
    assert sources() == before
    return made


CODE = """
import importlib.metadata, sys, torch
entries = {entry.value for entry in importlib.metadata.entry_points(group="torch.backends")}
package = sys.modules["torch_npu"]
print(torch.ones(2, device="npu").sum().item(), *entries, package.__version__, package.__file__)
try:
    torch.npu.set_devise(1)
except AttributeError as error:
    assert "did you mean 'set_device'" in str(error), error
torch.cuda.is_available()
"""


def test_console_script(installed, tmp_path):
    """`npu-sim run` gives a script the installed simulator by its entry point, in strict mode; without it nothing is changed."""
    (tmp_path / "train.py").write_text(CODE)
    done = run(installed.bin / "npu-sim", "run", installed.bin / "python", tmp_path / "train.py")
    total, entry, version, path = done.stdout.split()
    assert (total, entry) == ("2.0", "torch_npu:_autoload") and version.endswith("+sim") and path.startswith(str(installed.site))
    assert done.returncode == 1 and "train.py:10" in done.stderr  # strict
    alone = installed.python("-c", "import importlib.util, torch; print(importlib.util.find_spec('torch_npu'))")
    assert alone.stdout.strip() == "None", alone.stderr


@pytest.mark.parametrize("arguments, status", [((), 2), (("--help",), 0), (("walk",), 2), (("run",), 2)])
def test_usage(installed, arguments, status):
    """Help and misuse of the console script have their statuses."""
    done = run(installed.bin / "npu-sim", *arguments)
    assert done.returncode == status and "usage: npu-sim run" in done.stdout


TESTS = {
    "conftest": "import torch\nIMPORTED = torch.ones(1).npu()",
    "test_passes": "import torch\ndef test_it(npu_report):\n    torch.ones(1, device='npu').item()\n"
                   "    assert npu_report.host_waits == 1",
    "test_strict": "import torch\ndef test_it():\n    torch.cuda.is_available()",
    "test_child": "import subprocess, sys\ndef test_it():\n    subprocess.check_call([sys.executable, '-c', "
                  "'import torch; torch.ones(1).npu()'])",
    "test_idle": "def test_it():\n    pass"}


@pytest.mark.parametrize("files, options, environment, status, said", [
    (["conftest", "test_passes"], ["--npu-sim"], {}, 0, "1 passed"),
    (["conftest", "test_passes"], ["--npu-sim", "-n", "1", "-p", "xdist"], {}, 0, "1 passed"),
    (["test_passes", "test_strict"], ["--npu-sim"], {}, 1, "NPU_SIM_STRICT=warn or allow lets it pass"),
    (["test_child"], ["--npu-sim"], {}, 0, "1 passed"),
    (["test_idle"], ["--npu-sim"], {}, 1, "none of the tests used an NPU"),
    (["test_idle"], ["--npu-sim"], {"NPU_SIM_REQUIRE": "0"}, 0, "1 passed"),
    (["test_idle"], [], {}, 0, "1 passed"),
    (["test_idle"], ["--npu-sim"], {"NPU_SIM_STRICT": "yes"}, 4, "NPU_SIM_STRICT must be error, warn or allow, not 'yes'"),
], ids=lambda value: None if isinstance(value, (dict, int)) else "".join(value)[:40])
def test_pytest_plugin(installed, tmp_path, files, options, environment, status, said):
    """`pytest --npu-sim` gives the tests, their conftest.py, xdist's workers and child processes the NPUs, and fails where none
    was used; npu_report needs no -p; without the option nothing is changed."""
    for name in files:
        (tmp_path / (name + ".py")).write_text(TESTS[name])
    done = installed.python("-m", "pytest", "-q", "-p", "no:cacheprovider", *options, cwd=tmp_path, **environment)
    assert done.returncode == status and said in done.stdout + done.stderr, done.stdout + done.stderr


@pytest.fixture
def beside_a_real_one(installed):
    """The environment with something that is a torch_npu as pip installs it."""
    metadata = installed.site / "torch_npu-2.13.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: torch-npu\nVersion: 2.13.0\n")
    package = installed.site / "torch_npu" / "__init__.py"
    package.parent.mkdir()
    package.write_text("real = True")
    yield installed
    for path in (metadata, package):
        shutil.rmtree(str(path.parent))


def test_a_real_torch_npu_is_not_shadowed(beside_a_real_one, tmp_path):
    """Every way to the simulator ends with one line that says where the real one is; without it, the real one is imported."""
    (tmp_path / "test_it.py").write_text(TESTS["test_idle"])
    python, line = beside_a_real_one.bin / "python", "torch_npu 2.13.0 is installed in %s" % beside_a_real_one.site
    done = run(beside_a_real_one.bin / "npu-sim", "run", python, "-c", "print('ran')")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1) and line in done.stderr
    for done, status in ((run(npu_sim.RUN, python, "-c", "import torch_npu"), 1),
                         (beside_a_real_one.python("-m", "pytest", "--npu-sim", tmp_path), 4)):
        assert done.returncode == status and line in done.stderr.splitlines()[-1] + done.stderr.splitlines()[0], done.stderr
    assert beside_a_real_one.python("-c", "import torch_npu; print(torch_npu.real)").stdout == "True\n"


@pytest.mark.skipif("$" in sys.prefix, reason="setuptools takes a $ in its own path for a variable")
def test_compiled_wheel(tmp_path):
    """NPU_SIM_COMPILE=1 makes a wheel for the PyTorch, the Python and the platform that are here; it needs neither a compiler
    nor a cache, and says which PyTorch it is for."""
    library = launch("-c", "import torch_npu; print(torch_npu._C.__file__)").stdout.strip()
    compiler = tmp_path / "bin" / "g++"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\nfor last; do :; done\ncp '%s' \"$last\"\n" % library)
    compiler.chmod(0o755)
    with_compiler = {"PATH": "%s:%s" % (compiler.parent, OUTSIDE["PATH"]), "NPU_SIM_COMPILE": "1"}
    before = sources()
    done = run(sys.executable, "-m", "pip", "wheel", "--quiet", *NO_INDEX, "-w", tmp_path, npu_sim.HERE, **with_compiler)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    _, version, python, _, platform = wheel.stem.split("-")
    import torch  # not at the top: collecting the tests is to be quick

    release = torch.__version__.split("+")[0]
    assert version.endswith("+torch" + release) and python == "cp%d%d" % sys.version_info[:2] and platform.startswith("linux")
    with zipfile.ZipFile(str(wheel)) as content:
        (metadata,) = [name for name in content.namelist() if name.endswith("/METADATA") and name.count("/") == 1]
        assert "Requires-Dist: torch==%s\n" % release in content.read(metadata).decode()
    assert sources() == before
    made = Environment(tmp_path / "venv")
    made.install(*NO_INDEX, wheel)
    done = run(made.bin / "npu-sim", "run", made.bin / "python", "-c", "import torch_npu; print(torch_npu._C.__file__)",
               NPU_SIM_CACHE="/dev/null/none", PATH="/none")
    assert done.stdout.startswith(str(made.site)) and "building" not in done.stderr, done.stderr

"""The simulated NPU: its own checks, its settings, its launcher and its build."""
import ast
import json
import os
import stat
import subprocess
import sys
import xml.etree.ElementTree

import pytest

import npu_sim
from npu_sim import launch

CHECKS = os.path.join(npu_sim.HERE, "checks")
pytestmark = pytest.mark.skipif(npu_sim.skip_reason() is not None, reason=str(npu_sim.skip_reason()))


@pytest.fixture(scope="session", autouse=True)
def built():
    """Build the simulator before anything that is timed."""
    done = launch("-c", "import torch_npu")
    assert done.returncode == 0, done.stderr


# ---- the checks, which run in processes of their own: in one that has loaded torch_npu, "auto" devices are NPUs

def check_names(*files):
    """The names of the check functions in files of npu_sim/checks, without importing them."""
    names = []
    for name in files:
        with open(os.path.join(CHECKS, name)) as handle:
            body = ast.parse(handle.read()).body
        names += [node.name for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return names


def start_checks(report, files, **environment):
    command = [npu_sim.RUN, sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider",
               "--junitxml", str(report)] + [os.path.join(CHECKS, name) for name in files]
    return subprocess.Popen(command, env=dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=npu_sim.EAGER, **environment), stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, universal_newlines=True)


def outcomes(report, process):
    """{check: failures of its cases} of a finished run of checks."""
    output, _ = process.communicate(timeout=600)
    assert report.exists(), output
    found = {}
    for case in xml.etree.ElementTree.parse(str(report)).iter("testcase"):
        failures = [element.text for element in case if element.tag in ("failure", "error", "skipped")]
        found.setdefault(case.get("name").split("[")[0], []).extend(failures)
    return found


ONE_DEVICE = ("check_device.py", "check_operators.py", "check_layout.py", "check_names.py",
              "check_half.py", "check_training.py", "check_data.py")


@pytest.fixture(scope="session")
def one_device(tmp_path_factory):
    report = tmp_path_factory.mktemp("checks") / "one.xml"
    return outcomes(report, start_checks(report, ONE_DEVICE))


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checks")
    reports = [folder / ("rank%d.xml" % rank) for rank in range(2)]
    processes = [start_checks(report, ["check_hccl.py"], RANK=str(rank), WORLD_SIZE="2",
                              INIT_METHOD="file://%s/meeting" % folder) for rank, report in enumerate(reports)]
    return [outcomes(report, process) for report, process in zip(reports, processes)]


@pytest.fixture(scope="session")
def with_apex(tmp_path_factory):
    report = tmp_path_factory.mktemp("checks") / "apex.xml"
    return outcomes(report, start_checks(report, ["check_apex.py"], NPU_SIM_APEX="1"))


@pytest.mark.parametrize("name", check_names(*ONE_DEVICE))
def test_one_device(one_device, name):
    """What the check of this name in npu_sim/checks says."""
    assert one_device[name] == []


@pytest.mark.parametrize("name", check_names("check_apex.py"))
def test_with_apex(with_apex, name):
    """What the check of this name in npu_sim/checks/check_apex.py says, with the stand-in for apex."""
    assert with_apex[name] == []


def test_apex_that_is_installed(launch_fork, tmp_path):
    """An apex of one's own is imported, before and after torch_npu; the stand-in takes its place only where that is asked for."""
    (tmp_path / "apex.py").write_text("mine = True")
    code = "import apex; print(hasattr(apex, 'mine'))"
    for switch, expected in (("0", "True"), ("1", "False")):
        for before in ("", "import torch_npu; "):
            done = launch_fork("-c", before + code, PYTHONPATH=str(tmp_path), NPU_SIM_APEX=switch)
            assert done.stdout.strip() == expected, done.stderr
    assert "No module named 'apex'" in launch_fork("-c", "import torch_npu, apex").stderr


@pytest.mark.parametrize("name", check_names("check_hccl.py"))
def test_two_ranks(two_ranks, name):
    """What the check of this name in npu_sim/checks/check_hccl.py says, on both ranks."""
    assert [rank[name] for rank in two_ranks] == [[], []]


# ---- environment

COUNT = "import torch, torch_npu; print(torch.npu.device_count(), torch.npu.is_available(), torch.accelerator.is_available())"


@pytest.mark.parametrize("environment, expected", [
    ({}, "8 True True"), ({"NPU_SIM_DEVICE_COUNT": "2"}, "2 True True"), ({"ASCEND_RT_VISIBLE_DEVICES": "2,5,7"}, "3 True True"),
    ({"ASCEND_RT_VISIBLE_DEVICES": ""}, "0 False False"), ({"NPU_SIM_DEVICE_COUNT": "0"}, "0 False False")])
def test_device_count(launch_fork, environment, expected):
    """The number of devices can be set, and ASCEND_RT_VISIBLE_DEVICES takes some away."""
    assert launch_fork("-c", COUNT, **environment).stdout.strip() == expected


@pytest.mark.parametrize("environment", [{"NPU_SIM_DEVICE_COUNT": "17"}, {"NPU_SIM_DEVICE_COUNT": "two"}, {"NPU_SIM_MEMORY_GIB": "0"}])
def test_bad_settings(launch_fork, environment):
    """A setting that makes no sense is refused by its name."""
    done = launch_fork("-c", COUNT, **environment)
    assert done.returncode == 1 and next(iter(environment)) + " must be a whole number" in done.stderr


def test_without_devices(launch_fork):
    """Where no NPU is visible, using one fails, seeding works, and CUDA may be asked after even in strict mode."""
    code = ("import torch, torch_npu; torch.manual_seed(0); torch.npu.manual_seed_all(0); print(torch.cuda.is_available())\n"
            "torch.ones(1, device='npu')")
    done = launch_fork("-c", code, ASCEND_RT_VISIBLE_DEVICES="")
    assert done.stdout.strip() == "False" and "this process sees no NPU" in done.stderr


def test_report(tmp_path):
    """NPU_SIM_REPORT leaves a file per process that says what ran on the devices."""
    launch("-c", "import torch, torch_npu; torch.ones(4, 4, device='npu:1') @ torch.ones(4, 4, device='npu:1')",
           NPU_SIM_REPORT=str(tmp_path))
    (path,) = tmp_path.iterdir()
    report = json.loads(path.read_text())
    assert report["operators"]["aten::mm"] == 1 and report["peak_memory_bytes"][1] >= 3 * 64


def test_exit_right_after_backward(tmp_path):
    """A process that ends while the device's autograd thread still frees a graph of Python objects ends cleanly."""
    script = tmp_path / "leave.py"
    script.write_text(
        "import torch, torch_npu\n"
        "class Twice(torch.autograd.Function):\n"
        "    @staticmethod\n    def forward(ctx, x):\n        ctx.kept = [object() for _ in range(50000)]\n        return x * 2\n"
        "    @staticmethod\n    def backward(ctx, grad):\n        return grad * 2\n"
        "x = y = torch.ones(10, device='npu:1', requires_grad=True)\n"
        "for _ in range(5):\n    y = Twice.apply(y)\n"
        "y.sum().backward()\n")
    assert [launch(script).returncode for _ in range(4)] == [0] * 4


LEAVE_GROUP = """
import datetime, sys, torch, torch_npu
import torch.distributed as dist
store = dist.HashStore()
group = torch_npu._C.ProcessGroupHCCL(dist.ProcessGroupGloo(store, 0, 1, datetime.timedelta(seconds=60)), store, ["npu"])
tensor = torch.ones(4, device="npu")
torch._C._stash_obj_in_tls("key", object())  # what is in a thread's Python state goes along with its collectives
sys.setswitchinterval(1000)  # this thread keeps the GIL
work = group.allreduce([tensor])
torch._C._stash_obj_in_tls("key", None)
del work
sum(range(10_000_000))  # gloo's thread ends the work meanwhile
del group
"""


def test_end_of_a_group():
    """A group can go away while gloo's thread waits for the GIL in order to release a collective."""
    assert launch("-c", LEAVE_GROUP).returncode == 0


# ---- autoload: since 2.5.1 the real wheels declare an entry point that `import torch` follows

VERSION = "import importlib.metadata; print(importlib.metadata.version('torch_npu'), torch_npu.__version__)"


def test_autoload():
    """`import torch` alone brings the device, TORCH_DEVICE_BACKEND_AUTOLOAD=0 keeps it away, for child processes as well."""
    code = "import os, torch; print(torch.ones(2, device='npu').sum().item(), os.environ.get('TORCH_DEVICE_BACKEND_AUTOLOAD'))"
    assert launch("-c", code).stdout.split() == ["2.0", "None"]
    assert "device string: npu" in launch("-c", code, TORCH_DEVICE_BACKEND_AUTOLOAD="0").stderr
    assert launch("-c", "import torch_npu; " + code, TORCH_DEVICE_BACKEND_AUTOLOAD="0").stdout.split() == ["2.0", "0"]


@pytest.mark.parametrize("imports", ["import torch, torch_npu; ", (
    "import torch_npu; torch_npu._metadata.install('2.10.1+sim'); torch_npu.__version__ = '2.10.1+sim'; ")])
def test_version(imports):
    """The distribution's version is the package's, which follows PyTorch's, whatever is written beside the package."""
    metadata, package = launch("-c", imports + VERSION).stdout.split()
    assert metadata == package and ("2.10.1" in imports) == (package == "2.10.1+sim")


# ---- the launcher

def test_launcher(tmp_path):
    """Arguments with spaces, the exit status, and child processes get through; help and misuse have their statuses."""
    script = tmp_path / "a script.py"
    script.write_text("import subprocess, sys, torch_npu\nassert sys.argv[1] == 'two words $HOME'\n"
                      "sys.exit(subprocess.call([sys.executable, '-c', 'import torch_npu, sys; sys.exit(7)']))")
    assert launch(script, "two words $HOME").returncode == 7
    misuse = subprocess.run([npu_sim.RUN], stdout=subprocess.PIPE)
    assert misuse.returncode == 2 and b"usage:" in misuse.stdout
    assert subprocess.run([npu_sim.RUN, "--help"], stdout=subprocess.PIPE).returncode == 0


TORCHVISION = """
import torch, torchvision
model = torchvision.models.resnet18(num_classes=2).npu()
model(torch.ones(2, 3, 32, 32, device="npu")).sum().backward()
print(torch.ops.torchvision.nms)
"""


def test_torchvision():
    """A script can import torchvision, whether its compiled half loads beside this PyTorch or not (the registry's do not)."""
    done = launch("-c", TORCHVISION)
    assert done.stdout.strip() == "torchvision.nms", done.stderr


def test_not_there_without_the_launcher():
    """Nothing of the simulator leaks into a process that was not launched with it."""
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch_npu') is not None)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


# ---- the build

def built_library():
    """The path of the library that this machine has built."""
    done = launch("-c", "import torch_npu; print(torch_npu._C.__file__)")
    return done.stdout.strip()


@pytest.fixture
def fake_compiler(tmp_path):
    """A compiler that logs its calls, takes a moment, and 'builds' by copying the library that is already there."""
    compiler = tmp_path / "fake-g++"
    compiler.write_text(
        "#!/bin/sh\nsleep 0.3\necho call >> '%s'\nfor last; do :; done\ncp '%s' \"$last\"\n" % (tmp_path / "calls", built_library()))
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    return str(compiler)


def test_built_once(tmp_path, fake_compiler):
    """Two processes that need the simulator at the same moment build it once, into the cache; later ones do not build."""
    environment = dict(os.environ, CXX=fake_compiler, NPU_SIM_CACHE=str(tmp_path / "cache"))
    command = [npu_sim.RUN, sys.executable, "-c", "import torch, torch_npu; print((torch.ones(2, device='npu') + 1).sum().item())"]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    results = [process.communicate(timeout=120) for process in both]
    later = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert [out.strip() for out, _ in results] + [later.stdout.strip()] == [b"4.0"] * 3
    assert (tmp_path / "calls").read_text() == "call\n"
    assert b"building" in results[0][1] + results[1][1] and b"building" not in later.stderr


@pytest.mark.parametrize("compiler, message", [
    ("no-such-compiler", "needs a C++ compiler to build itself once: no-such-compiler is not there"),
    ("false", "could not be built: false ")])
def test_build_failures(tmp_path, compiler, message):
    """No compiler, or one that fails, is an ImportError that says so; tests learn of the former as a reason to skip."""
    done = launch("-c", "import torch_npu", CXX=compiler, NPU_SIM_CACHE=str(tmp_path))
    assert done.returncode == 1 and "ImportError" in done.stderr and message in done.stderr
    reason = subprocess.run([sys.executable, "-c", "import npu_sim; print(npu_sim.skip_reason())"], stdout=subprocess.PIPE,
                            env=dict(os.environ, CXX=compiler, PYTHONPATH=os.path.dirname(npu_sim.HERE)), universal_newlines=True)
    assert ("no-such-compiler is not there" in reason.stdout) == (compiler == "no-such-compiler")


def test_nothing_is_built_in_the_sources():
    """The sources hold no library and no object files."""
    files = [name for _, _, names in os.walk(npu_sim.HERE) for name in names]
    assert not [name for name in files if name.endswith((".so", ".o"))]

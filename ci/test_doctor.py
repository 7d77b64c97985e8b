"""tools/doctor.py on stand-ins for machines: each failure that people report is one line of cause and one of what would be right.

A Stage is a machine: a root with /dev, /proc, /sys and /usr/local/Ascend, a folder of stand-in packages, one of programs, an
environment. The program runs in a Python without any package.
"""
import errno
import json
import os
import resource
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT, assert_bad_input, environment

sys.path.insert(0, os.path.join(ROOT, "tools"))

from doctor_checks import ascend, compatibility, host, software  # noqa: E402
from doctor_checks.machine import Machine, brief  # noqa: E402

DOCTOR = os.path.join(ROOT, "tools", "doctor.py")
TOOLKIT = "/usr/local/Ascend/ascend-toolkit/latest"
INFO = TOOLKIT + "/aarch64-linux/ascend_toolkit_install.info"
DRIVER = "/usr/local/Ascend/driver/version.info"

TORCH = """
__version__ = %r
class version:
    cuda = %r
class cuda:
    is_available = staticmethod(lambda: False)
class zeros:
    def __init__(self, size):
        pass
    def numpy(self):
        import numpy
        if numpy.__version__ >= "2":
            raise RuntimeError("Numpy is not available")
"""
TORCH_NPU = """
import torch
class npu:
    is_available = staticmethod(lambda: %(count)d > 0)
    device_count = staticmethod(lambda: %(count)d)
torch.npu = npu
__version__ = "2.1.0.post10+git"
"""
# As published in reports of users: CANN 8.0.0, drivers 24.1.0 and older, npu-smi of 910B.
CANN = """package_name=Ascend-cann-toolkit
version=%s
innerversion=%s
compatible_version=%s
arch=aarch64
"""
CANN_8_0 = CANN % ("8.0.0", "V100R001C20SPC001B251", "[V100R001C15],[V100R001C17],[V100R001C18],[V100R001C19],[V100R001C20]")
DRIVER_INFO = """Version=%s
ascendhal_version=7.35.23
Innerversion=%s
compatible_version=%s
compatible_version_fw=[7.0.0,7.7.99]
package_version=%s
"""
DRIVER_24_1 = DRIVER_INFO % ("24.1.0", "V100R001C20SPC001B250", "[V100R001C17],[V100R001C18],[V100R001C20]", "24.1.0")
CHIP = """| %d     910B3               | %-13s | 102.8       55                0    / 0             |
| 0                         | 0000:C%d:00.0  | 0           0    / 0          %-5d/ 65536         |
+===========================+===============+====================================================+
"""
NPU_SMI = """+------------------------------------------------------------------------------------------------+
| npu-smi 24.1.0                   Version: 24.1.0                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
%s+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 1       0                 | 19341         | python                   | 58472                   |
+===========================+===============+====================================================+
"""
NO_NPU = """DrvMngGetConsoleLogLevel failed. (g_conLogLevel=3)
dcmi model initialized failed, because the device is used. ret is -8020
"""


def chips(*states):
    return NPU_SMI % "".join(CHIP % (number, health, number, used) for number, (health, used) in enumerate(states))


class Stage(object):
    """Where nothing is changed: two NPUs, everything as it should be."""

    def __init__(self, folder, python):
        self.folder, self.python, self.root = str(folder), python, os.path.join(str(folder), "root")
        self.environ = {"PATH": os.path.join(self.folder, "bin"), "PYTHONPATH": os.path.join(self.folder, "site"),
                        "HOME": os.path.join(self.folder, "home"), "ASCEND_HOME_PATH": TOOLKIT,
                        "ASCEND_OPP_PATH": TOOLKIT + "/opp", "LD_LIBRARY_PATH": TOOLKIT + "/lib64"}
        for name in ("davinci0", "davinci1", "davinci_manager", "devmm_svm", "hisi_hdc", "shm/x"):
            self.file("/dev/" + name)
        for name in ("lo", "eth0"):
            self.file("/sys/class/net/%s/address" % name)
        self.file(INFO, CANN_8_0)
        self.file(TOOLKIT + "/lib64/libascendcl.so")
        self.file("/usr/local/Ascend/ascend-toolkit/set_env.sh")
        self.file(DRIVER, DRIVER_24_1)
        self.file("/usr/local/Ascend/firmware/version.info", "Version=7.5.0.2.220\n")
        self.program("npu-smi", chips(("OK", 3338), ("OK", 3337)))
        self.torch("2.1.0")
        self.package("torchvision", '__version__ = "0.16.0"')
        self.package("numpy", '__version__ = "1.26.4"')
        self.package("torch_npu", TORCH_NPU % {"count": 2}, "2.1.0.post10")

    def file(self, path, text="", root=None):
        path = os.path.join(root or self.root, path.lstrip("/"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as stream:
            stream.write(text)
        return path

    def package(self, name, source, version=None):
        site = os.path.join(self.folder, "site")
        self.remove(name)
        self.file(name + "/__init__.py", source, site)
        if version:
            self.file("%s-%s.dist-info/METADATA" % (name, version), root=site)

    def remove(self, name):
        site = os.path.join(self.folder, "site")
        for entry in os.listdir(site) if os.path.isdir(site) else ():
            if entry == name or entry.startswith(name + "-"):
                shutil.rmtree(os.path.join(site, entry))

    def torch(self, version, cuda=None, source=TORCH):
        self.package("torch", source % (version, cuda), version)

    def program(self, name, text, status=0):
        path = self.file(name, '#!/bin/sh\n/bin/cat "$0.txt"\nexit %d\n' % status, os.path.join(self.folder, "bin"))
        self.file(name + ".txt", text, os.path.join(self.folder, "bin"))
        os.chmod(path, 0o755)

    def delete(self, *paths):
        for path in paths:
            os.remove(os.path.join(self.root, path.lstrip("/")))

    def no_ascend(self):
        for folder in ("root/usr", "root/dev", "bin"):
            shutil.rmtree(os.path.join(self.folder, folder), ignore_errors=True)
        self.file("/dev/shm/x")
        self.remove("torch_npu")
        self.environ = {key: value for key, value in self.environ.items() if "ASCEND" not in key and "LD_" not in key}

    def gpus(self, text, status=0):
        self.no_ascend()
        self.program("nvidia-smi", text, status)
        self.file("/dev/nvidia0")

    def run(self, *options):
        """Run the program and return the finished process; stdout is the table."""
        return subprocess.run([self.python, DOCTOR, "--root=" + self.root] + list(options), env=self.environ, cwd=self.folder,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=300)


@pytest.fixture(scope="session")
def bare(tmp_path_factory):
    """A Python without any package."""
    folder = str(tmp_path_factory.mktemp("bare") / "venv")
    subprocess.check_call([sys.executable, "-m", "venv", "--without-pip", folder])
    return os.path.join(folder, "bin", "python")


@pytest.fixture
def stage(tmp_path, bare):
    return Stage(tmp_path / "a $b", bare)


def faults(done):
    """Return the lines of the table that are a warning or wrong, each with the line below it, without the rows that the real
    machine below the stage decides."""
    lines = done.stdout.splitlines()
    return [(line, lines[number + 1].strip()) for number, line in enumerate(lines[:-1])
            if line.startswith(("warning", "wrong")) and line.split()[1] not in ("limits", "/dev/shm", "CPUs", "output")]


def the_fault(done, status, name, cause, right):
    """There is exactly one fault: a line with `cause`, and the line of what would be `right`."""
    assert done.stderr == "" and len(faults(done)) == 1, done.stdout + done.stderr
    line, below = faults(done)[0]
    assert line.startswith("%-8s %-12s " % (status, name)) and cause in line, line
    assert below.startswith("right: ") and right in below, below
    assert done.returncode == (1 if status == "wrong" else 0)
    assert done.stdout.splitlines()[-1].startswith("1 wrong, " if status == "wrong" else "0 wrong, ")
    assert max(len(line), len(below) + 9) <= 120, (line, below)


def test_a_machine_without_faults(stage):
    """Everything fits: no fault, status 0, and the versions that were found are in the table."""
    done = stage.run("--device=npu", "--data_path=" + os.path.join(stage.folder, "bin"))
    assert done.returncode == 0 and not faults(done) and not done.stderr, done.stdout + done.stderr
    for text in ("2.1.0.post10", "8.0.0 in " + TOOLKIT, "24.1.0, firmware 7.5.0.2.220", "2 of 2 visible, 910B3, 65536 MB",
                 "files/s"):
        assert text in done.stdout, done.stdout


def npus(value):
    return lambda stage: stage.environ.update(ASCEND_RT_VISIBLE_DEVICES=value)


def raising(text):
    return lambda stage: stage.package("torch_npu", "raise %s" % text, "2.1.0.post10")


def not_sourced(stage):
    for name in ("ASCEND_HOME_PATH", "ASCEND_OPP_PATH", "LD_LIBRARY_PATH"):
        del stage.environ[name]
    raising("ImportError('libhccl.so: cannot open shared object file: No such file or directory')")(stage)


def cann(version, inner="", compatible=""):
    return lambda stage: stage.file(INFO, CANN % (version, inner, compatible))


def apex_of_pypi(stage):
    stage.package("apex", "from pyramid.session import UnencryptedCookieSessionFactoryConfig", "0.9.10.dev0")


def old_torch_without_plugin(stage):
    stage.remove("torch_npu")
    stage.torch("2.3.0")


def table_only(stage):
    stage.torch("2.12.0")
    stage.package("torch_npu", TORCH_NPU % {"count": 2}, "2.12.0")
    stage.file(INFO, "version=9.1.0\n")
    stage.file(DRIVER, DRIVER_INFO % ("25.0.rc1.1", "V100R001C21SPC002B220", "[V100R001C17],[V100R001C21]", "25.0.rc1.1"))


def new_cann(stage):
    """CANN 9.0.0 with its own driver, below a plug-in for 8.0.0."""
    stage.file(INFO, "version=9.0.0\n")
    stage.file(DRIVER, DRIVER_INFO % ("26.0.rc1", "V100R001C10SPC001B257", "[V100R001C23]", "26.0.rc1"))


def old_driver(stage):
    """Driver 23.0.rc3: the CANN 8.0.0 lists V100R001C15 and later."""
    stage.file(DRIVER, DRIVER_INFO % ("23.0.rc3", "V100R001C13SPC005B246", "[V100R001C11],[V100R001C13]", "23.0.rc3"))


FAULTS = {
    "torch and torch_npu do not fit": (lambda stage: stage.torch("2.3.1"), "wrong", "torch_npu",
                                       "2.1.0.post10 is for PyTorch 2.1.0, here is 2.3.1", "torch-npu==2.3.1.post4"),
    "torch is newer than any plug-in": (lambda stage: stage.torch("2.14.1"), "wrong", "torch_npu",
                                        "for PyTorch 2.1.0", "pip install torch==2.1.0"),
    "no plug-in for this torch": (old_torch_without_plugin, "wrong", "torch_npu", "not installed",
                                  "PyTorch 2.4.0 or 2.3.1 or 2.1.0"),
    "CANN not sourced": (not_sourced, "wrong", "CANN", "8.0.0 is not set up in this shell: no ASCEND_HOME_PATH",
                         "source /usr/local/Ascend/ascend-toolkit/set_env.sh"),
    "LD_LIBRARY_PATH lost": (lambda stage: stage.environ.pop("LD_LIBRARY_PATH"), "wrong", "CANN",
                             "no libascendcl.so in LD_LIBRARY_PATH", "source "),
    "no CANN": (lambda stage: stage.delete(INFO), "wrong", "CANN", "not in ASCEND_HOME_PATH", "8.0.0"),
    "CANN that the plug-in was not made for": (new_cann, "warning", "CANN", "9.0.0 is not in the vendor's list", "CANN 8.0.0"),
    "CANN older than the plug-in": (cann("7.0.0", "V100R001C15", "[V100R001C20]"), "warning", "CANN", "7.0.0",
                                    "torch-npu==2.1.0"),
    "driver too old": (old_driver, "wrong", "NPU driver", "23.0.rc3 does not run with CANN 8.0.0", "driver and firmware"),
    "driver too old for the table": (table_only, "wrong", "NPU driver", "25.0.rc1.1 does not run with CANN 9.1.0", "26.0.RC1"),
    "firmware too old": (lambda stage: stage.file("/usr/local/Ascend/firmware/version.info", "Version=6.4.0.4.220\n"), "wrong",
                         "NPU driver", "does not run with firmware 6.4.0.4.220", "firmware 7.0.0 to 7.7.99"),
    "driver not mounted": (lambda stage: stage.delete(DRIVER), "wrong", "NPU driver", "no /usr/local/Ascend/driver/version.info",
                           "mount"),
    "half a CANN": (raising("ImportError('libhccl.so: cannot open shared object file: No such file or directory')"), "wrong",
                    "torch_npu", "does not load: ImportError: libhccl.so", "a whole CANN toolkit"),
    "driver's libraries not mounted": (raising("ImportError('libascend_hal.so: cannot open shared object file')"), "wrong",
                                       "torch_npu", "libascend_hal.so", "mount /usr/local/Ascend/driver"),
    "container without devices": (lambda stage: stage.delete("/dev/davinci0", "/dev/davinci1"), "wrong", "NPUs",
                                  "no /dev/davinci<number>", "--device=... for each NPU"),
    "container without the manager": (lambda stage: stage.delete("/dev/davinci_manager"), "wrong", "NPUs",
                                      "no /dev/davinci_manager", "for /dev/davinci_manager"),
    "NPUs taken by another container": (lambda stage: stage.program("npu-smi", NO_NPU, 1), "wrong", "NPUs", "ret is -8020",
                                        "other container"),
    "NPU not healthy": (lambda stage: stage.program("npu-smi", chips(("OK", 3338), ("Alarm", 3337))), "wrong", "NPUs",
                        "NPU 1 (910B3) is in state Alarm", "npu-smi info -t health"),
    "NPU in use": (lambda stage: stage.program("npu-smi", chips(("OK", 60000), ("OK", 3337))), "warning", "NPUs",
                   "NPU 0 has 60000 of 65536 MB in use", "other NPUs"),
    "torch_npu sees none": (lambda stage: stage.package("torch_npu", TORCH_NPU % {"count": 0}, "2.1.0.post10"), "wrong", "NPUs",
                            "torch_npu sees 0, but 2 are there", "ascend/log"),
    "NPUs unsorted": (npus("1,0"), "wrong", "NPUs", "ASCEND_RT_VISIBLE_DEVICES=1,0: not in ascending order", "ascending"),
    "NPUs empty": (npus(""), "wrong", "NPUs", "no NPU is visible", "unset it"),
    "NPUs with a space": (npus("0, 1"), "wrong", "NPUs", "up to the first character", "no spaces"),
    "NPUs that are not there": (npus("0,4"), "wrong", "NPUs", "there is no NPU 4", "from 0 to 1"),
    "plug-in of another CANN": (raising("ImportError('/a/b/libtorch_npu.so: undefined symbol: MsprofSysCycleTime')"), "wrong",
                                "torch_npu", "does not load: ImportError: libtorch_npu.so: undefined symbol", "pip install"),
    "two accelerators": (raising("RuntimeError('Two accelerators cannot be used at the same time in PyTorch: npu and cuda.')"),
                         "wrong", "torch_npu", "Two accelerators", "whl/cpu"),
    "plug-in that crashes": (raising("SystemExit(__import__('os').kill(__import__('os').getpid(), 11))"), "wrong", "torch_npu",
                             "ends Python with status -11", "torch-npu==2.1.0.post10"),
    "NumPy 2": (lambda stage: stage.package("numpy", '__version__ = "2.2.6"'), "wrong", "NumPy",
                "2.2.6, but PyTorch 2.1.0 is built for NumPy 1", 'pip install "numpy<2"'),
    "no NumPy": (lambda stage: stage.remove("numpy"), "wrong", "NumPy", "not installed", "pip install"),
    "no torchvision": (lambda stage: stage.remove("torchvision"), "wrong", "torchvision", "not installed", "torchvision==0.16.0"),
    "broken torchvision": (lambda stage: stage.package("torchvision", "raise ImportError('_C.so: undefined symbol: _ZN3c10')"),
                           "wrong", "torchvision", "undefined symbol", "torchvision==0.16.0"),
    "PyPI's apex": (apex_of_pypi, "warning", "apex", "0.9.10.dev0 is another package, PyPI's", "pip uninstall apex"),
    "another DLLogger": (lambda stage: stage.package("dllogger", ""), "wrong", "DLLogger", "no JSONStreamBackend", "NVIDIA"),
    "no such interface": (lambda stage: stage.environ.update(HCCL_SOCKET_IFNAME="ib"), "wrong", "collectives",
                          "HCCL_SOCKET_IFNAME=ib", "one of eth0"),
    "only part of its name": (lambda stage: stage.environ.update(NCCL_SOCKET_IFNAME="=eth"), "wrong", "collectives",
                              "NCCL_SOCKET_IFNAME==eth", "eth0"),
    "another machine's address": (lambda stage: stage.environ.update(HCCL_IF_IP="192.0.2.1"), "wrong", "collectives",
                                  "HCCL_IF_IP=192.0.2.1", "ip addr"),
    "time-out too short": (lambda stage: stage.environ.update(HCCL_CONNECT_TIMEOUT="60"), "wrong", "collectives",
                           "HCCL_CONNECT_TIMEOUT=60", "120 to 7200"),
    "no such queue": (lambda stage: stage.environ.update(TASK_QUEUE_ENABLE="3"), "wrong", "collectives", "TASK_QUEUE_ENABLE=3",
                      "0, 1 or 2"),
    "affinity that is not read": (lambda stage: stage.environ.update(CPU_AFFINITY_CONF="mode=1"), "wrong", "collectives",
                                  "CPU_AFFINITY_CONF=mode=1", "npu0:0-23"),
    "each operator waited for": (lambda stage: stage.environ.update(ASCEND_LAUNCH_BLOCKING="1"), "warning", "collectives",
                                 "ASCEND_LAUNCH_BLOCKING=1", "unset"),
}


@pytest.mark.parametrize("case", sorted(FAULTS))
def test_a_fault_is_one_line_of_cause_and_one_of_what_would_be_right(stage, case):
    """Each failure that people report is found, alone, and the table says what to do; only what is wrong makes status 1."""
    change, status, name, cause, right = FAULTS[case]
    change(stage)
    the_fault(stage.run("--device=npu"), status, name, cause, right)


FINE = {
    "a CANN of the release's list": cann("8.2.RC1", "V100R001C22SPC001B231", "[V100R001C15],[V100R001C18,V100R001C23]"),
    "a driver later than CANN": lambda stage: stage.file(DRIVER, DRIVER_INFO % (
        "25.5.2", "V100R001C25SPC001", "[V100R001C19,V100R001C25]", "25.5.2")),
    "no npu-smi in the container": lambda stage: stage.delete("../bin/npu-smi"),
    "an interface by its first letters": lambda stage: stage.environ.update(HCCL_SOCKET_IFNAME="ib,eth", HCCL_IF_IP="127.0.0.1"),
    "interfaces that are not to be used": lambda stage: stage.environ.update(HCCL_SOCKET_IFNAME="^docker"),
    "values that are allowed": lambda stage: stage.environ.update(
        TASK_QUEUE_ENABLE="2", HCCL_CONNECT_TIMEOUT="7200", HCCL_EXEC_TIMEOUT="0", CPU_AFFINITY_CONF="1,npu0:0-1,npu_affine:1",
        ASCEND_RT_VISIBLE_DEVICES="0,1"),
    "apex of NVIDIA without amp": lambda stage: stage.file("apex/normalization/__init__.py", root=stage.environ["PYTHONPATH"])
    and stage.file("apex/__init__.py", root=stage.environ["PYTHONPATH"]),
}


@pytest.mark.parametrize("case", sorted(FINE))
def test_what_is_allowed_is_no_fault(stage, case):
    """A later driver, a compatible CANN, a part of an interface's name: nothing is reported that works."""
    FINE[case](stage)
    done = stage.run("--device=npu")
    assert done.returncode == 0 and not faults(done), done.stdout + done.stderr


def test_a_python_without_anything(stage):
    """Without a package and without Ascend software the program runs: PyTorch alone is wrong, NPU and GPU are not there."""
    stage.no_ascend()
    for name in ("torch", "torchvision", "numpy"):
        stage.remove(name)
    done = stage.run()
    the_fault(done, "wrong", "PyTorch", "not installed", "requirements.txt")
    assert "-        NPU          no Ascend software" in done.stdout and "-        GPU          no nvidia-smi" in done.stdout


@pytest.mark.parametrize("torch, right", [("2.1.0", 'pip install "numpy<2"'), ("2.3.1", "pip install numpy"),
                                          ("2.13.0+cpu", "pip install numpy")])
def test_the_numpy_that_a_pytorch_is_built_for(torch, right):
    """PyTorch before 2.3 needs NumPy 1; 2.13 is a later one."""
    assert software._numpy({"version": torch}).right == right


def test_torch_that_cannot_be_imported_keeps_the_plugin_out(stage):
    """A broken torch is one fault: what needs it is said to wait for it, not to be broken too."""
    stage.package("torch", "raise ImportError('libcublas.so.11: cannot open shared object file')", "2.1.0")
    done = stage.run("--device=npu")
    the_fault(done, "wrong", "PyTorch", "libcublas.so.11", "torch==2.1.0")
    assert "2.1.0.post10: PyTorch first" in done.stdout


def test_npus_are_a_fault_only_where_they_are_wanted(stage):
    """Without Ascend software --device=npu fails; auto and cpu do not, and cpu does not speak of devices."""
    stage.no_ascend()
    the_fault(stage.run("--device=npu"), "wrong", "NPU", "no Ascend software", "--device=cpu")
    assert stage.run("--device=auto").returncode == 0
    cpu = stage.run("--device=cpu")
    assert cpu.returncode == 0 and "NPU" not in cpu.stdout and "GPU" not in cpu.stdout


GPU = "NVIDIA A100-SXM4-80GB, 535.104.05, %d, 81920\n"
CUDA = TORCH.replace("lambda: False)", "lambda: True)\n    device_count = staticmethod(lambda: 2)")
OLD_DRIVER = "import warnings\nwarnings.warn('The NVIDIA driver on your system is too old (found version 11040).')\n" + TORCH
GPU_FAULTS = {
    "a build without CUDA": (lambda stage: stage.gpus(GPU % 4), "PyTorch 2.1.0 is a build without CUDA", "download.pytorch.org"),
    "a driver too old": (lambda stage: stage.gpus(GPU % 4) or stage.torch("2.1.0", "12.1", OLD_DRIVER),
                         "The NVIDIA driver on your system is too old", "newer than 535.104.05"),
    "no driver": (lambda stage: stage.gpus("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", 9),
                  "NVIDIA-SMI has failed", "install the NVIDIA driver"),
    "none visible": (lambda stage: stage.gpus(GPU % 4) or stage.environ.update(CUDA_VISIBLE_DEVICES=""), "no GPU is visible",
                     "unset"),
    "one that is not there": (lambda stage: stage.gpus(GPU % 4) or stage.environ.update(CUDA_VISIBLE_DEVICES="0,3"),
                              "there is no GPU 3", "from 0 to 0"),
    "none": (lambda stage: stage.no_ascend(), "no nvidia-smi", "--gpus all"),
}


@pytest.mark.parametrize("case", sorted(GPU_FAULTS))
def test_a_gpu_that_cannot_be_used(stage, case):
    """Where a GPU is wanted each cause is one line; --device=auto only warns, since the machine trains without it as well."""
    change, cause, right = GPU_FAULTS[case]
    change(stage)
    the_fault(stage.run("--device=gpu"), "wrong", "GPU", cause, right)
    auto = stage.run()
    assert auto.returncode == 0 and [line[:7] for line, _ in faults(auto)] == ["warning"] * (case != "none"), auto.stdout


def test_gpus_that_work_and_one_in_use(stage):
    """Count, name, memory and driver are in the row; memory that another process holds is a warning."""
    stage.gpus(GPU % 4 * 2)
    stage.torch("2.1.0", "12.1", CUDA)
    done = stage.run("--device=gpu")
    assert not faults(done) and "2 of 2 visible, NVIDIA A100-SXM4-80GB, 81920 MiB, driver 535.104.05" in done.stdout, done.stdout
    stage.gpus(GPU % 4 + GPU % 60000)
    the_fault(stage.run("--device=gpu"), "warning", "GPU", "GPU 1 has 60000 of 81920 MiB in use", "other GPUs")


def test_json_has_the_rows_of_the_table(stage):
    """--json: the same rows, and the counts, for programs."""
    not_sourced(stage)
    done = stage.run("--device=npu", "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["wrong"]) == (1, 1)
    assert answer["warnings"] == sum(row["status"] == "warning" for row in answer["rows"])
    assert [row["name"] for row in answer["rows"] if row["status"] == "wrong"] == ["CANN"]
    table = [line for line in stage.run("--device=npu").stdout.splitlines()[:-1] if line.strip()[:6] != "right:"]
    assert [row["name"] for row in answer["rows"]] == [line[9:21].strip() for line in table]


@pytest.mark.parametrize("option, words", [("--device=tpu", ["--device", "npu"]), ("--data_path=/not/there", ["/not/there"]),
                                           ("--fast", ["--fast"])])
def test_wrong_usage(option, words):
    """Status 2 and one line."""
    assert_bad_input(subprocess.run([sys.executable, DOCTOR, option], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                    universal_newlines=True, env=environment()), *words)


def test_this_machine():
    """On the machine of the tests the real PyTorch, NumPy and torchvision are found and work."""
    import torch
    done = subprocess.run([sys.executable, DOCTOR, "--device=cpu", "--json"], stdout=subprocess.PIPE, universal_newlines=True,
                          env=environment(), cwd="/")
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    assert [rows[name]["status"] for name in ("Python", "PyTorch", "NumPy", "torchvision")] == ["OK"] * 4, rows
    assert rows["PyTorch"]["found"].startswith(torch.__version__)


# --- what needs no process of its own ---------------------------------------------------------------------------------

def test_a_program_that_hangs_is_left():
    """npu-smi or an import that never ends: the program goes on and says so."""
    status, text = Machine().run("sleep", "600", seconds=0.1)
    assert status == 124 and "no answer" in text
    assert Machine().run("no-such-program") == (None, "")


def rows_of(machine, name):
    return [row for row in host.rows(machine, None, ROOT) if row.name == name]


def test_shared_memory_of_a_container(tmp_path, monkeypatch):
    """Docker's 64 MiB of /dev/shm are enough for one rank, whose batches lie elsewhere, and little for the collectives of several;
    without any, not even loader processes start."""
    machine = Machine("auto", str(tmp_path))
    for number in range(8):
        (tmp_path / "dev").mkdir(exist_ok=True)
        (tmp_path / "dev" / ("davinci%d" % number)).write_text("")
    found = []
    for size in (0, 64, 1024):
        monkeypatch.setattr(machine, "space", lambda path: (size, 10 ** 6))
        found += rows_of(machine, "/dev/shm")
    assert [row.status for row in found] == ["wrong", "warning", "OK"]
    assert "semaphores" in found[0].found and "8 ranks" in found[1].found and "--shm-size=1g" in found[1].right
    alone = Machine("cpu", str(tmp_path))
    monkeypatch.setattr(alone, "space", lambda path: (64, 10 ** 6))
    assert [row.status for row in rows_of(alone, "/dev/shm")] == ["OK"]


@pytest.mark.parametrize("files, quota", [
    ({"proc/self/cgroup": "0::/pod/task\n", "sys/fs/cgroup/pod/cpu.max": "150000 100000\n",
      "sys/fs/cgroup/pod/task/cpu.max": "400000 100000\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 1.5),
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "800000 100000\n"}, 8),
    ({"proc/self/cgroup": "5:memory:/x\n4:cpu,cpuacct:/docker/abc\n", "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
      "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 0.5),
    ({"proc/self/cgroup": "4:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
      "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, None),
    ({}, None)])
def test_cpu_quota(tmp_path, files, quota):
    """The smallest quota of the process's cgroup and of those above it, in version 2 and version 1; none where there is none."""
    for path, text in files.items():
        os.makedirs(str((tmp_path / path).parent), exist_ok=True)
        (tmp_path / path).write_text(text)
    machine = Machine(root=str(tmp_path))
    assert host.cpu_quota(machine) == quota
    if quota == 0.5:
        row, = rows_of(machine, "CPUs")
        assert row.status == "warning" and row.found.startswith("0.5 of ") and "--cpus" in row.right


def test_limits_of_the_shell(tmp_path, monkeypatch):
    """Few open files and processes are warnings, locked memory only beside InfiniBand; unlimited is fine."""
    (tmp_path / "dev" / "infiniband").mkdir(parents=True)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 1024))
    machine = Machine(root=str(tmp_path))
    assert [row.found.split(":")[0] for row in rows_of(machine, "limits")] == ["open files 1024", "processes 1024"]
    (tmp_path / "dev" / "infiniband" / "uverbs0").write_text("")
    assert rows_of(machine, "limits")[-1].found.startswith("locked memory 1 KiB")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    row, = rows_of(machine, "limits")
    assert row.status == "OK" and "open files without limit" in row.found


def test_room_for_the_output(tmp_path, monkeypatch):
    """The file system of the output path is looked at, also where the folder is not there yet."""
    machine, asked = Machine(), []
    monkeypatch.setattr(machine, "space", lambda path: asked.append(path) or (10 ** 6, 500))
    row, = [row for row in host.rows(machine, None, str(tmp_path / "not" / "yet")) if row.name == "output"]
    assert row.status == "warning" and "500 MiB free" in row.found and str(tmp_path) in asked


def input_error(*_):
    raise OSError(errno.EIO, "Input/output error")


def test_speed_of_the_data(tmp_path, monkeypatch):
    """MB/s and files/s of what is there; an empty folder is wrong; a slow one is a warning."""
    def row():
        return [row for row in host.rows(Machine("cpu"), str(tmp_path), ROOT) if row.name == "data path"][0]
    assert row().status == "wrong"
    (tmp_path / "n01").mkdir()
    (tmp_path / "n01" / "a.JPEG").write_bytes(b"x" * 4000000)
    (tmp_path / "n01" / "0.JPEG").symlink_to("nowhere")  # defect: a traceback
    os.mkfifo(str(tmp_path / "n01" / "1.JPEG"))  # defect: waited for
    assert row().status == "OK" and "files/s" in row().found
    with monkeypatch.context() as broken:
        broken.setattr(host.os, "posix_fadvise", input_error)
        assert row().status == "wrong" and "cannot be read: Input/output error" in row().found
    clock = iter(range(100))
    monkeypatch.setattr(host.time, "time", lambda: float(next(clock)))  # each look at the clock is a second later
    assert row().status == "warning" and "local disk" in row().right


def test_the_python_of_a_plugin():
    """Where torch_npu is not installed, the one for this PyTorch and CANN is named; where none is published for this Python, the
    Python, not a package that pip cannot find."""
    machine = Machine("npu", "/not/there")
    machine.probe = {"torch": {"version": "2.1.0"}, "torch_npu": {}}.get
    rows = []
    for machine.python in ("3.10", "3.12"):
        rows.append(ascend._plugin(machine, {"version": "8.0.0"}, True))
    assert [row.status for row in rows] == ["wrong", "wrong"]
    assert (rows[0].found, rows[0].right) == ("not installed", "pip install torch-npu==2.1.0.post10")
    assert "Python 3.12" in rows[1].found and rows[1].right == "Python 3.8 or 3.9 or 3.10 or 3.11"


def test_npu_smi_of_the_first_910_and_of_310():
    """Both tables that npu-smi prints: with a column of device numbers, and with only one pair of memory sizes."""
    text = """| 24      310P3                 | OK              | NA           29                0     / 0             |
| 0       0                     | 0000:04:00.0    | 0            1832 / 21527                            |
| 1     910B               | Warning       | 66.2        36                15   / 15            |
| 0       1                | 0000:81:00.0  | 0           1171 / 15137      1    / 32768         |
"""
    assert ascend.CHIP.findall(text) == [("310P3", "OK", "1832", "21527"), ("910B", "Warning", "1", "32768")]


def test_the_table_of_versions():
    """Each line has its fields, each plug-in names its PyTorch, and each PyTorch from 1.11 on has its Pythons."""
    rows = [compatibility.Plugin(*words) for words in compatibility.table("plugin")]
    assert len(rows) > 60 and all(compatibility.base(row.version) == row.torch and compatibility.order(row.cann) for row in rows)
    assert {row.torch for row in rows} - {words[0] for words in compatibility.table("python")} == {"2.0.1", "1.8.1", "1.5.0"}
    assert all(compatibility.order(own) for _, own, _ in compatibility.table("driver"))
    with open(compatibility.PATH) as stream:
        assert "https://" in stream.read()


@pytest.mark.parametrize("plugin, cann_version, own", [
    ("2.1.0.post10", "8.0.0", []), ("2.1.0.post10", "8.0.0.beta1", []), ("2.1.0.post10+gitabc", "8.0.0", []),
    ("2.1.0.post10", "8.3.RC1", []), ("2.1.0.post10", "8.0.RC1", ["8.0.0"]), ("2.8.0", "8.3.RC2", []),
    ("2.9.0", "8.5.1", []), ("2.9.0", "9.0.0", ["8.5.0"]), ("2.10.0", "9.0.0", []), ("2.1.0rc1", "8.0.0", ["7.0.RC1"]),
    ("2.1.0", "7.0.RC1", ["7.0.0"]), ("2.99.0", "8.0.0", []), ("2.1.0.post10", "", ["8.0.0"])])
def test_which_cann_a_plugin_runs_on(plugin, cann_version, own):
    """Its own, later ones of the same name, those of its release; a plug-in that is not in the table is not judged."""
    assert compatibility.own_cann(plugin, cann_version) == own


def test_lists_of_inner_versions():
    """Single versions and ranges, as CANN 8.0.0 and 8.0.RC3 write them."""
    assert compatibility.lists("[V100R001C13,V100R001C19],[V100R001C30]", "V100R001C18SPC001B233")
    assert compatibility.lists("[V100R001C15],[V100R001C18]", "V100R001C18B220")
    assert not compatibility.lists("[V100R001C15],[V100R001C18]", "V100R001C17")
    assert not compatibility.lists("", "V100R001C17") and not compatibility.lists("[V100R001C15]", "")


def test_messages_are_shortened():
    """One line, without folders, however long the library's message is."""
    text = "ImportError: /usr/lib/python3/torch_npu/lib/libtorch_npu.so: undefined symbol: " + "x" * 200 + "\nmore"
    assert brief(text).startswith("ImportError: libtorch_npu.so: undefined symbol: x") and len(brief(text)) == 74
    assert brief("see https://a.b/c/d") == "see https://a.b/c/d" and brief("") == ""

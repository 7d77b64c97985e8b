"""Python, PyTorch with NumPy, torchvision, apex, DLLogger."""
import platform
import re
import sys

from doctor_checks.compatibility import base
from doctor_checks.machine import ABSENT, OK, WARNING, WRONG, Row, brief

REMEDIES = (  # what would be right for errors of an import that people often report
    ("libascend_hal.so", "the driver's libraries: in a container mount /usr/local/Ascend/driver (docker run -v)"),
    ("libhccl.so", "a whole CANN toolkit, whose set_env.sh is sourced"),
    ("Two accelerators", "PyTorch without CUDA: pip install torch of https://download.pytorch.org/whl/cpu"),
    ("static TLS block", "export LD_PRELOAD=(the path of the library that the message names)"),
    ("No module named 'yaml'", "pip install pyyaml"),
    ("no answer within", "npu-smi info or nvidia-smi must answer; where that hangs too, restart the machine"))


def rows(machine):
    """Yield a row for each."""
    yield Row(OK, "Python", "%s, %s" % (platform.python_version(), sys.executable))
    torch = machine.probe("torch")
    yield _pytorch(torch)
    if torch and "error" not in torch:
        yield _numpy(torch)
        yield _torchvision(machine.probe("torchvision"), base(torch["version"]) or "2.1.0")
    yield _apex(machine.probe("apex"))
    yield _dllogger(machine.probe("dllogger"))


def remedy(error, otherwise):
    """Return what would be right for an import that fails with this error."""
    return next((right for text, right in REMEDIES if text in error), otherwise)


def _pytorch(facts):
    if not facts:
        return Row(WRONG, "PyTorch", "not installed for this Python",
                   "pip install -r <Model>/2.x_requirements.txt, or the Python that has it (conda activate)")
    if "error" in facts:
        return Row(WRONG, "PyTorch", "%s cannot be imported: %s" % (facts["version"], brief(facts["error"])),
                   remedy(facts["error"], "pip install --force-reinstall torch==" + facts["version"]))
    return Row(OK, "PyTorch", "%s, %s" % (facts["version"], "CUDA " + facts["cuda"] if facts["cuda"] else "without CUDA"))


def _numpy(torch):
    version, error = torch.get("numpy"), torch.get("numpy_error")
    if version is None:
        return Row(WRONG, "NumPy", "not installed", 'pip install "numpy<2"' if _release(torch) < [2, 3] else "pip install numpy")
    if error and version.startswith("2."):  # PyTorch before 2.3 is built for NumPy 1
        return Row(WRONG, "NumPy", "%s, but PyTorch %s is built for NumPy 1" % (version, torch["version"]),
                   'pip install "numpy<2"')
    if error:
        return Row(WRONG, "NumPy", "%s, but PyTorch says: %s" % (version, brief(error)), "pip install --force-reinstall numpy")
    return Row(OK, "NumPy", version)


def _release(facts):
    return [int(number) for number in re.findall(r"\d+", facts["version"])[:2]]


def _torchvision(facts, torch):
    # 0.16.0 belongs to PyTorch 2.1.0, 0.9.1 to 1.8.1; 0.2.2 is what Ascend's 1.5.0 is used with.
    major, minor, patch = torch.split(".")
    fitting = "0.2.2.post3" if torch == "1.5.0" else "0.%d.%s" % (int(minor) + (15 if major == "2" else 1), patch)
    right = "pip install --no-deps torchvision==" + fitting
    if not facts:
        return Row(WRONG, "torchvision", "not installed", right)
    if "error" in facts:
        return Row(WRONG, "torchvision", "%s cannot be imported: %s" % (facts["version"], brief(facts["error"])), right)
    return Row(OK, "torchvision", facts["version"])


def _apex(facts):
    if facts.get("amp"):
        return Row(OK, "apex", facts["version"] + ", used for O1 and O2")
    if not facts or {"normalization", "amp"} & set(facts.get("parts", ())) == {"normalization"}:  # NVIDIA's has no amp any more
        return Row(ABSENT, "apex", "%s: PyTorch's own mixed precision is used" % ("without amp" if facts else "not installed"))
    if "amp" in facts.get("parts", ()):
        return Row(WARNING, "apex", "cannot be imported: " + brief(facts.get("error", "no amp.initialize")),
                   "build it for this PyTorch, or pip uninstall apex: PyTorch's own mixed precision is used then")
    return Row(WARNING, "apex", "%s is another package, PyPI's, of the same name" % facts["version"],
               "pip uninstall apex; then none, or github.com/NVIDIA/apex or gitee.com/ascend/apex")


def _dllogger(facts):
    if facts and not facts.get("backend"):
        return Row(WRONG, "DLLogger", "no JSONStreamBackend: " + brief(facts.get("error", "another package of the same name")),
                   "pip uninstall dllogger; then none, or NVIDIA's (github.com/NVIDIA/dllogger)")
    return Row(OK, "DLLogger", facts["version"]) if facts else Row(ABSENT, "DLLogger", "not installed: the records are the same")

"""For tests that use the simulated NPU: where its launcher is, and whether this machine can run it."""

import importlib.util
import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
RUN = os.path.join(HERE, "run")
EAGER = os.path.join(os.path.dirname(HERE), "eager")  # on the PYTHONPATH: no compiler that is not used, half of the time of a process


def compiler_command():
    """The C++ compiler as a list of arguments: $CXX, which may hold options, or g++."""
    return (os.environ.get("CXX") or "g++").split()


def skip_reason():
    """None where the simulated NPU can run, else one line that says what is missing. Imports neither torch nor torch_npu."""
    try:
        from importlib.metadata import PackageNotFoundError, version  # Python 3.8
    except ImportError:
        return "the simulated NPU needs Python 3.10"
    try:
        torch_version = version("torch")
    except PackageNotFoundError:
        return "the simulated NPU needs PyTorch"
    if tuple(int(part) for part in torch_version.split(".")[:2]) < (2, 8):
        return "the simulated NPU needs PyTorch 2.8 or newer, not %s" % torch_version
    torch_directory = os.path.dirname(importlib.util.find_spec("torch").origin)
    if os.path.exists(os.path.join(torch_directory, "lib", "libtorch_cuda.so")):
        return "the simulated NPU needs a CPU build of PyTorch, as torch_npu does"
    if shutil.which(compiler_command()[0]) is None:
        return "the simulated NPU needs a C++ compiler: %s is not there" % compiler_command()[0]
    return None


def launch(*arguments, timeout=600, python=sys.executable, **environment):
    """Run `python *arguments` on simulated NPUs, with more environment variables; return the finished process, output as text."""
    command = [RUN, python] + [str(argument) for argument in arguments]
    env = dict(os.environ, **dict({"OMP_NUM_THREADS": "1", "NPU_SIM_REQUIRE": "0", "PYTHONPATH": EAGER}, **environment))
    return subprocess.run(command, env=env, timeout=timeout, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True)

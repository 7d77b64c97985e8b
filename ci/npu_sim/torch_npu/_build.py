"""Builds the C++ half of the simulated NPU on first use, and loads it.

The result is kept outside the sources, in a directory whose name holds the PyTorch version, the Python ABI tag and a
hash of the sources and the compiler's flags. One process builds, others that need it meanwhile wait for it.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile

import torch

_SOURCES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "csrc")
_PREBUILT = os.path.join(os.path.dirname(_SOURCES), "built")  # in a wheel for one PyTorch (../setup.py)
# Compiled as one file: reading PyTorch's headers costs more than the code itself.
_FILES = ("runtime.cpp", "clock.cpp", "report.cpp", "faults.cpp", "fallback.cpp", "half.cpp", "kernels.cpp", "autocast.cpp",
          "hccl.cpp", "module.cpp")
_LIBRARIES = ("c10", "torch_cpu", "torch", "torch_python")


def load():
    """Imports torch_npu._C, building it first where needed. Raises ImportError with the reason where it cannot."""
    if _torch_version() < (2, 8):
        raise ImportError(f"the simulated NPU needs PyTorch 2.8 or newer, not {torch.__version__}")
    if torch.version.cuda or torch.version.hip:  # the real package refuses two accelerators in one process, too
        raise ImportError("the simulated NPU needs a CPU build of PyTorch, as torch_npu does")
    path = _built_library()
    spec = importlib.util.spec_from_file_location("torch_npu._C", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["torch_npu._C"] = module
    return module


def cache_root():
    """NPU_SIM_CACHE, else npu_sim in the user's cache directory."""
    chosen = os.environ.get("NPU_SIM_CACHE")
    if chosen:
        return os.path.abspath(chosen)
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "npu_sim")


def _torch_version():
    return tuple(int(part) for part in torch.__version__.split(".")[:2])


def _compiler():
    return shlex.split(os.environ.get("CXX") or "g++")


def _flags():
    standard = "c++20" if _torch_version() >= (2, 12) else "c++17"
    return ["-O1", "-fPIC", f"-std={standard}", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
            "-DTORCH_EXTENSION_NAME=_C", "-DTORCH_API_INCLUDE_EXTENSION_H", *_pybind_flags()]


def _pybind_flags():
    """What makes PyTorch's classes known to pybind11 here, where PyTorch was built with another compiler (before 2.9)."""
    values = {name: getattr(torch._C, f"_PYBIND11_{name}", None) for name in ("COMPILER_TYPE", "STDLIB", "BUILD_ABI")}
    return [f'-DPYBIND11_{name}="{value}"' for name, value in values.items() if value is not None]


def _include_flags():
    from torch.utils import cpp_extension  # slow to import, and only needed to build

    paths = [*cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    return [f"-I{_SOURCES}"] + [f"-isystem{path}" for path in paths]


def _key():
    digest = hashlib.sha256(repr(_compiler() + _flags()).encode())
    for name in sorted(os.listdir(_SOURCES)):
        with open(os.path.join(_SOURCES, name), "rb") as source:
            digest.update(name.encode() + b"\0" + source.read())
    return f"torch-{torch.__version__}-{sysconfig.get_config_var('SOABI')}-{digest.hexdigest()[:16]}"


def _built_library():
    prebuilt, directory = os.path.join(_PREBUILT, _key(), "_C.so"), os.path.join(cache_root(), _key())
    library = os.path.join(directory, "_C.so")
    if os.path.exists(prebuilt) or os.path.exists(library):
        return prebuilt if os.path.exists(prebuilt) else library
    if shutil.which(_compiler()[0]) is None:
        raise ImportError(f"the simulated NPU needs a C++ compiler to build itself once: {_compiler()[0]} is not there "
                          "(CXX names another)")
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise ImportError(f"the simulated NPU cannot write to its cache, {directory} ({error}); NPU_SIM_CACHE names "
                          "another place") from error
    with _lock(os.path.join(directory, "lock")):
        if not os.path.exists(library):
            _build(directory, library)
    return library


@contextlib.contextmanager
def _lock(path):
    with open(path, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # released when the file is closed, also by a crash
        yield


def _build(directory, library):
    print(f"npu_sim: building for PyTorch {torch.__version__} (once, about half a minute) in {directory}",
          file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=directory) as work:
        unit, linked = os.path.join(work, "all.cpp"), os.path.join(work, "_C.so")
        with open(unit, "w") as handle:
            handle.writelines(f'#include "{name}"\n' for name in _FILES)
        libraries = "-L" + os.path.join(os.path.dirname(torch.__file__), "lib")
        _check([*_compiler(), *_flags(), *_include_flags(), "-shared", unit, libraries, *(f"-l{name}" for name in _LIBRARIES),
                "-o", linked])
        os.replace(linked, library)


def _check(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise ImportError(f"the simulated NPU could not be built: {shlex.join(command)}\n{done.stdout[-4000:]}")

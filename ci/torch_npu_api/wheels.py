"""Fetches the wheels of the real torch_npu: as files, which are read and never installed."""

import glob
import os
import subprocess
import sys

# An old and a new one. Each is published for several platforms; the Python sources are the same.
VERSIONS = {
    "2.1.0": ["--python-version", "3.10", "--platform", "manylinux2014_aarch64"],
    "2.13.0": ["--python-version", "3.11", "--platform", "manylinux_2_28_x86_64"],
}


def cache_directory():
    root = os.environ.get("NPU_SIM_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "npu_sim")
    return os.path.join(root, "wheels")


def fetch(version):
    """The path of a version's wheel, downloaded unless it is in the cache. Raises OSError with pip's words where that fails."""
    directory = cache_directory()
    pattern = os.path.join(directory, "torch_npu-%s-*.whl" % version)
    if not glob.glob(pattern):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", directory]
        done = subprocess.run(command + VERSIONS[version] + ["torch_npu==" + version], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=300)
        if done.returncode != 0 or not glob.glob(pattern):
            raise OSError("pip could not download torch_npu %s: %s" % (version, done.stdout.decode()[-500:]))
    return glob.glob(pattern)[0]

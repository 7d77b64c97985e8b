"""Makes the wheel, outside the sources. NPU_SIM_COMPILE=1: with the compiled half, for the PyTorch that is installed."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).absolute().parent
VERSION = "1.0"
COMPILED = os.environ.get("NPU_SIM_COMPILE", "0") not in ("", "0")


class BuildPy(build_py):
    """Adds what does not lie in this folder: the list of the real package's names, and the compiled half."""

    def find_package_modules(self, package, package_dir):
        return [module for module in super().find_package_modules(package, package_dir) if module[1] != "setup"]

    def run(self):
        super().run()
        package = pathlib.Path(self.build_lib, "npu_sim", "torch_npu").absolute()
        shutil.copy(HERE.parent / "torch_npu_api" / "names-2.13.0.json", package)
        if COMPILED:
            built = package / "built"
            subprocess.run([HERE / "run", "--no-require-npu", sys.executable, "-c", "import torch_npu"], check=True,
                           env=dict(os.environ, NPU_SIM_CACHE=str(built)))
            for lock in built.glob("*/lock"):
                lock.unlink()


class BinaryDistribution(Distribution):
    """A wheel for one platform and one Python."""

    def has_ext_modules(self):
        return True


def torch_version():
    from torch import __version__

    return __version__.split("+")[0]


work = tempfile.mkdtemp(prefix="npu_sim_")
try:
    setup(version=f"{VERSION}+torch{torch_version()}" if COMPILED else VERSION,
          install_requires=[f"torch=={torch_version()}"] if COMPILED else [],
          distclass=BinaryDistribution if COMPILED else Distribution,
          cmdclass={"build_py": BuildPy},
          options={"build": {"build_base": work}, "egg_info": {"egg_base": work}})
finally:
    shutil.rmtree(work)

"""The version of the simulated torch_npu: that of the PyTorch that runs, for importlib.metadata as well.

The distribution beside this package is what importlib.metadata finds before torch_npu is imported, and what makes
`import torch` import it; its version is fixed.
"""

import importlib.metadata
import pathlib
import re
import sys

from npu_sim_run import real_torch_npu  # beside this package


class _Distribution(importlib.metadata.PathDistribution):
    """The distribution beside this package, with another version."""

    def __init__(self, path, version):
        super().__init__(path)
        self._version = version

    def read_text(self, filename):
        text = super().read_text(filename)
        return re.sub(r"(?m)^Version: .*", "Version: " + self._version, text) if filename == "METADATA" else text


class _Finder(importlib.metadata.DistributionFinder):
    def __init__(self, version):
        (path,) = pathlib.Path(__file__).absolute().parents[1].glob("torch_npu-*.dist-info")
        self._found = _Distribution(path, version)

    def find_spec(self, *_):
        return None

    def find_distributions(self, context=importlib.metadata.DistributionFinder.Context()):
        asked = context.name is None or re.sub("[-_.]+", "_", context.name).lower() == "torch_npu"
        return [self._found] if asked else []


def refuse_a_real_one():
    """Raises ImportError where a real torch_npu is installed, too: what a test says must be clear."""
    real = real_torch_npu()
    if real:
        raise ImportError(real)


def install(version):
    """Makes `version` what importlib.metadata tells of torch_npu."""
    sys.meta_path.insert(0, _Finder(version))

"""A simulated torch_npu: the device "npu" over host memory and the backend "hccl" over gloo, for tests.

What it offers and what it does not: ../README.md.
"""

import os

# A real torch_npu does the same: importing torch must not load the plug-in a second time.
_autoload_setting = os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD")
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
import torch
import torch.distributed  # the extension's hccl class derives from one of torch.distributed's


def _autoload():
    """What `import torch` calls by the entry point in ../torch_npu-*.dist-info, when it has imported this module."""
    if _autoload_setting is None:
        os.environ.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)
    else:
        os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = _autoload_setting


_autoload()  # child processes inherit the setting

from torch_npu import _build, _metadata, _settings

__version__ = torch.__version__.split("+")[0] + "+sim"
_metadata.refuse_a_real_one()
_metadata.install(__version__)
_C = _build.load()
_C._sim_configure(_settings.device_count(), _settings.memory_bytes(), _settings.strict())
torch.utils.rename_privateuse1_backend("npu")

from torch_npu import npu
from torch_npu import contrib, distributed, optim, profiler
from torch_npu import _names, _registration, _tensor_types, _torchvision
from torch_npu._formats import Format, get_npu_format, npu_format_cast, npu_format_cast_
from torch_npu._fused_attention import npu_fusion_attention
from torch_npu._overflow import npu_alloc_float_status, npu_clear_float_status, npu_get_float_status

_registration.register(npu)
_tensor_types.install(npu)
_names.install()
_torchvision.declare_operators()

if _settings.strict() != "allow":
    from torch_npu import _strict

    _strict.install()

__getattr__ = _names.getter(__name__)

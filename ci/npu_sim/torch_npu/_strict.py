"""Strict mode: CUDA calls that would silently do nothing on an NPU host raise, or warn, where a training script makes them.

On a host without CUDA, `if torch.cuda.is_available():` quietly skips what it guards, torch.cuda.manual_seed_all seeds
nothing and torch.cuda.max_memory_allocated() is 0. Calls from PyTorch itself, the standard library, installed packages
and the directories of NPU_SIM_LIBRARIES pass: they ask in order to adapt. So do all calls where no NPU is visible, and
what an `if` asks that only guards settings of CUDA's libraries.
"""

import ast
import functools
import linecache
import os
import sys
import sysconfig
import warnings

import torch
import torch.utils.data

from torch_npu import _C, _settings

_SILENT = (
    "device_count", "empty_cache", "get_rng_state_all", "is_available", "is_bf16_supported", "is_initialized",
    "manual_seed", "manual_seed_all", "max_memory_allocated", "max_memory_cached", "max_memory_reserved",
    "memory_allocated", "memory_cached", "memory_reserved", "memory_stats", "seed", "seed_all", "set_rng_state_all",
    "set_stream", "stream",
)
_TORCH = os.path.dirname(torch.__file__) + os.sep
_LIBRARIES = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_SETTINGS = ("torch.backends.", "torch.set_float32_matmul_precision")  # TF32, cuDNN: nothing is lost where they are not set


def install():
    for name in _SILENT:
        if hasattr(torch.cuda, name):
            setattr(torch.cuda, name, _guarded(getattr(torch.cuda, name), f"torch.cuda.{name}()"))
    torch.cuda.device.__init__ = _guarded(torch.cuda.device.__init__, "torch.cuda.device()")
    autocast, scaler = torch.amp.autocast_mode.autocast, torch.amp.GradScaler
    autocast.__init__ = _guarded_amp(autocast.__init__, "autocast", None)
    scaler.__init__ = _guarded_amp(scaler.__init__, "GradScaler", "cuda")
    loader = torch.utils.data.DataLoader
    loader.__init__ = _guarded_loader(loader.__init__)


def _guarded(function, name):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        _refuse_for(sys._getframe(1), f"{name} does nothing, or answers for CUDA, on an NPU host; ask torch.npu")
        return function(*args, **kwargs)

    return wrapper


def _guarded_amp(init, name, default_device):
    @functools.wraps(init)
    def wrapper(self, *args, **kwargs):
        device = kwargs.get("device_type", kwargs.get("device", args[0] if args else default_device))
        if str(device).startswith("cuda") and kwargs.get("enabled", True):
            _refuse_for(_outside_torch(sys._getframe(1)), f"{name}('cuda') has no effect on an NPU; use torch.amp's "
                        f"{name}('npu') or torch.npu.amp.{name}()")
        init(self, *args, **kwargs)

    return wrapper


def _guarded_loader(init):
    @functools.wraps(init)
    def wrapper(self, *args, **kwargs):
        if str(kwargs.get("pin_memory_device", "")).startswith("cuda"):
            _refuse_for(_outside_torch(sys._getframe(1)), "pin_memory_device='cuda' pins for CUDA; leave it out, or say 'npu'")
        init(self, *args, **kwargs)

    return wrapper


def _outside_torch(frame):
    """The nearest frame that is neither PyTorch's nor the wrapper that typing_extensions puts around deprecated names."""
    while frame.f_back and (frame.f_code.co_filename.startswith(_TORCH)
                            or os.path.basename(frame.f_code.co_filename) == "typing_extensions.py"):
        frame = frame.f_back
    return frame


def _refuse_for(frame, message):
    if "torch_npu.contrib.transfer_to_npu" in sys.modules:
        return  # CUDA's names mean the NPU
    path, line = frame.f_code.co_filename, frame.f_lineno
    theirs = (_TORCH, "<frozen", *_LIBRARIES, *_settings.libraries())
    known = path.startswith(theirs) or os.path.abspath(path).startswith(theirs)
    if known or _C._npu_getDeviceCount() == 0 or _harmless(path, line):
        return
    message = f"{message} (npu_sim, strict; called at {path}:{line}; NPU_SIM_STRICT=warn or allow lets it pass)"
    if _settings.strict() == "error":
        raise RuntimeError(message)
    warnings.warn_explicit(message, UserWarning, path, line)


@functools.lru_cache(maxsize=None)
def _harmless(path, line):
    """Whether what is called in this line is the condition of an `if` that only guards settings of CUDA's libraries."""
    try:
        tree = ast.parse("".join(linecache.getlines(path)))
    except SyntaxError:
        return False
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and node.test.lineno <= line <= node.test.end_lineno]
    return any(all(map(_is_setting, guard.body + guard.orelse)) for guard in guards)


def _is_setting(statement):
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        return ast.unparse(statement.value.func).startswith(_SETTINGS)
    return isinstance(statement, ast.Assign) and all(ast.unparse(target).startswith(_SETTINGS) for target in statement.targets)

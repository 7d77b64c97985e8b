"""npu, cuda and cpu behind one small vocabulary.

`kind` is what a user types: npu, gpu (or cuda), cpu, auto. A torch.device is what the code carries.
"""
import glob
import os
import random
import re
import sys
import time

import numpy as np
import torch

from common.cli import UserError

KINDS = ("auto", "npu", "gpu", "cuda", "cpu")
BACKENDS = {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}  # the collective library of each device type

# What the Ascend software reads from the environment, where the user has not said otherwise.
_NPU_ENVIRONMENT = {
    "TASK_QUEUE_ENABLE": "2",  # Python runs ahead of the device, and workspaces are allocated off its way too
    "HCCL_CONNECT_TIMEOUT": "1800",  # seconds: as long as a process group waits for a rank that is late
    "HCCL_WHITELIST_DISABLE": "1",  # no list of the addresses of all machines is needed
}
_FIRST_910 = re.compile("Ascend910(PremiumA|ProA|ProB|A|B)?$")  # the names of those that saturate where others have infinity
_import_errors = []  # what `import torch_npu` has raised


def resolve(kind):
    """Return the torch device type for a user's `kind`; auto: npu, else cuda, else cpu, and a line on stderr where an NPU is there but
    cannot be used.

    Raises UserError where that kind of device is not there.
    """
    wanted = {"gpu": "cuda"}.get(kind, kind)
    if wanted == "auto":
        wanted = next(kind for kind in ("npu", "cuda", "cpu") if count(kind) > 0)
        if wanted != "npu" and npu_problem():
            sys.stderr.write("--device auto takes %s: %s\n" % (wanted, npu_problem()))
    if wanted not in BACKENDS:
        raise UserError("--device %s: choose one of %s" % (kind, ", ".join(KINDS)))
    if count(wanted) == 0:
        why = wanted == "npu" and npu_problem() or "no such device on this machine"
        raise UserError("--device %s: %s; --device cpu runs everywhere" % (kind, why))
    return wanted


def npu_problem():
    """Return in a line why an NPU that seems to be there cannot be used, or why fewer are seen than there are; '' where there is
    nothing to say."""
    visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    numbers = re.findall("[0-9]+", visible or "")
    missing = [error for error in _import_errors if isinstance(error, ImportError) and error.name == "torch_npu"]
    if _import_errors and not missing:
        return "torch_npu cannot be imported: " + (str(_import_errors[0]).strip() or repr(_import_errors[0])).splitlines()[0]
    if visible is not None and (not numbers or numbers != sorted(set(numbers), key=int)):
        return "ASCEND_RT_VISIBLE_DEVICES=%s: name the devices in ascending order, as in 0,1,2" % visible
    if not glob.glob("/dev/davinci[0-9]*") or count("npu") > 0:
        return ""
    if missing:
        return "this machine has NPUs, but this Python has no torch_npu"
    return "torch_npu finds none of this machine's NPUs; `npu-smi info` and tools/doctor.py say more"


def pick(kind, index=0):
    """Return the torch.device number `index` of that kind and make it current. Raises UserError where it is absent."""
    device_type = resolve(kind)
    require(device_type, [index])
    device = torch.device(device_type, index) if device_type != "cpu" else torch.device("cpu")
    set_current(device)
    return device


def asker(device):
    """Return f(): whether the device does within seconds what it is given on a stream of its own. One that hangs does nothing; one that
    waits for other ranks does. Raises RuntimeError."""
    api, number = getattr(torch, device.type), torch.zeros(1, device=device)
    stream = api.Stream(device=device)

    def does_other_work():
        with api.stream(stream):
            number.add_(1)
            event = stream.record_event()
        for _ in range(20):
            if event.query():
                return True
            time.sleep(0.1)
        return False

    return does_other_work


def require(device_type, indices):
    """Raise UserError unless every device of `indices` exists. A CPU takes any number of ranks."""
    available = count(device_type)
    if device_type != "cpu" and max(indices) >= available:
        why = device_type == "npu" and npu_problem() or "name those to use with --device_list (or --device_id for one)"
        raise UserError("device %d was asked for, but this machine has %d %s device(s); %s" % (max(indices), available, device_type, why))


def count(device_type):
    """Return how many devices of a torch device type are there (cpu: 1)."""
    if device_type == "cpu":
        return 1
    api = _api(device_type)
    return api.device_count() if api is not None and api.is_available() else 0


def are_chosen(device_type):
    """Return whether the environment says which devices this process may see."""
    return {"npu": "ASCEND_RT_VISIBLE_DEVICES", "cuda": "CUDA_VISIBLE_DEVICES"}.get(device_type) in os.environ


def _api(device_type):
    """Return torch.npu or torch.cuda, or None where it is not installed, or broken."""
    if device_type == "npu" and (_import_errors or not hasattr(torch, "npu")):  # PyTorch 1.5's Ascend build has torch.npu built in
        try:
            import torch_npu  # noqa: F401  (registers torch.npu)
        except Exception as error:  # RuntimeError or OSError where CANN is not what it needs
            _import_errors[:] = [error]
            return None
        _import_errors.clear()
    return getattr(torch, device_type, None)


# --- how a device computes --------------------------------------------------------------------------------------------

def set_current(device):
    """Make `device` current, before there is a tensor on it, and set the options that its speed depends on."""
    if device.type == "npu":
        for name, value in _NPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)  # read when the device starts
    if device.type != "cpu":
        _api(device.type).set_device(device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # shapes are fixed, so the search pays
    if device.type == "npu":
        _set_npu_modes(_api("npu"), device)


def _set_npu_modes(api, device):
    # Use the precompiled operators: compiling each shape on line, the first 910's default, makes the first steps take minutes.
    if hasattr(api, "set_compile_mode"):
        api.set_compile_mode(jit_compile=False)
    # What the first 910 gains from, and the later 910B1 to 910B4 (A2) and 910_93.. (A3) do not: chains of copies in one operator.
    if _FIRST_910.match(api.get_device_name(device.index) if hasattr(api, "get_device_name") else "Ascend910"):
        os.environ.setdefault("COMBINED_ENABLE", "1")


def npu_modes(device, graph_mode=False, private_formats=None):
    """Set what a user may choose on an NPU: graph mode, and whether tensors take the device's private formats (None: the plug-in's
    default, which is right for each generation). Does nothing on other devices, and leaves out what a plug-in does not have."""
    if device.type != "npu":
        return
    api = _api("npu")
    if private_formats is not None and hasattr(api, "config"):  # its allow_internal_format can be set, not read
        api.config.allow_internal_format = private_formats
    if graph_mode and hasattr(api, "enable_graph_mode"):
        api.enable_graph_mode()


def memory_format(device):
    """Return the layout of weights and images that is fast on a device: channels last (NHWC) for the tensor cores of a GPU and for a
    CPU's oneDNN, into which batches of pictures come anyway. An NPU refuses it, and CPUs before PyTorch 2 copy to NCHW and back."""
    if device.type == "npu" or (device.type == "cpu" and not hasattr(torch, "compile")):
        return torch.contiguous_format
    return torch.channels_last


def set_arithmetic(device, deterministic=False, allow_tf32=False):
    """Choose, before the first operator, between what is exact and what is fast.

    `deterministic`: only algorithms that give the same bits at each call; an operator that has none is a RuntimeError. `allow_tf32`:
    float32 convolutions and matrix products may round their inputs to TF32 (cuda) or HF32 (npu), to 10 or 11 bits.
    """
    if device.type == "cuda" and hasattr(torch.backends.cuda, "matmul"):  # PyTorch before 1.7 knows no TF32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    if device.type == "npu" and hasattr(_api("npu"), "conv") and hasattr(_api("npu"), "matmul"):
        _api("npu").conv.allow_hf32 = _api("npu").matmul.allow_hf32 = allow_tf32
    if deterministic:
        _forbid_varying_algorithms()


def _forbid_varying_algorithms():
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS may add in another order
    os.environ.setdefault("HCCL_DETERMINISTIC", "true")
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    if hasattr(torch, "use_deterministic_algorithms"):  # PyTorch 1.5 has cuDNN's flags alone
        torch.use_deterministic_algorithms(True)


# --- random numbers, time, memory -------------------------------------------------------------------------------------

def seed(value, device):
    """Seed Python, NumPy and PyTorch (CPU and device)."""
    random.seed(value)
    np.random.seed(value % 2 ** 32)
    torch.manual_seed(value)
    if device.type == "npu":  # torch.manual_seed reaches CUDA by itself, the NPU only in newer plug-ins
        _api("npu").manual_seed_all(value)


def synchronize(device):
    """Wait until everything queued on the device has been done."""
    if device.type != "cpu":
        _api(device.type).synchronize()


def mark_time(device):
    """Return a mark of what the device has been asked to do so far, for `seconds_between`; nobody waits for it."""
    if device.type == "cpu":
        return time.perf_counter()
    api = _api(device.type)
    return api.current_stream().record_event(api.Event(enable_timing=True))


def seconds_between(earlier, later):
    """Return the seconds that the device took from one mark to another; it has passed both."""
    return later - earlier if isinstance(later, float) else earlier.elapsed_time(later) / 1000


def peak_memory(device):
    """Return the largest number of bytes that tensors have taken on the device, None on a CPU."""
    return _api(device.type).max_memory_allocated() if device.type != "cpu" else None


def give_back_memory(device):
    """Give back the memory that is kept for further tensors, to other processes on the device."""
    if device.type != "cpu":
        _api(device.type).empty_cache()


def import_torchvision():
    """Import torchvision where its compiled part does not load, and return the module.

    The wheels on PyPI hold operators for CUDA. Beside a CPU or NPU build of torch they do not load, and registering the
    meta kernel of an operator that was never declared then stops the import with "operator torchvision::nms does not
    exist". Declaring the operators first is enough; nothing in classification calls them.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        global _declarations  # a Library takes its declarations back when it is collected
        _declarations = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            _declarations.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision

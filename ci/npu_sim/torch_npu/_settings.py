"""The environment variables of the simulated NPU, and those of the Ascend runtime that it honours."""

import datetime
import os
import socket


def _integer(name, default, low, high):
    text = os.environ.get(name) or str(default)
    if not text.isdigit() or not low <= int(text) <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, not {text!r}")
    return int(text)


def installed_devices():
    """How many NPUs the simulated host has: NPU_SIM_DEVICE_COUNT, 8 by default."""
    return _integer("NPU_SIM_DEVICE_COUNT", 8, 0, 16)


def memory_bytes():
    """The memory of one NPU: NPU_SIM_MEMORY_GIB, 64 GiB by default."""
    return _integer("NPU_SIM_MEMORY_GIB", 64, 1, 1024) << 30


STRICT_LEVELS = {"": "allow", "0": "allow", "allow": "allow", "warn": "warn", "1": "error", "error": "error"}


def strict():
    """What strict mode does with what a device would let pass in silence: NPU_SIM_STRICT, "error", "warn" or "allow"."""
    text = os.environ.get("NPU_SIM_STRICT", "")
    if text not in STRICT_LEVELS:
        raise ValueError(f"NPU_SIM_STRICT must be error, warn or allow, not {text!r}")
    return STRICT_LEVELS[text]


def libraries():
    """Directories whose code strict mode leaves alone, as it does installed packages: NPU_SIM_LIBRARIES, a list like PATH."""
    listed = os.environ.get("NPU_SIM_LIBRARIES", "").split(os.pathsep)
    return [os.path.join(os.path.abspath(path), "") for path in listed if path]


def transfer():
    """True where torch_npu.contrib.transfer_to_npu may be used: NPU_SIM_TRANSFER is set to anything but 0 or nothing."""
    return os.environ.get("NPU_SIM_TRANSFER", "0") not in ("", "0")


def execution_timeout(of_the_group):
    """How long a collective may take: HCCL_EXEC_TIMEOUT seconds, where that is set and less than the group's time-out."""
    seconds = _integer("HCCL_EXEC_TIMEOUT", 0, 0, 2147483647)
    return min(of_the_group, datetime.timedelta(seconds=seconds)) if seconds else of_the_group


def saturates():
    """Whether fp16 saturates, as on the first 910, instead of having infinity and NaN (csrc/faults.cpp).

    NPU_SIM_OVERFLOW=saturate, or the device's own INF_NAN_MODE_FORCE_DISABLE=1. Raises ValueError for other values, and for
    INF_NAN_MODE_ENABLE=0, which a 910B refuses.
    """
    mode = os.environ.get("NPU_SIM_OVERFLOW") or "inf_nan"
    if mode not in ("inf_nan", "saturate"):
        raise ValueError(f"NPU_SIM_OVERFLOW must be inf_nan or saturate, not {mode!r}")
    disabled = _integer("INF_NAN_MODE_FORCE_DISABLE", 0, 0, 1) == 1
    if mode == "inf_nan" and not disabled and _integer("INF_NAN_MODE_ENABLE", 1, 0, 1) == 0:
        raise ValueError("INF_NAN_MODE_ENABLE shouldn't be set to 0 on the current device. If you want to disable inf-nan mode, "
                         "please export INF_NAN_MODE_FORCE_DISABLE=1")
    return mode == "saturate" or disabled


def visible_devices(text, installed):
    """The devices that ASCEND_RT_VISIBLE_DEVICES=text leaves visible, out of `installed`, as torch_npu 2.13 reads it.

    Only digits and commas count: the text ends at the first other character. Device ids must ascend, else no device is
    visible; the list ends before the first id that does not exist. None means that the variable is not set.
    """
    if text is None:
        return list(range(installed))
    end = next((i for i, c in enumerate(text) if c not in "0123456789,"), len(text))
    visible = []
    for item in text[:end].split(","):
        if not item:
            break
        if visible and int(item) <= visible[-1]:
            return []
        visible.append(int(item))
    return [device for device in visible if device < installed]


def npu_names():
    """The NPUs that this process sees, by names that no other NPU of any host has: "host:id".

    NPU_SIM_HOST names the simulated host. Without it the agents of torchrun are hosts of their own, since several on one
    machine are there to stand for several.
    """
    host = os.environ.get("NPU_SIM_HOST") or socket.gethostname() + "-" + os.environ.get("GROUP_RANK", "0")
    devices = visible_devices(os.environ.get("ASCEND_RT_VISIBLE_DEVICES"), installed_devices())
    return [f"{host}:{device}" for device in devices]


def device_count():
    """How many NPUs this process sees; they are numbered from 0, whatever their ids."""
    return len(npu_names())

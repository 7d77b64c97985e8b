"""Faults of devices, asked for by NPU_SIM_FAULT, so that a test can show what a script does then.

"oom@step=5" or "hang@step=3,rank=1", several with ";" between them. Each strikes once, as the training step of that number
begins: step 1 begins with the process, the next whenever an optimizer has stepped (_steps.py).
"""

import os
from collections import namedtuple

import torch

from torch_npu import _C, _steps

_STRIKE = {
    # Nothing that is on the current device, or comes to it, is ever done: the next wait for it does not end.
    "hang": lambda: _C._sim_hang(torch.npu.current_device()),
    # The next allocation on a device fails.
    "oom": _C._sim_run_out_of_memory,
    # This rank does not come to the next collective: its group waits, and times out.
    "collective_timeout": _C._sim_stay_away,
    # The next half-precision result of a backward pass overflows.
    "overflow": _C._sim_overflow_once,
}
Fault = namedtuple("Fault", "kind step rank")


def read(text):
    """The Faults of NPU_SIM_FAULT=text; rank is None where none was said. Raises ValueError with the part that is wrong."""
    faults = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        kind, _, rest = part.partition("@")
        settings = dict(item.partition("=")[::2] for item in rest.split(","))
        if kind not in _STRIKE:
            raise ValueError(f"NPU_SIM_FAULT: {part!r} is none of {', '.join(_STRIKE)}")
        if "step" not in settings or not set(settings) <= {"step", "rank"} or not all(n.isdigit() for n in settings.values()):
            raise ValueError(f"NPU_SIM_FAULT: {part!r} must be like {kind}@step=3 or {kind}@step=3,rank=1")
        faults.append(Fault(kind, int(settings["step"]), int(settings["rank"]) if "rank" in settings else None))
    return faults


def start():
    """Called once. Where the rank is not known yet, a fault of step 1 strikes when the process group is made."""
    waiting = read(os.environ.get("NPU_SIM_FAULT", ""))

    def strike(step):
        for fault in list(waiting):
            if fault.step == step and fault.rank in (None, _steps.rank()):
                waiting.remove(fault)
                _STRIKE[fault.kind]()

    if waiting:
        _steps.on_begin(strike)

"""Stage 1, the machine: the doctor's table, interconnect, clocks and power where they can be read."""
import argparse
import re

from certificate._checks import ROOT, Check, is_simulated, kind
from doctor_checks.machine import OK, WRONG, Machine

_QUERIES = {
    "gpu": [("clocks and power", (
                "nvidia-smi", "--query-gpu=clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,pstate", "--format=csv")),
            ("interconnect", ("nvidia-smi", "topo", "-m"))],
    "npu": [("clocks and power", ("npu-smi", "info", "-t", "common", "-i", "0")),
            ("interconnect", ("npu-smi", "info", "-t", "topo"))],
    "cpu": [("processor", ("lscpu",))],
}
_OF_A_DEVICE = ("npu", "cann", "driver", "firmware", "torch_npu", "hccl", "/dev", "npu-smi", "apex", "compatib")


def run(case):
    """Yield the doctor's rows as checks, then what else is known of the device."""
    import doctor
    simulated = is_simulated(case.device)
    machine = Machine(kind(case.device))
    for row in doctor.check(machine, argparse.Namespace(data_path=None, output_path=ROOT)):
        passed, note = row.status != WRONG, row.right
        if simulated and not passed and any(word in (row.name + row.found).lower() for word in _OF_A_DEVICE):
            passed, note = None, "the NPU is simulated: there is no such hardware or software"
        yield Check("", row.name, row.found, "not wrong", "tools/doctor.py", passed, note if row.status != OK else "")
    for what, command in _QUERIES[kind(case.device)]:
        status, text = machine.run(*command)
        text = re.sub("\x1b\\[[0-9;]*m", "", text)  # nvidia-smi underlines
        lines = "; ".join(line.strip() for line in text.splitlines() if line.strip())[:600]
        readable = status == 0 and lines
        yield Check("", what, lines if readable else "-", "-", "-", True if readable else None,
                    "" if readable else "not readable here (%s)" % command[0])

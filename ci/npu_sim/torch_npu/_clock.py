"""The virtual clock of the simulated devices, on where NPU_SIM_CLOCK=1: settings, the script's own clock, and questions.

An operator takes its device a time from TABLE and its launch returns at once; what waits for the device sleeps. The host
really computes the operator meanwhile; that time does not count, neither here nor in what the functions of `time` say
(csrc/clock.cpp). All figures here are nanoseconds since the process began.
"""

import os
import time

from torch_npu import _C

# Arbitrary: of the order of a training accelerator's, measured on none. A name of an operator ("aten::convolution") can
# be added, with the microseconds that each of its calls takes.
TABLE = {
    "operator_us": 5.0,          # each operator, and what its size adds: the longer of the next two
    "matrix_gflops": 100000.0,   # of matrix products and convolutions, 1e9 operations a second
    "vector_gbs": 800.0,         # arguments and results, 1e9 bytes a second; also copies on one device
    "copy_us": 10.0,             # each copy, and its bytes at one of the next rates
    "to_device_gbs": 20.0,
    "to_host_gbs": 20.0,
    "between_gbs": 30.0,
    "collective_us": 50.0,       # each collective, after the last rank has come, and its bytes at the next rate
    "collective_gbs": 20.0,
}
_NAMES = ("time", "perf_counter", "monotonic")


def read_table(text):
    """TABLE with the changes of NPU_SIM_CLOCK_TABLE=text: "name=number,..." or a file of such lines (# starts a comment).

    Raises ValueError, with the entry, for an unknown name or a number that is not positive.
    """
    if os.path.isfile(text):
        with open(text) as handle:
            text = ",".join(line.split("#")[0] for line in handle)
    table = dict(TABLE)
    for entry in filter(None, (entry.strip() for entry in text.split(","))):
        name, _, number = (part.strip() for part in entry.partition("="))
        if name not in TABLE and "::" not in name:
            raise ValueError(f"NPU_SIM_CLOCK_TABLE: {name!r} is neither one of {', '.join(TABLE)} nor an operator's name")
        try:
            table[name] = float(number)
        except ValueError:
            table[name] = 0
        if not 0 < table[name] < 1e15:
            raise ValueError(f"NPU_SIM_CLOCK_TABLE: {entry!r} needs a positive number")
    return table


def is_on():
    return os.environ.get("NPU_SIM_CLOCK", "0") not in ("", "0")


def start():
    """Called once, before any operator."""
    _C._sim_configure_clock(is_on(), read_table(os.environ.get("NPU_SIM_CLOCK_TABLE", "")))
    if is_on():
        for name in _NAMES:
            _follow(name)


def _follow(name):
    """Make time.`name`, which a script's meters read, stand still when the device's clock does."""
    nanoseconds = getattr(time, name + "_ns")

    def followed_ns():
        return nanoseconds() - _C._sim_frozen_time()

    def followed():
        return followed_ns() * 1e-9

    setattr(time, name + "_ns", followed_ns)
    setattr(time, name, followed)


def host_time():
    """The host's time."""
    return _C._sim_host_time()


def device_time(device=0):
    """When NPU `device` will have done all that was launched on it; 0 where there was nothing."""
    return _C._sim_device_time(device)


def busy_time(device=0):
    """The sum of the durations of what was launched on NPU `device`: more than its time passes, where streams overlap."""
    return _C._sim_busy_time(device)


def waits():
    """(how often the host has waited for a device or asked it for a value, nanoseconds that it slept there)."""
    counters = _C._sim_counters()
    return counters["host_waits"], counters["host_waited_ns"]

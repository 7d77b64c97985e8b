"""What a training made its devices and its host do, as a report (NPU_SIM_REPORT), and limits to it (NPU_SIM_LIMITS).

Figures per step are taken from the end of the first step to the end of the last (_steps.py), so that setting up and what
comes after the training do not count. Phases: "optimizer" is inside an optimizer's step(), "backward" inside a backward
pass (recomputed activations, too), "forward" what else runs with gradients enabled, "other" without.
"""

import collections
import json
import os
import re
import sys
import sysconfig
import xml.etree.ElementTree as ElementTree

import torch

from torch_npu import _C, _clock, _steps

Wait = collections.namedtuple("Wait", "line reason per_step count slept_ns")
PHASES = ("forward", "backward", "optimizer", "other")
_COUNTED = ("operators", "host_waits", "host_waited_ns", "pageable_copies", "to_device_bytes", "to_host_bytes")
FIGURES = _COUNTED + tuple(name + "_per_step" for name in _COUNTED) + ("peak_memory_bytes", "steps")
_COMPARE = {"<=": float.__le__, ">=": float.__ge__, "<": float.__lt__, ">": float.__gt__, "==": float.__eq__}
_NOT_THE_SCRIPT = tuple({os.path.dirname(torch.__file__), os.path.dirname(__file__)} | {
    sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}) + ("<frozen",)

_waits = {}  # (line, reason): [count, nanoseconds slept]
_steps_done = []  # the counters and waits at the end of each step, and the peak of memory within it
_limits = []


# ---- recording

def record():
    """Note waits and steps from now on. More than one call is as good as one."""
    if _C._sim_on_wait(_note_wait):
        _steps.on_begin(_note_step)


def _note_wait(reason, slept):
    entry = _waits.setdefault((_line(sys._getframe(1)), reason), [0, 0])
    entry[0] += 1
    entry[1] += slept


def _line(frame):
    """The nearest line of the script or its own modules; a backward pass runs in a thread that has none."""
    while frame and frame.f_code.co_filename.startswith(_NOT_THE_SCRIPT):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "outside the script"


def _note_step(number):
    if number == 1 or number - 1 == (_steps_done[-1]["step"] if _steps_done else 0):
        return  # the process has begun, or its rank has become known
    peaks = [_C._sim_take_step_peak(device) for device in range(_C._npu_getDeviceCount())]
    busy = sum(_C._sim_busy_time(device) for device in range(_C._npu_getDeviceCount()))
    _steps_done.append(dict(_C._sim_counters(), device_ns=busy, step=number - 1, peak_memory_bytes=max(peaks, default=0),
                            waits={key: count for key, (count, _) in _waits.items()}))


# ---- figures

class Recording:
    """The figures of FIGURES as attributes, and `waits`, from when this was made until now."""

    def __init__(self):
        record()
        self._before = {"counters": _C._sim_counters(), "waits": {key: list(value) for key, value in _waits.items()}}
        self._first = len(_steps_done)

    @property
    def waits(self):
        """[Wait, ...]: which line waited for the device, what for, how often (a step), how long; the most frequent first."""
        found = []
        for key, (count, slept) in _waits.items():
            count_before, slept_before = self._before["waits"].get(key, (0, 0))
            per_step = self._per_step(lambda ended, key=key: ended["waits"].get(key, 0))
            if count > count_before:
                found.append(Wait(*key, per_step, count - count_before, slept - slept_before))
        return sorted(found, key=lambda wait: (wait.per_step or 0, wait.count), reverse=True)

    def _per_step(self, figure):
        """The increase of figure(what is known at the end of a step) for each step after the first; None without any."""
        ended = _steps_done[self._first:]
        return (figure(ended[-1]) - figure(ended[0])) / (len(ended) - 1) if len(ended) > 1 else None

    def figures(self):
        """{name: number} for FIGURES; a figure per step is None where fewer than two steps were made."""
        now = _C._sim_counters()
        found = {name: now[name] - self._before["counters"][name] for name in _COUNTED}
        for name in _COUNTED:
            found[name + "_per_step"] = self._per_step(lambda ended, name=name: ended[name])
        peaks = [_C._sim_memory(device)[1] for device in range(_C._npu_getDeviceCount())]
        return dict(found, peak_memory_bytes=max(peaks, default=0), steps=len(_steps_done) - self._first)

    def __getattr__(self, name):
        if name not in FIGURES:
            raise AttributeError(f"a report has no {name!r}; it has waits, {', '.join(FIGURES)}")
        return self.figures()[name]


def _by_step():
    """[{figure: number, ...}, ...]: what was counted within each step; device_ns, by the clock, of all devices."""
    names = _COUNTED + ("device_ns",)
    table, before = [], dict.fromkeys(names, 0)
    for ended in _steps_done:
        table.append(dict({name: ended[name] - before[name] for name in names}, peak_memory_bytes=ended["peak_memory_bytes"]))
        before = ended
    return table


# ---- limits

def read_limits(text):
    """[(text, figure, comparison, bound), ...] of NPU_SIM_LIMITS="host_waits_per_step<=0.1,...". Raises ValueError."""
    limits = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.match(r"(\w+)\s*(<=|>=|==|<|>)\s*(\d+\.?\d*(?:e[-+]?\d+)?)$", part)
        if not match or match.group(1) not in FIGURES:
            raise ValueError(f"NPU_SIM_LIMITS: {part!r} must be a figure, <= or >=, and a number; figures: {', '.join(FIGURES)}")
        limits.append((part, match.group(1), match.group(2), float(match.group(3))))
    return limits


def _verdicts(figures):
    """[(limit, what was seen, whether it was kept), ...]"""
    seen = [(text, figures[name], compare, bound) for text, name, compare, bound in _limits]
    return [(text, value, value is not None and _COMPARE[compare](float(value), bound)) for text, value, compare, bound in seen]


def _say(broken, report):
    rank = "" if report["rank"] is None else f" (rank {report['rank']})"
    for text, value, _ in broken:
        seen = value if value is not None else f"not measured, with {report['figures']['steps']} steps"
        print(f"npu_sim: the limit {text} is broken{rank}: {seen}", file=sys.stderr)
    if any("wait" in text for text, _, _ in broken):
        for line in _wait_lines(report)[:3]:
            print("npu_sim: " + line, file=sys.stderr)


def _wait_lines(report):
    return [f"{wait['reason']}, {wait['line']}: {wait['count']}, {wait['per_step'] or 0:g} a step" for wait in report["host_waits"]]


# ---- the report of a process

def start():
    """Called once."""
    global _limits, _process
    _limits = read_limits(os.environ.get("NPU_SIM_LIMITS", ""))
    _process = Recording() if _limits or os.environ.get("NPU_SIM_REPORT") else None


def finish():
    """At the end of the process: write the report, and fail where a limit is broken, if the process has used an NPU."""
    if _process is None:
        return
    report = _report()
    used = any(report["peak_memory_bytes"])
    for path in filter(None, os.environ.get("NPU_SIM_REPORT", "").split(",")):
        _write(path.strip(), report, used)
    broken = [verdict for verdict in _verdicts(report["figures"]) if not verdict[2]]
    if broken and used:
        _say(broken, report)
        _C._sim_fail_at_exit()


def _report():
    figures = _process.figures()
    by_phase = _C._sim_op_counts_by_phase()
    report = {
        "arguments": sys.argv, "rank": _steps.rank(), "figures": figures, "operators": _C._sim_op_counts(),
        "operators_by_phase": {phase: {name: calls[i] for name, calls in by_phase.items() if calls[i]}
                               for i, phase in enumerate(PHASES)},
        "host_waits": [wait._asdict() for wait in _process.waits], "by_step": _by_step(),
        "peak_memory_bytes": [_C._sim_memory(device)[1] for device in range(_C._npu_getDeviceCount())],
        "limits": [{"limit": text, "seen": value, "kept": kept} for text, value, kept in _verdicts(figures)],
    }
    if _clock.is_on():
        devices = range(_C._npu_getDeviceCount())
        report["clock"] = {"host_ns": _clock.host_time(), "device_ns": [_clock.device_time(device) for device in devices],
                           "busy_ns": [_clock.busy_time(device) for device in devices]}
    return report


def _write(path, report, used):
    """A file *.json or *.xml for a process that has used an NPU, or one of any process in a directory."""
    base, extension = os.path.splitext(path)
    if extension not in (".json", ".xml"):
        os.makedirs(path, exist_ok=True)
        base, extension, used = os.path.join(path, str(os.getpid())), ".json", True
    elif _steps.ranks() > 1 and report["rank"] is not None:
        base = f"{base}.rank{report['rank']}"
    if used and extension == ".xml":
        _junit(report).write(base + extension, encoding="utf-8", xml_declaration=True)
    elif used:
        with open(base + extension, "w") as handle:
            json.dump(report, handle, indent=1)


def _junit(report):
    """A test case for each limit, and one that says that an NPU was used; the figures as properties."""
    name = "npu_sim" if report["rank"] is None else f"npu_sim.rank{report['rank']}"
    suite = ElementTree.Element("testsuite", name=name, tests=str(1 + len(report["limits"])),
                                failures=str(sum(not limit["kept"] for limit in report["limits"])))
    properties = ElementTree.SubElement(suite, "properties")
    for figure, value in report["figures"].items():
        ElementTree.SubElement(properties, "property", name=figure, value=str(value))
    ElementTree.SubElement(suite, "testcase", classname=name, name="an NPU was used")
    for limit in report["limits"]:
        case = ElementTree.SubElement(suite, "testcase", classname=name, name=limit["limit"])
        if not limit["kept"]:
            ElementTree.SubElement(case, "failure", message=f"{limit['seen']} was seen").text = "\n".join(_wait_lines(report))
    return ElementTree.ElementTree(suite)

"""What the operators of a few training steps take (--profile-steps)."""
import inspect
import os

import torch

from common import outputs

_MOST_EXPENSIVE = 10


class StepProfiler(object):
    """Profiles the steps from `first` up to, but not with, `last` of the first epoch that this process trains: a trace for Chrome
    (chrome://tracing) and TensorBoard in `folder`, and on rank 0, which alone does it, a table of the most expensive operators."""

    def __init__(self, steps, folder, rank):
        """`steps`: (first, last), None for none."""
        self._first, self._last = steps if steps and rank.is_main else (None, None)
        self._folder, self._rank, self._running = folder, rank, None

    def before(self, step, clock):
        """A step begins. What is profiled does not count for `clock`."""
        if self._first is not None and self._running is None and step >= self._first:
            clock.leave_out(True)
            with outputs.writing(self._folder):
                os.makedirs(self._folder, exist_ok=True)
            self._running = _profiler(self._rank.device, self._folder)
            self._running.__enter__()

    def after(self, step, clock):
        """A step has ended, and with it the profile if it is its last one."""
        if self._running is not None and step + 1 >= self._last:
            self.close(clock)

    def close(self, clock):
        """End the profile, with the epoch at the latest: write the trace, print the table."""
        profiler, first, self._running, self._first = self._running, self._first, None, None
        if profiler is None:
            self._rank.print(first is not None and "profile: there was no step %d in this epoch" % first)
            return
        there = set(os.listdir(self._folder))
        with outputs.writing(self._folder):
            profiler.__exit__(None, None, None)
            if not hasattr(torch, "profiler"):
                profiler.export_chrome_trace(os.path.join(self._folder, "trace.json"))
        outputs.note(*[os.path.join(self._folder, name) for name in set(os.listdir(self._folder)) - there])
        clock.leave_out(False)
        self._rank.print("profile: wrote %s (for chrome://tracing, or tensorboard --logdir)" % self._folder)
        if hasattr(profiler, "key_averages"):  # an NPU's plug-in has its own tools for that
            order = "self_%s_time_total" % ("cuda" if self._rank.device.type == "cuda" else "cpu")
            self._rank.print(profiler.key_averages().table(sort_by=order, row_limit=_MOST_EXPENSIVE))


def _profiler(device, folder):
    if not hasattr(torch, "profiler"):
        return torch.autograd.profiler.profile(**autograd_options(device))
    module = torch.profiler
    if device.type == "npu":
        from torch_npu import profiler as module
    activities = {getattr(module.ProfilerActivity, kind) for kind in ("CPU", device.type.upper())}
    return module.profile(activities=activities, on_trace_ready=module.tensorboard_trace_handler(folder))


def autograd_options(device):
    """Return what makes PyTorch's autograd profiler look at `device` too."""
    known = inspect.signature(torch.autograd.profiler.profile.__init__).parameters
    if device.type == "cpu":
        return {}
    if "use_device" in known:
        return {"use_device": device.type}
    return {"use_" + device.type: True} if "use_" + device.type in known else {}

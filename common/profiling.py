"""What the operators of a few training steps take (--profile-steps)."""
import inspect
import os

import torch

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
            self._running = start(self._rank.device, self._folder)

    def after(self, step, clock):
        """A step has ended, and with it the profile if it is its last one."""
        if self._running is not None and step + 1 >= self._last:
            self.close()
            clock.leave_out(False)

    def close(self):
        """End the profile, with the epoch at the latest."""
        running, first, self._running, self._first = self._running, self._first, None, None
        if running is None and first is not None:
            self._rank.print("profile: there was no step %d in this epoch" % first)
        if running is not None:
            self._rank.print(*stop(running, self._rank.device, self._folder))


def start(device, folder):
    """Return a profiler that has been started."""
    os.makedirs(folder, exist_ok=True)
    profiler = _profiler(device, folder)
    profiler.__enter__()
    return profiler


def stop(profiler, device, folder):
    """End a profiler, write its trace to `folder`, and return lines for the log."""
    profiler.__exit__(None, None, None)
    if not hasattr(torch, "profiler"):
        profiler.export_chrome_trace(os.path.join(folder, "trace.json"))
    lines = ["profile: wrote %s (for chrome://tracing, or tensorboard --logdir)" % folder]
    if hasattr(profiler, "key_averages"):  # an NPU's plug-in has its own tools for that
        averages = profiler.key_averages()
        order = "self_%s_time_total" % (device.type if device.type == "cuda" else "cpu")
        lines.append(averages.table(sort_by=order, row_limit=_MOST_EXPENSIVE))
    return lines


def _profiler(device, folder):
    if device.type == "npu" and not hasattr(torch, "profiler"):
        return torch.autograd.profiler.profile(**autograd_options(device))
    if device.type == "npu":
        import torch_npu
        module, activities = torch_npu.profiler, ("CPU", "NPU")
    elif hasattr(torch, "profiler"):
        module, activities = torch.profiler, ("CPU", "CUDA") if device.type == "cuda" else ("CPU",)
    else:
        return torch.autograd.profiler.profile(**autograd_options(device))
    return module.profile(activities=[getattr(module.ProfilerActivity, name) for name in activities],
                          on_trace_ready=module.tensorboard_trace_handler(folder))


def autograd_options(device):
    """Return what makes PyTorch's autograd profiler look at `device` too."""
    known = inspect.signature(torch.autograd.profiler.profile.__init__).parameters
    if device.type == "cpu":
        return {}
    if "use_device" in known:
        return {"use_device": device.type}
    return {"use_" + device.type: True} if "use_" + device.type in known else {}

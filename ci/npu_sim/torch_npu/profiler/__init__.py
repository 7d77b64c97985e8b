"""torch_npu.profiler on torch.profiler: what the host and the operators did is recorded, and shows what it shows there.

Times are those of the simulation. Traces are Chrome traces, in the place where the real one puts them.
"""

import datetime
import enum
import os
import socket

import torch

from torch_npu import _names
from torch_npu.profiler._options import (
    AiCMetrics,
    ExportType,
    HostSystem,
    ProfilerLevel,
    _ExperimentalConfig,
    supported_ai_core_metrics,
    supported_export_type,
    supported_profiler_level,
)

__all__ = ["profile", "ProfilerActivity", "supported_activities", "tensorboard_trace_handler", "schedule", "ProfilerAction",
           "_ExperimentalConfig", "supported_profiler_level", "supported_ai_core_metrics", "supported_export_type", "ProfilerLevel",
           "AiCMetrics", "ExportType", "HostSystem"]
__getattr__ = _names.getter(__name__)

ProfilerAction = torch.profiler.ProfilerAction


class ProfilerActivity(enum.Enum):
    CPU = 0
    NPU = 1


def supported_activities():
    return set(ProfilerActivity)


def schedule(wait, active, warmup=0, repeat=0, skip_first=0, skip_first_wait=0):
    """What to do at which step; the arguments are those of torch.profiler.schedule, in another order."""
    return torch.profiler.schedule(wait=wait, warmup=warmup, active=active, repeat=repeat, skip_first=skip_first,
                                   skip_first_wait=skip_first_wait)


def tensorboard_trace_handler(dir_name=None, worker_name=None, analyse_flag=True, async_mode=False):
    """What on_trace_ready takes, to leave DIR/WORKER_PID_TIME_ascend_pt/ASCEND_PROFILER_OUTPUT/trace_view.json."""
    def handler(prof):
        if analyse_flag:
            time = datetime.datetime.now().strftime("%Y%m%d%H%M%S%f")[:-3]
            folder = f"{worker_name or socket.gethostname()}_{os.getpid()}_{time}_ascend_pt"
            path = os.path.join(dir_name or os.environ.get("ASCEND_WORK_PATH") or os.getcwd(), folder, "ASCEND_PROFILER_OUTPUT")
            os.makedirs(path, mode=0o750)
            prof.export_chrome_trace(os.path.join(path, "trace_view.json"))

    return handler


class profile:
    """The context manager of the real profiler, which has fewer methods than PyTorch's: no key_averages(), no events()."""

    def __init__(self, *, activities=None, schedule=None, on_trace_ready=None, record_shapes=False, profile_memory=False,
                 with_stack=False, with_flops=False, with_modules=False, experimental_config=None,
                 execution_trace_observer=None, custom_trace_id_callback=None, use_cuda=None):
        wrong = set(activities or ()) - supported_activities()
        if wrong or not isinstance(experimental_config, (_ExperimentalConfig, type(None))):
            raise TypeError(f"torch_npu.profiler.profile takes torch_npu.profiler's own ProfilerActivity and _ExperimentalConfig, "
                            f"not {wrong or experimental_config}: the real one would go on with its defaults (npu_sim)")
        self._profile = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], schedule=schedule, record_shapes=record_shapes,
            on_trace_ready=(lambda _: on_trace_ready(self)) if on_trace_ready else None, profile_memory=profile_memory,
            with_stack=with_stack, with_flops=with_flops, with_modules=with_modules,
            execution_trace_observer=execution_trace_observer, custom_trace_id_callback=custom_trace_id_callback)
        for name in ("start", "stop", "step", "add_metadata", "add_metadata_json", "export_chrome_trace", "export_stacks",
                     "set_custom_trace_id_callback", "get_trace_id"):
            setattr(self, name, getattr(self._profile, name))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exception):
        self.stop()

"""The options of the device's profiler: named, kept, and without effect."""

import inspect


class ProfilerLevel:
    Level0, Level1, Level2, Level_none = "Level0", "Level1", "Level2", "Level_none"


class AiCMetrics:
    PipeUtilization = "ACL_AICORE_PIPE_UTILIZATION"
    ArithmeticUtilization = "ACL_AICORE_ARITHMETIC_UTILIZATION"
    Memory = "ACL_AICORE_MEMORY_BANDWIDTH"
    MemoryL0 = "ACL_AICORE_L0B_AND_WIDTH"
    MemoryUB = "ACL_AICORE_MEMORY_UB"
    ResourceConflictRatio = "ACL_AICORE_RESOURCE_CONFLICT_RATIO"
    L2Cache = "ACL_AICORE_L2_CACHE"
    MemoryAccess = "ACL_AICORE_MEMORY_ACCESS"
    AiCoreNone = "ACL_AICORE_NONE"


class ExportType:
    Db, Text = "db", "text"


class HostSystem:
    CPU, MEM, DISK, NETWORK, OSRT, NUMA = "cpu", "mem", "disk", "network", "osrt", "numa"


def _values(options):
    return {value for name, value in vars(options).items() if not name.startswith("_")}


def supported_profiler_level():
    return _values(ProfilerLevel)


def supported_ai_core_metrics():
    return _values(AiCMetrics)


def supported_export_type():
    return _values(ExportType)


class _ExperimentalConfig:
    def __init__(self, profiler_level=ProfilerLevel.Level0, aic_metrics=AiCMetrics.PipeUtilization, l2_cache=False,
                 msprof_tx=False, mstx=False, data_simplification=True, record_op_args=False, op_attr=False,
                 gc_detect_threshold=None, export_type=ExportType.Text, host_sys=None, mstx_domain_include=None,
                 mstx_domain_exclude=None, sys_io=False, sys_interconnection=False):
        if profiler_level not in supported_profiler_level() or aic_metrics not in supported_ai_core_metrics():
            raise ValueError(f"the device's profiler has no level {profiler_level!r} or no metrics {aic_metrics!r}")
        values = inspect.currentframe().f_locals
        vars(self).update(("_" + name, value) for name, value in values.items() if name != "self")

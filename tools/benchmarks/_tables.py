"""Tables of benchmarks, and what their figures were measured on."""
import platform


def layout(heads, rows, markdown):
    """Return the lines of a table of texts, for a terminal or in Markdown."""
    if markdown:
        return [""] + ["| %s |" % " | ".join(row) for row in [heads, ["---"] * len(heads)] + rows]
    widths = [max(len(row[column]) for row in [heads] + rows) for column in range(len(heads))]
    return [""] + ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in [heads] + rows]


def device_name(device_type):
    """Return the name of the device of a torch device type; of a CPU that of /proc/cpuinfo."""
    if device_type != "cpu":
        import torch
        return str(getattr(torch, device_type).get_device_name(0))
    return processor().get("model name", platform.machine())


def processor():
    """Return what /proc/cpuinfo says of a CPU, {key: value}."""
    with open("/proc/cpuinfo") as stream:
        return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in stream)}

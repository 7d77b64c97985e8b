"""What is said of a name that the simulator lacks: that the real torch_npu has it, or that it has no such name either."""

import difflib
import functools
import json
import os
import sys

_VERSION = "2.13.0"
_HERE = os.path.dirname(os.path.abspath(__file__))  # where ../setup.py copies the list
_LISTS = [_HERE, os.path.join(os.path.dirname(os.path.dirname(_HERE)), "torch_npu_api")]


@functools.lru_cache(maxsize=None)
def _real():
    """The public names of the real package by module; empty where there is no list."""
    for path in filter(os.path.exists, (os.path.join(folder, f"names-{_VERSION}.json") for folder in _LISTS)):
        with open(path) as handle:
            return json.load(handle)
    return {}


def missing(module, name):
    text, known = f"module {module!r} has no attribute {name!r}", _real().get(module)
    if known is None or name.startswith("_"):
        return f"{text}: it is not simulated (see ci/npu_sim/README.md)"
    if name in known:
        return f"{text}: torch_npu {_VERSION} has it, but it is not simulated (see ci/npu_sim/README.md)"
    close = difflib.get_close_matches(name, known, 1)
    return f"{text}: torch_npu {_VERSION} has no such name, either" + (f"; did you mean {close[0]!r}?" if close else "")


def getter(module):
    """The __getattr__ of a module of the simulator."""
    def __getattr__(name):
        raise AttributeError(missing(module, name))

    return __getattr__


class _Finder:
    """Says the same where a module that there is not, or a name that may be one, is imported. Last on sys.meta_path."""

    @staticmethod
    def find_spec(name, *_):
        parent, _, child = name.rpartition(".")
        if parent.split(".")[0] == "torch_npu":
            raise ModuleNotFoundError(missing(parent, child))


def install():
    sys.meta_path.append(_Finder)

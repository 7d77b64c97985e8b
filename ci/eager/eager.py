"""PyTorch 2 without its compiler until something really asks for it: half of the CPU time of a training that takes two seconds.

An optimizer and DistributedDataParallel import torch._dynamo for marks that mean nothing where nothing is compiled. And Python's
collector does not walk through PyTorch's own two hundred thousand objects while it is imported and at the end of each process.
"""
import gc
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import types

NAME = "torch._dynamo"


class Eager(types.ModuleType):
    """torch._dynamo where nothing is compiled. What it does not have is asked of the real one, which takes its place."""

    utils = types.SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer")
    trace_rules = types.SimpleNamespace(clear_lru_cache=lambda: None)

    @staticmethod
    def graph_break(msg=""):
        """Mark nothing: there is no graph."""

    @staticmethod
    def disable(fn=None, recursive=True, **_):
        """Return the function: it is not compiled anyway."""
        return fn

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(real(), name)


def real():
    """Return the real torch._dynamo, which takes its place from now on."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Finder)]
    if isinstance(sys.modules.get(NAME), Eager):
        del sys.modules[NAME], sys.modules["torch"]._dynamo
    return importlib.import_module(NAME)


class Finder(object):
    """Finds torch._dynamo. Where a part of it is imported, the real one comes first, which may bring that part already."""

    def find_spec(self, name, path=None, target=None):
        """Return where a module comes from, as importlib wants it."""
        if name == NAME:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        if name.startswith(NAME + "."):
            real()
            return importlib.machinery.ModuleSpec(name, self) if name in sys.modules else importlib.util.find_spec(name)
        return None

    def create_module(self, spec):
        """Return the module, which needs no code to be run."""
        return sys.modules.get(spec.name) or Eager(NAME)

    def exec_module(self, module):
        """Run nothing."""


class After(object):
    """Calls `then(module)` as soon as the module `name` is there: a process that does not import it is not made to."""

    def __init__(self, name, then):
        self._name, self._then = name, then
        if name in sys.modules:  # in a fork
            then(sys.modules[name])
        else:
            sys.meta_path.insert(0, self)

    def find_spec(self, name, path=None, target=None):
        """Return where the module comes from, once; its loader calls `then`."""
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (execute(module), self._then(module))
        return spec


def settle(_, usual=gc.get_threshold()):
    """Leave what PyTorch consists of out of every later collection."""
    gc.set_threshold(*usual)
    gc.freeze()


sys.meta_path.insert(0, Finder())
gc.set_threshold(100000)
After("torch", settle)
if "NARROW" in os.environ:
    import narrow
    After("torch", narrow.narrow)

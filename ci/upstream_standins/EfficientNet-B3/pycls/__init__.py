"""Upstream's names; what is not here is the port's, whose package has the same name."""
import importlib.util
import os
import sys

PORT = os.path.join(os.path.dirname(os.path.abspath(__file__)), *[os.pardir] * 4 + ["EfficientNet-B3", "pycls"])
__path__.append(PORT)


def port(path):
    """Import a module of the port (`core/net.py`) whose name is taken here."""
    name = "port_" + os.path.basename(path)[:-len(".py")]
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, os.path.join(PORT, path))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]

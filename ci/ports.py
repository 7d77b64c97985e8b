"""Files of the ports, for the stand-ins of upstream, whose packages have the names of the ports' own."""
import importlib.util
import os
import sys

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), os.pardir))


def load(path):
    """Import a file of the repository (`FixRes/imnet_common/transforms.py`), once, under a name that nothing else has."""
    name = "port_" + path[:-len(".py")].replace("/", "_").replace("-", "_")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, os.path.join(ROOT, path))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]

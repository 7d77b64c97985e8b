"""The port's modules, whose packages have the names of upstream's."""
import importlib.util
import os
import sys

PORT = os.path.join(os.path.dirname(os.path.abspath(__file__)), *[os.pardir] * 3 + ["FixRes"])


def load(path):
    """Import a file of the port."""
    name = "port_of_fixres_" + os.path.basename(path)[:-len(".py")]
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, os.path.join(PORT, path))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


adaptation, transforms = load("imnet_finetune/adaptation.py"), load("imnet_common/transforms.py")
pnasnet, resnext = load("imnet_common/pnasnet.py"), load("imnet_common/resnext.py")

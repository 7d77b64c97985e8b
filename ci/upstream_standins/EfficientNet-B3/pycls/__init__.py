"""Upstream's names; what is not here is the port's, whose package has the same name."""
import os

from ports import ROOT, load

PORT = os.path.join(ROOT, "EfficientNet-B3", "pycls")
__path__.append(PORT)


def port(path):
    """Import a module of the port (`core/net.py`) whose name is taken here."""
    return load("EfficientNet-B3/pycls/" + path)

"""What the environment says of this process: numbers, and which rank a launcher has made it."""
import argparse
import importlib.util
import os
import re
import socket
import sys
from collections import namedtuple

from common import ranges
from common.cli import UserError

# The packages without which no program starts, and what is imported of each.
_PACKAGES = {"torch": "torch", "torchvision": "torchvision", "numpy": "numpy", "pillow": "PIL", "pyyaml": "yaml", "yacs": "yacs",
             "opencv": "cv2"}
_OLDEST_TORCH = (1, 5)

Launched = namedtuple("Launched", "rank world_size local_rank local_size")


def number(name, default, allowed=ranges.count):
    """Return the number that a variable says, `default` where it is not set. Raises UserError outside its Range."""
    try:
        return allowed(os.environ[name]) if name in os.environ else default
    except argparse.ArgumentTypeError as error:
        raise UserError("the environment's %s: %s" % (name, error))


def is_launched():
    """Return whether torchrun or torch.distributed.launch has started this process as one rank."""
    return all(name in os.environ for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))


def launched():
    """Return the Launched that a launcher has made this process. Raises UserError where that cannot be."""
    world_size = number("WORLD_SIZE", 1, ranges.size)
    local_size = number("LOCAL_WORLD_SIZE", world_size, ranges.whole(1, world_size))  # PyTorch 1.5's launcher does not tell
    if world_size > 1:
        if not os.environ.get("MASTER_ADDR") or number("MASTER_PORT", None, ranges.port) is None:
            raise UserError("the environment has WORLD_SIZE %d, but not MASTER_ADDR and MASTER_PORT: where rank 0 is" % world_size)
        check_address(os.environ["MASTER_ADDR"])
    return Launched(number("RANK", 0, ranges.whole(0, world_size - 1)), world_size,
                    number("LOCAL_RANK", 0, ranges.whole(0, local_size - 1)), local_size)


def check_address(address):
    """Raise UserError for an address of machine 0 that cannot be resolved: PyTorch would look for it for minutes."""
    try:
        socket.getaddrinfo(address, None)
    except (OSError, UnicodeError) as error:
        raise UserError("the address %s of the first machine is not known here (%s)" % (address, error))


def check_packages(requirements):
    """Raise UserError where this Python lacks a package of a requirements file, or its PyTorch is too old. None is imported: that takes
    a second."""
    with open(requirements) as stream:
        names = [re.split("[^a-z]", line)[0] for line in stream]
    for name in names:
        found = importlib.util.find_spec(_PACKAGES[name]) if name in _PACKAGES else True
        if not found:
            raise UserError("%s has no package %s; install what %s lists" % (sys.executable, name, os.path.abspath(requirements)))
        if name == "torch" and _version_of(found.origin) < _OLDEST_TORCH:
            raise UserError("the PyTorch of %s is older than 1.5, the oldest that the models run on" % sys.executable)


def _version_of(module):
    """Return (major, minor) as a package says it in its version.py; where it does not, newer than anything."""
    try:
        with open(os.path.join(os.path.dirname(module), "version.py")) as stream:
            said = re.search(r"""__version__[^'"]*['"](\d+)\.(\d+)""", stream.read())
    except (OSError, TypeError):
        said = None
    return tuple(int(part) for part in said.groups()) if said else (sys.maxsize,)

"""What the environment says of this process: numbers, and which rank a launcher has made it."""
import argparse
import contextlib
import importlib.util
import os
import re
import socket
import sys
from collections import namedtuple

from common import ranges
from common.cli import UserError

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


def check_torch():
    """Raise UserError where this Python has no PyTorch, or too old a one. It is not imported: that takes a second."""
    found = importlib.util.find_spec("torch")
    if found is None:
        raise UserError("%s has no PyTorch; install what the model's requirements file lists" % sys.executable)
    with contextlib.suppress(OSError), open(os.path.join(os.path.dirname(found.origin), "version.py")) as stream:
        version = re.search(r"""__version__ = ['"](\d+)\.(\d+)""", stream.read())
        if version and tuple(map(int, version.groups())) < _OLDEST_TORCH:
            raise UserError("the PyTorch of %s is older than %d.%d, the oldest that the models run on" % ((sys.executable,) + _OLDEST_TORCH))

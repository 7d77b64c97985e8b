"""What a program finds around it: numbers in the environment, CPUs, the address of another machine, a PyTorch."""
import argparse
import contextlib
import importlib.util
import os
import re
import socket
import sys
import time

from common import lacking, ranges
from common.cli import UserError

_OLDEST_TORCH = (1, 5)
_QUOTA = "/sys/fs/cgroup/cpu.max"  # microseconds of CPU time in so many microseconds; a container sees its own


def number(name, default, allowed=ranges.count, environ=os.environ):
    """Return the number that a variable says, `default` where it is not set. Raises UserError outside its Range."""
    try:
        return allowed(environ[name]) if name in environ else default
    except argparse.ArgumentTypeError as error:
        raise UserError("the environment's %s: %s" % (name, error))


def cpus(ranks=1):
    """Return how many CPUs this process may use: by its affinity, and by its part of a container's quota (cgroup version 2), which `ranks`
    share."""
    allowed = len(os.sched_getaffinity(0))
    try:
        with open(_QUOTA) as file:
            quota, period = [int(word) for word in file.read().split()]
    except (OSError, ValueError):  # no such file, or "max"
        return allowed
    return min(allowed, max(1, quota // period // ranks))


def check_address(address, patience=0):
    """Raise UserError for an address of machine 0 that cannot be resolved for `patience` seconds: PyTorch would look for minutes."""
    end = time.time() + patience
    while True:
        try:
            return socket.getaddrinfo(address, None)
        except (OSError, UnicodeError) as error:
            if time.time() >= end:
                raise UserError("the address %s of the first machine is not known here (%s)" % (address, error))
        time.sleep(1)


def check_packages():
    """Raise UserError where this Python lacks what every model needs, or has too old a PyTorch. It is not imported: that takes a second,
    and without NumPy it warns, or fails, in words of its own."""
    for name in ("torch", "numpy", "PIL"):
        if importlib.util.find_spec(name) is None:
            raise UserError(lacking(ModuleNotFoundError("No module named %r" % name)))
    found = importlib.util.find_spec("torch")
    with contextlib.suppress(OSError), open(os.path.join(os.path.dirname(found.origin), "version.py")) as stream:
        version = re.search(r"""__version__ = ['"](\d+)\.(\d+)""", stream.read())
        if version and tuple(map(int, version.groups())) < _OLDEST_TORCH:
            raise UserError("the PyTorch of %s is older than %d.%d, the oldest that the models run on" % ((sys.executable,) + _OLDEST_TORCH))

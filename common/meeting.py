"""How the ranks of a training find each other: over a store of rank 0's, or of torchrun's; and what is said when they do not."""
import contextlib
import datetime
import fcntl
import os
import socket
import struct
import threading
import time

import torch.distributed as dist

from common import cli, environment
from common.cli import UserError

TIMEOUT = 1800  # seconds for a rank that is late, and for a collective
_SECONDS_TO_ADVICE = 60
_PATIENCE = datetime.timedelta(seconds=TIMEOUT)


def group_timeout():
    """Return the time-out of a process group, above those of HCCL, which says more of what it has waited for."""
    own = [environment.number("HCCL_%s_TIMEOUT" % name, TIMEOUT) for name in ("CONNECT", "EXEC")]
    return datetime.timedelta(seconds=max(own) + 60)  # HCCL's own 1836 among them


def choose_interface(place):
    """Have the libraries talk over one interface of this machine: that of HCCL_IF_IP (--local_addr of the scripts), else the one on the way
    to machine 0. Without this, gloo takes what the host name stands for, which may be 127.0.1.1. What a user has set stays."""
    if place.nnodes == 1:
        return
    told = os.environ.get("HCCL_IF_IP")
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as way, contextlib.suppress(OSError):
        if not told:
            way.connect((place.address, 9))  # sends nothing
        address = told or way.getsockname()[0]
        name = next((name for _, name in socket.if_nameindex() if _address(way, name) == address), None)
        if name and not address.startswith("127."):
            os.environ.setdefault("HCCL_IF_IP", address)
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        if name and told:  # else NCCL chooses better: it knows which are fast
            os.environ.setdefault("NCCL_SOCKET_IFNAME", "=" + name)


def _address(any_socket, interface):
    with contextlib.suppress(OSError):  # it has none
        return socket.inet_ntoa(fcntl.ioctl(any_socket, 0x8915, struct.pack("256s", interface.encode()[:15]))[20:24])  # SIOCGIFADDR


class Meeting(object):
    """The ranks of one attempt of a training on `place` (launch.Place), as seen by rank number `rank` of them. `hosts`: the name of the
    host of each that it has seen come."""

    def __init__(self, place, rank):
        self._place, self._rank, self._where = place, rank, "%s:%s" % (place.address, place.port)
        self.hosts, self._has_reached = {rank: socket.gethostname()}, rank == 0

    def store(self):
        """Return the store of this attempt, when rank 0 is reached and, on rank 0, when all have come. Raises UserError where rank 0 cannot
        listen.

        torchrun's store outlives ranks that it restarts, and with it their addresses; and each of its agents counts restarts of its own.
        So rank 0 counts the attempts, and gives each new rank, by the ticket that it has drawn, the number of this one.
        """
        is_master = self._rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        try:
            store = dist.TCPStore(self._place.address, self._place.port, 1, is_master, _PATIENCE)
        except RuntimeError as error:
            if is_master:
                raise UserError("cannot listen on %s (%s); give another with --master_port" % (self._where, str(error).splitlines()[0]))
            raise
        if self._rank == 0:
            return self._receive(store, str(store.add("attempts", 1)))
        attempt = store.get("ticket/%d" % store.add("tickets", 1)).decode()
        own = dist.PrefixStore("attempt/" + attempt, store)
        own.set("host/%d" % self._rank, self.hosts[self._rank])
        own.add("here/%d" % self._rank, 1)
        self._has_reached = True
        return own

    def _receive(self, store, attempt):
        own, end, answered = dist.PrefixStore("attempt/" + attempt, store), time.time() + TIMEOUT, 0
        while self._missing():
            for answered in range(answered + 1, store.add("tickets", 0) + 1):
                store.set("ticket/%d" % answered, attempt)
            for rank in self._missing():
                if own.add("here/%d" % rank, 0):
                    self.hosts[rank] = own.get("host/%d" % rank).decode()
            if time.time() > end:
                raise cli.TrainingStopped(self.advice())
            time.sleep(0.02)
        return own

    def _missing(self):
        return [rank for rank in range(self._place.world_size) if rank not in self.hosts]

    def advice(self):
        """Return in a line what keeps the ranks apart, as far as this one knows; '' where another one says it."""
        start, here = "after %d s " % _SECONDS_TO_ADVICE, ", ".join(sorted(set(self.hosts.values())))
        if self._rank:
            silent = self._has_reached or self._rank != self._place.rank or self._place.local_ranks[0]
            return "" if silent else start + "rank %d on %s has not met rank 0 at %s: is it running, and is the port open?" % (
                self._rank, here, self._where)
        missing = self._missing()
        if missing:
            machines = sorted({rank // self._place.local_size for rank in missing})
            return start + "rank(s) %s of machine(s) %s have not come to %s; here are those of %s" % (
                _ranges(missing), _ranges(machines), self._where, here)
        return start + "all ranks are here, from %s, but the first collective does not come back: do these let each other in on any port? %s" % (
            here, ", ".join("%s=%s" % (name, os.environ.get(name, "")) for name in _INTERFACES))

    @contextlib.contextmanager
    def advised(self):
        """Say the advice, once, where what is done in here takes longer than a minute."""
        timer = threading.Timer(_SECONDS_TO_ADVICE, lambda: cli.print_line(self.advice()) if self.advice() else None)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


_INTERFACES = ("HCCL_IF_IP", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


def _ranges(numbers):
    """Return 1-3,7 for [1, 2, 3, 7]."""
    runs = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join("%d-%d" % (run[0], run[-1]) if len(run) > 1 else "%d" % run[0] for run in runs)

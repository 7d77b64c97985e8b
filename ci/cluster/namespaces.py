"""Machines that are namespaces of this one, each with an address, a host name, processes and /dev/shm of its own, on one bridge.
Needs root; nothing of it is seen from outside, and it goes with the `with`."""
import os
import shutil
import subprocess
import sys

SERVICE, _GATEWAY = "10.96.0.1", "10.77.0.254"
_UNSHARE = ["unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
_INSIDE = 'mount --bind "$1" /etc/hosts; mount -t tmpfs -o size=1g tmpfs /dev/shm; hostname "$2"; shift 2; exec "$@"'


def skip_reason():
    """Return why this machine has no namespaces to give, or None."""
    if os.geteuid() or not (shutil.which("ip") and shutil.which("unshare")):
        return "network namespaces need root, iproute2 and util-linux"
    name = "trial-%d" % os.getpid()
    for words in (["ip", "netns", "add", name], ["ip", "netns", "exec", name] + _UNSHARE + ["true"],
                  ["ip", "-n", name, "link", "add", "bridge", "type", "bridge"],
                  ["ip", "-n", name, "link", "add", "one", "type", "veth", "peer", "name", "other"]):
        trial = subprocess.run(words, stderr=subprocess.PIPE)
        if trial.returncode:
            break
    subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL)
    return None if trial.returncode == 0 else "no network namespaces here: " + trial.stderr.decode().strip()


class Machines:
    """`addresses` of so many machines; use it in a `with`."""

    def __init__(self, count, folder):
        self._names = ["m%d-%d" % (os.getpid(), number) for number in range(count)]
        self._switch, self._hosts = "m%d-switch" % os.getpid(), os.path.join(str(folder), "hosts")
        self.addresses = ["10.77.0.%d" % (number + 1) for number in range(count)]
        self._running, self._host_names = [], []

    def __enter__(self):
        try:
            self._connect()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _connect(self):
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge", "up")
        for address in _GATEWAY + "/24", SERVICE + "/32":
            _ip("-n", self._switch, "address", "add", address, "dev", "bridge")
        for number, (name, address) in enumerate(zip(self._names, self.addresses)):
            port = "port%d" % number
            _ip("netns", "add", name)
            _ip("-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", self._switch, "link", "set", port, "master", "bridge", "up")
            _ip("-n", name, "address", "add", address + "/24", "dev", "eth0")
            for device in "lo", "eth0":
                _ip("-n", name, "link", "set", device, "up")
            _ip("-n", name, "route", "add", "default", "via", _GATEWAY)

    def __exit__(self, *_):
        for process in self._running:
            if process.poll() is None:
                process.kill()  # and with it all that runs there
            process.wait()
        for name in self._names + [self._switch]:
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL)

    def name(self, names_of_machines):
        """Let all machines know the names of each (lists, in the order of the addresses; the first is the host name)."""
        self._host_names = [names[0] for names in names_of_machines]
        with open(self._hosts, "w") as stream:
            stream.write("127.0.0.1 localhost\n")
            stream.writelines("%s %s\n" % (address, " ".join(names)) for address, names in zip(self.addresses, names_of_machines))

    def serve(self, port):
        """Let SERVICE, which is no machine's own address, have that port of machine 0 behind it."""
        proxy = [sys.executable, os.path.join(os.path.dirname(__file__), "service.py"), SERVICE, str(port), self.addresses[0]]
        self._running.append(subprocess.Popen(["ip", "netns", "exec", self._switch] + proxy))

    def start(self, number, command, **keywords):
        """Start a command on a machine, as its process 1; return the Popen (of a process outside, which has its status)."""
        within = ["ip", "netns", "exec", self._names[number]] + _UNSHARE
        inside = ["sh", "-ec", _INSIDE, "sh", self._hosts, self._host_names[number]]
        process = subprocess.Popen(within + inside + list(command), **keywords)
        self._running.append(process)
        return process


def first_process(process):
    """Return the number that process 1 of a machine has out here."""
    with open("/proc/%d/task/%d/children" % (process.pid, process.pid)) as stream:
        return int(stream.read().split()[0])


def _ip(*arguments):
    done = subprocess.run(["ip"] + list(arguments), stderr=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 0, "ip %s: %s" % (" ".join(arguments), done.stderr)

"""The host: variables and interfaces of the collectives, limits, shared memory, CPUs, disks."""
import os
import re
import resource
import socket
import time

from doctor_checks.machine import ABSENT, OK, WARNING, WRONG, Row

SHARED_MIB = 1024  # where ranks talk: what NCCL's manual gives a container; batches do not lie there
CPUS = 4  # of a rank
SAMPLE_MB, SAMPLE_SECONDS, SLOW_MB, SLOW_FILES = 128, 3.0, 20, 200  # 200 pictures of ImageNet have some 20 MB
FORMS = {  # of variables: (pattern, what would be right)
    "TASK_QUEUE_ENABLE": (r"[012]", "0, 1 or 2"),
    "CPU_AFFINITY_CONF": (r"[012](,(force:[01]|npu_affine:[01]|npu\d+:\d+-\d+))*", "such as 1, 2 or 1,npu0:0-23,npu1:24-47"),
    "HCCL_CONNECT_TIMEOUT": (r"1[2-9]\d|[2-9]\d\d|[1-6]\d{3}|7[01]\d\d|7200", "seconds from 120 to 7200"),
    "HCCL_EXEC_TIMEOUT": (r"\d+(\.\d+)?", "seconds, such as 1836")}
LIMITS = ((resource.RLIMIT_NOFILE, "open files", "ulimit -n 65536 (docker run --ulimit nofile=65536)"),
          (resource.RLIMIT_NPROC, "processes", "ulimit -u 65536 (docker run --ulimit nproc=65536): threads count too"))
FEW = 4096


def rows(machine, data_path, output_path):
    """Yield the rows."""
    nodes = [] if machine.device == "cpu" else [machine.glob("/dev/%s[0-9]*" % name) for name in ("davinci", "nvidia")]
    ranks = max([1] + [len(found) for found in nodes])
    yield from _collectives(machine)
    yield from _limits(machine)
    yield _shared_memory(machine, ranks)
    yield _cpus(machine, ranks)
    yield _output(machine, output_path)
    yield _speed(data_path)


def _collectives(machine):
    faults = list(_collective_faults(machine))
    found = ["%s=%s" % item for item in sorted(machine.environ.items()) if re.match("(HCCL|NCCL|GLOO)_", item[0])]
    return faults or [Row(OK, "collectives", " ".join(found) or "no HCCL_*, NCCL_* or GLOO_* is set: defaults")]


def _collective_faults(machine):
    interfaces = [os.path.basename(path) for path in machine.glob("/sys/class/net/*")]
    for name in ("HCCL_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        value = machine.environ.get(name, "")
        words = value.lstrip("=").split(",")
        whole = value.startswith("=") or name[0] == "G"  # else the first letters of a name
        if value and value[0] != "^" and not any(each == word if whole else each.startswith(word)
                                                 for word in words for each in interfaces):
            yield Row(WRONG, "collectives", "%s=%s: there is no such interface" % (name, value),
                      "one of %s; or unset it" % " ".join(each for each in interfaces if each != "lo"))
    address = machine.environ.get("HCCL_IF_IP")
    if address and not _is_own(address):
        yield Row(WRONG, "collectives", "HCCL_IF_IP=%s is no address of this machine" % address, "one that `ip addr` lists here")
    for name, (pattern, right) in sorted(FORMS.items()):
        if not re.match("(%s)?$" % pattern, machine.environ.get(name, "")):
            yield Row(WRONG, "collectives", "%s=%s" % (name, machine.environ[name]), right)
    if machine.environ.get("ASCEND_LAUNCH_BLOCKING") == "1":
        yield Row(WARNING, "collectives", "ASCEND_LAUNCH_BLOCKING=1 waits for each operator, which is slow", "unset it")


def _is_own(address):
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
        return True
    except OSError:
        return False


def _limits(machine):
    values = {name: resource.getrlimit(kind)[0] for kind, name, _ in LIMITS}
    low = [(name, right) for _, name, right in LIMITS if 0 <= values[name] < FEW]  # -1: no limit
    for name, right in low:
        yield Row(WARNING, "limits", "%s %d: few for loader workers" % (name, values[name]), right)
    if not low:
        yield Row(OK, "limits", ", ".join("%s %s" % (name, value if value >= 0 else "without limit")
                                          for name, value in sorted(values.items())))
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if machine.glob("/dev/infiniband/uverbs*") and locked >= 0:
        yield Row(WARNING, "limits", "locked memory %d KiB: InfiniBand and RoCE lock their buffers" % (locked // 1024),
                  "ulimit -l unlimited (docker run --ulimit memlock=-1)")


def _shared_memory(machine, ranks):
    size = machine.space(machine.at("/dev/shm"))[0]
    if size < 1:
        return Row(WRONG, "/dev/shm", "%d MiB: loader processes have no place for their semaphores" % size,
                   "1 MiB: docker run --shm-size=1m, or --workers=0")
    if ranks > 1 and size < SHARED_MIB:
        return Row(WARNING, "/dev/shm", "%d MiB: the collectives of %d ranks may want more" % (size, ranks),
                   "%d MiB: docker run --shm-size=%dg" % (SHARED_MIB, SHARED_MIB // 1024))
    return Row(OK, "/dev/shm", "%d MiB" % size)


def _cpus(machine, ranks):
    mask, quota = len(os.sched_getaffinity(0)), cpu_quota(machine)
    usable, nodes = min(mask, quota or mask), len(machine.glob("/sys/devices/system/node/node[0-9]*"))
    found = "%g of %d (affinity %d, cgroup %s), NUMA nodes %d" % (
        usable, os.cpu_count(), mask, "%g" % quota if quota else "no limit", max(1, nodes))
    if usable >= CPUS * ranks or ranks == 1 and usable >= 2:
        return Row(OK, "CPUs", found)
    return Row(WARNING, "CPUs", found, "at least %d for %d rank(s): docker run --cpus or --cpuset-cpus, srun --cpus-per-task" % (
        CPUS * ranks, ranks))


def cpu_quota(machine):
    """Return the CPUs that this process's cgroup (version 1 or 2), or one above it, may use; None for no limit."""
    quotas = []
    for controllers, folder in re.findall(r"(?m)^\d+:(|cpu|cpu,cpuacct|cpuacct,cpu):/(.*)$", machine.read("/proc/self/cgroup")):
        parts = [part for part in folder.split("/") if part]
        for depth in range(len(parts) + 1):
            path = "/".join(["/sys/fs/cgroup"] + [controllers] * bool(controllers) + parts[:depth])
            text = machine.read(path + "/cpu.max") if not controllers else " ".join(
                machine.read(path + "/cpu.cfs_%s_us" % name) for name in ("quota", "period"))
            quotas += [int(quota) / float(period) for quota, period in re.findall(r"^(\d+)\s+(\d+)", text)]
    return min(quotas) if quotas else None


def _output(machine, path):
    existing = os.path.abspath(path)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    free = machine.space(existing)[1]
    if not os.access(existing, os.W_OK):
        return Row(WRONG, "output", "this user may not write to " + existing, "--output_path=DIR, a folder that can be written")
    if free < 2048:
        return Row(WARNING, "output", "%d MiB free in %s" % (free, existing), "2048 MiB: two checkpoints lie side by side")
    return Row(OK, "output", "%.1f GiB free in %s" % (free / 1024.0, existing))


def _speed(data_path):
    if data_path is None:
        return Row(ABSENT, "data path", "not measured: no --data_path")
    start = time.time()
    try:
        count, size = _read(data_path, start)
    except OSError as error:
        return Row(WRONG, "data path", "%s cannot be read: %s" % (error.filename or data_path, error.strerror), "files that can be read")
    if not size:
        return Row(WRONG, "data path", "no data in " + data_path, "train/ and val/ with class folders, or cifar-10-batches-py/")
    seconds = max(time.time() - start, 1e-6)
    found = "%.0f MB/s, %.0f files/s, one after the other" % (size / 1e6 / seconds, count / seconds)
    if size / seconds >= 1e6 * SLOW_MB or count / seconds >= SLOW_FILES or seconds < 1:  # a short time says little
        return Row(OK, "data path", found)
    return Row(WARNING, "data path", found, "at least %d MB/s: copy the data to a local disk" % SLOW_MB)


def _read(data_path, start):
    """Return the number of files and of bytes that have been read until one of the limits of a sample was reached."""
    count = size = 0
    for path in (os.path.join(folder, name) for folder, _, names in os.walk(data_path) for name in sorted(names)):
        if not os.path.isfile(path):  # a link to nowhere; a pipe, which would be waited for
            continue
        with open(path, "rb", buffering=0) as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # not from the system's cache, where it allows that
            size, count = size + sum(map(len, iter(lambda: stream.read(2 ** 20), b""))), count + 1
        if size > SAMPLE_MB * 1e6 or time.time() - start > SAMPLE_SECONDS:
            break
    return count, size

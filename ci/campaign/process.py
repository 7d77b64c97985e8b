"""Runs of scripts under a limit of time: what they said, how they ended, which processes they left."""
import contextlib
import hashlib
import os
import re
import signal
import stat
import subprocess
import time
import uuid

from conftest import environment, script_command

LIMIT = 240  # seconds for a run of some seconds: on a busy machine a clean one takes far less
# What the C++ parts of PyTorch and of an NPU's collectives write to stderr themselves: warnings, and the words of the watchdog.
_OF_LIBRARIES = re.compile(r"\[rank\d+\]:\[W|\[Rank \d+\] (Watchdog|HCCL watchdog)|terminate called|  what\(\):")
_MARK = "CAMPAIGN_MARK"  # an environment variable by which the processes of a run are known


class Run(object):
    """A started script with its output in files of the folder `place`. `limit_s`: after that it counts as hung."""

    def __init__(self, words, place, env=None, cwd=None, limit_s=LIMIT, **popen):
        self.place, self.limit_s = place, limit_s
        self.mark = uuid.uuid4().hex
        self._streams = [open(os.path.join(place, name), "w+b") for name in ("stdout", "stderr")]
        self.started = time.time()
        popen.setdefault("stdout", self._streams[0])
        popen.setdefault("stderr", self._streams[1])
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, env=dict(env or environment(), **{_MARK: self.mark}),
                                        cwd=cwd, start_new_session=True, **popen)

    def signal(self, number):
        """Send a signal to the script."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def now(self):
        """Return the seconds since the start."""
        return time.time() - self.started

    def sleep(self, seconds):
        """Wait so long after the start, or until the script has ended; return whether it still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0, seconds - self.now()))
        return self.process.poll() is None

    def processes(self):
        """Return {pid: (parent, command line)} of what runs for this script."""
        return processes("%s=%s" % (_MARK, self.mark))

    def finish(self, limit_s=None, patience_s=20):
        """Wait for the end; return the Done. What hangs, or is left after another `patience_s`, is killed."""
        hung = False
        try:
            self.process.wait(limit_s or self.limit_s)
        except subprocess.TimeoutExpired:
            hung = True
        seconds = self.now()
        left = self._left(patience_s)
        for pid in list(left) + ([self.process.pid] if hung else []):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        status = self.process.wait()
        texts = []
        for stream in self._streams:
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
            stream.close()
        return Done(status if status >= 0 else 128 - status, texts[0], texts[1], seconds, hung, left)

    def _left(self, patience_s):
        end = time.time() + patience_s  # a killed process takes its time to go
        while True:
            left = {pid: what for pid, what in self.processes().items() if pid != self.process.pid}
            if not left or time.time() > end:
                return left
            time.sleep(0.1)


class Done(object):
    """A run that has ended: its status as a shell gives it, its texts, how long it took, whether it hung, what it left running."""

    def __init__(self, status, stdout, stderr, seconds, hung, left):
        self.status, self.stdout, self.stderr = status, stdout, stderr
        self.seconds, self.hung, self.left = seconds, hung, left

    def options(self):
        """Return the names of the options in a --help."""
        return re.findall(r"^  --(\w+) ", self.stdout, re.M)

    def unclean(self, statuses, words=()):
        """Return what is wrong with the end of a run that may have one of `statuses`: 0, or another with one line on stderr that
        holds one of `words`."""
        if self.hung:
            return ["hangs (killed after %d s); stderr: %s" % (self.seconds, self.stderr[-300:])]
        found = ["leaves %s" % ", ".join("%d %s" % (pid, what[1][-80:]) for pid, what in self.left.items())] if self.left else []
        lines = [line for line in self.stderr.strip().splitlines() if not _OF_LIBRARIES.match(line)]
        if self.status not in statuses:
            found.append("status %d, not %s" % (self.status, " or ".join(map(str, statuses))))
        if "Traceback" in self.stderr or "Traceback" in self.stdout:
            found.append("traceback")
        if self.status != 0 and len(lines) != 1:
            found.append("%d lines on stderr" % len(lines))
        if self.status != 0 and words and not any(str(word) in self.stderr for word in words):
            found.append("the line has none of: %s" % ", ".join(map(str, words)))
        return found + ["stderr ends: %s" % " | ".join(lines[-3:])[-600:]] if found else []


def processes(mark):
    """Return {pid: (parent, command line)} of the processes with `mark`, NAME=value, in their environment."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open("/proc/%s/environ" % pid, "rb") as stream:
                if mark.encode() not in stream.read():
                    continue
            with open("/proc/%s/stat" % pid) as stream:
                state, parent = stream.read().rpartition(")")[2].split()[:2]
            with open("/proc/%s/cmdline" % pid, "rb") as stream:
                line = stream.read().replace(b"\0", b" ").decode(errors="replace")
            if state != "Z":
                found[int(pid)] = (int(parent), line.strip())
    return found


def command(model, script, options):
    """Return the command line of a model's script; `options` is {name: value}, or a list of words."""
    words = ["--%s=%s" % pair for pair in options.items()] if isinstance(options, dict) else options
    return script_command(os.path.join(model, "test", script), *words)


def run(words, place, **more):
    """Run a command to its end; return the Done."""
    return Run(words, place, **more).finish()


def tree(folder):
    """Return {path: what it is and holds} of all below `folder`, without the streams of the run itself; of large files the time."""
    found = {}
    for below, folders, files in os.walk(folder):
        for name in folders + files:
            path = os.path.join(below, name)
            about = os.lstat(path)
            relative = os.path.relpath(path, folder)
            if relative in ("stdout", "stderr"):
                continue
            content = ""
            if stat.S_ISREG(about.st_mode):
                content = about.st_mtime_ns if about.st_size > 1 << 20 else hashlib.sha1(_content(path)).hexdigest()
            found[relative] = (about.st_mode, about.st_size if stat.S_ISREG(about.st_mode) else 0, content)
    return found


def changes(before, after):
    """Return the first paths in which two `tree`s differ."""
    return sorted(path for path in set(before) | set(after) if before.get(path) != after.get(path))[:5]


def _content(path):
    with open(path, "rb") as stream:
        return stream.read()

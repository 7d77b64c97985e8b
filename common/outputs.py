"""The output path of a run: who is working in it, and which of its files runs of ours have written.

`.run.lock` says on which host, as which process and since when. run.py and rank 0 lock it (flock), so the lock dies with the last of
them; one of another host, whose locks may not reach here, counts as long as its run touches it. `.run.files` lists what runs have
written: nothing else is ever moved, or written over.
"""
import atexit
import contextlib
import errno
import fcntl
import glob
import os
import re
import shutil
import signal
import socket
import stat
import threading
import time

from common.cli import Terminated, TrainingStopped, UserError

_HEARTBEAT, _SILENCE = 10, 60  # seconds between the touches of a lock; without one, after which its host is gone
_HELD_ABOVE = "RUN_OUTPUT_PATH"  # environment: the folder that run.py holds for this process, and what it has written into the lock
_MANIFEST = ".run.files"

# What runs have left whose list is not there, as in a copy made with `cp DIR/*`; and which files are weights.
_UNLISTED = re.compile(r"(train_\d+|.+_bs\d+_\d+p_\w+)\.log|metrics\.jsonl|report\.json|(checkpoint|model_best)\.pth\.tar")
_WEIGHTS = re.compile(r".*\.(pth|pyth|pth\.tar)(\.\d+)?")

_hold = None  # of this process


def hold(folder, goes_on=False, lock=".run.lock"):
    """Return this process's Hold on a folder, made if need be. `goes_on`: a --resume, which waits for a run that is perhaps gone. Raises
    UserError where another run has it, or nothing can be written."""
    global _hold
    folder = os.path.realpath(folder)
    try:
        os.makedirs(folder, exist_ok=True)
        if _hold is None or _hold.folder != folder:
            release()
            _hold = Hold(folder, goes_on, lock)
    except OSError as error:
        raise UserError("cannot write to output path %s (%s)" % (folder, error.strerror))
    return _hold


@atexit.register
def release():
    """Let other runs into the folder that this process holds."""
    global _hold
    if _hold:
        _hold.release()
    _hold = None


def note(*paths):
    """List files that are about to be written, where they are in the folder that this process holds."""
    if _hold:
        _hold.note(paths)


def note_beside(path):
    """List a file that is about to be written into the folder of a run that has ended, where it is one."""
    folder, name = os.path.split(os.path.abspath(path))
    if os.path.exists(os.path.join(folder, _MANIFEST)):
        _append([name], os.path.join(folder, _MANIFEST))


@contextlib.contextmanager
def writing(path, checkpoint_size=0):
    """Raise TrainingStopped where what is done in here cannot write `path`, in one line; of a full disk it has the figures.
    `checkpoint_size`: bytes, of a checkpoint."""
    try:
        yield
    except OSError as error:
        line = "cannot write %s%s (%s)" % ("checkpoint " * bool(checkpoint_size), path, error.strerror or error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(os.path.dirname(os.path.abspath(path))).free
            line += ", %s%.1f MB are free" % ("%.1f MB are needed, " % (checkpoint_size / 1e6) if checkpoint_size else "", free / 1e6)
        raise TrainingStopped(line + "; what was there before is intact" * bool(checkpoint_size))


def launched_at():
    """Return when the torchrun that has started this process, or its parents, began, in seconds since the epoch; infinity for
    none. It is the first ancestor without the variable that every rank of it has."""
    pid, names_launch = os.getppid(), "TORCHELASTIC_RUN_ID" in os.environ
    while names_launch and pid:
        with open("/proc/%s/stat" % pid) as stat:
            fields = stat.read().rpartition(")")[2].split()
        try:
            with open("/proc/%s/environ" % pid, "rb") as environ:
                names_launch = b"TORCHELASTIC_RUN_ID=" in environ.read()
        except PermissionError:  # no rank of ours
            names_launch = False
        if not names_launch:
            return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
        pid = int(fields[1])
    return float("inf")


def is_of_this_launch(path):
    """Return whether the file at `path`, or the one that was there before (`.1`), was written since `launched_at`: by an earlier
    attempt of this run."""
    return any(os.path.exists(file) and os.path.getmtime(file) >= launched_at() for file in (path, path + ".1"))


class Hold(object):
    """A lock on a folder, and the names in there, relative to it, of what runs have written (`names`)."""

    def __init__(self, folder, goes_on, lock):
        self.folder, self._path, self._manifest = folder, os.path.join(folder, lock), os.path.join(folder, _MANIFEST)
        above, _, self._supervisor = os.environ.get(_HELD_ABOVE, "").partition("\n")
        self._is_own = above != folder
        self._lock = self._taken(goes_on)
        os.register_at_fork(after_in_child=self._lock.close)  # a loader process may live a moment longer than its rank
        self._moved, self._ended = [], threading.Event()
        try:
            self.names = self._listed()
        except OSError:
            self.release()
            raise
        self._manifest_size = os.path.getsize(self._manifest) if os.path.exists(self._manifest) else 0
        if self._is_own:
            threading.Thread(target=self._keep_fresh, daemon=True).start()

    def _taken(self, goes_on):
        """Return the lock file, locked: at once, or when the run that has it is seen to be gone."""
        end, has_said = time.time() + _SILENCE + _HEARTBEAT, False
        while True:
            lock = open(self._path, "a+", opener=_opened)
            lock.seek(0)
            holder = lock.read(1000)
            host, _, pid = holder.partition(" since ")[0].partition(", process ")
            is_here = host in ("", socket.gethostname())
            is_free = _locked(lock, fcntl.LOCK_EX if self._is_own else fcntl.LOCK_SH, pid)
            if os.fstat(lock.fileno()).st_nlink == 0:
                pass  # its run has ended in this moment
            elif is_here and is_free and (self._is_own or holder == self._supervisor):
                return self._signed(lock) if self._is_own else lock
            elif not is_here and time.time() - os.fstat(lock.fileno()).st_mtime > _SILENCE:
                _say("taking over output path %s: its run was on a host that is gone (%s)" % (self.folder, holder))
                os.remove(self._path)
            elif time.time() < end and (is_here and not _is_alive(pid) or goes_on and not is_here):
                if signal.sigpending():  # run.py lets none in before there is a training
                    raise KeyboardInterrupt() if signal.SIGINT in signal.sigpending() else Terminated()
                if not has_said:
                    _say("waiting for the end of the run in %s (%s)" % (self.folder, holder))
                has_said = True
                time.sleep(0.1)
            else:
                lock.close()
                raise UserError("output path %s is in use (%s): take another one, or end that run"
                                % (self.folder, holder or "by a run that is just starting"))
            lock.close()

    def _signed(self, lock):
        holder = "%s, process %d since %s" % (socket.gethostname(), os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S"))
        os.environ[_HELD_ABOVE] = "%s\n%s" % (self.folder, holder)
        try:
            lock.truncate(0)
            os.write(lock.fileno(), holder.encode())
        except OSError:
            os.remove(self._path)
            raise
        _locked(lock, fcntl.LOCK_SH, "")  # so that rank 0 can have it too
        return lock

    def _keep_fresh(self):
        while not self._ended.wait(_HEARTBEAT):
            with contextlib.suppress(OSError, ValueError):  # ValueError: closed a moment ago
                os.utime(self._lock.fileno())

    def release(self):
        """Let other runs in."""
        self._ended.set()
        if self._is_own:
            os.environ.pop(_HELD_ABOVE, None)
            if os.fstat(self._lock.fileno()).st_nlink:  # else it was taken over
                os.remove(self._path)
        self._lock.close()

    # --- whose files ---

    def _listed(self):
        try:
            with open(self._manifest, errors="surrogateescape", opener=_opened) as stream:
                names = stream.read().splitlines() + [_MANIFEST]
        except FileNotFoundError:
            names = os.listdir(self.folder) if os.path.isfile(os.path.join(self.folder, "metrics.jsonl")) else []
            names = [name for name in names if _UNLISTED.fullmatch(name)]
        return {name for name in names if name and os.path.normpath("/" + name) == "/" + name}  # none that leads elsewhere

    def _name(self, path):
        folder, name = os.path.split(os.path.abspath(path))
        return os.path.relpath(os.path.join(os.path.realpath(folder), name), self.folder)

    def note(self, paths):
        """List those of `paths` that are in the folder."""
        names = {name for name in map(self._name, paths) if not name.startswith(os.pardir)}
        new = names - self.names if os.path.exists(self._manifest) else names | self.names
        self.names |= names | {_MANIFEST}
        if new:
            _append(new, self._manifest)

    def check(self, paths, goes_on=False):
        """Raise UserError for a file at one of `paths`, whose last parts are patterns, that no run has written; with `goes_on` (--resume),
        to which files may be brought, for a link, a pipe and the like."""
        for folder, pattern in map(os.path.split, paths):
            for path in glob.glob(os.path.join(glob.escape(folder), pattern)):
                if not (os.path.isfile(path) and not os.path.islink(path) if goes_on else self._name(path) in self.names):
                    raise UserError("%s was not written by a run, and would be written over: move it, or take another output path" % path)

    def set_aside(self, keeps_weights):
        """Move what runs have written into a folder earlier-N: everything, or everything but weights."""
        taken = [int(name[8:]) for name in os.listdir(self.folder) if re.fullmatch(r"earlier-\d+", name)]
        aside = os.path.join(self.folder, "earlier-%d" % (max(taken + [0]) + 1))
        kept = {name for name in self.names if keeps_weights and _WEIGHTS.fullmatch(name)}
        for name in sorted(self.names - kept):
            if os.path.lexists(os.path.join(self.folder, name)):
                self._moved.append((os.path.join(self.folder, name), os.path.join(aside, name)))
                os.renames(*self._moved[-1])
        self.names = kept

    def where_now(self, word):
        """Return a word of a command line, `--flag=FILE` or FILE, with where the weights are after `set_aside` that it names to be read."""
        flag, path = re.fullmatch("(--[^=]*=)?(.*)", word, re.DOTALL).groups("")
        if flag == "--checkpoint-file=" or not _WEIGHTS.fullmatch(path):  # is written
            return word
        return flag + dict(self._moved).get(os.path.join(self.folder, self._name(path)), path)

    def undo(self):
        """Put everything back."""
        for old, new in self._moved:
            os.renames(new, old)
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self._manifest, self._manifest_size) if self._manifest_size else os.remove(self._manifest)


def _locked(lock, kind, pid):
    """Lock a file; return whether it could be locked or, on a file system without locks, whether process `pid` is gone."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
        return True
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES) and not (pid and _is_alive(pid))


def _opened(path, mode):
    # Security: a link or a pipe that others have put there is neither followed nor waited for.
    descriptor = os.open(path, mode | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "%s is no file" % path)


def _append(names, manifest):
    with writing(manifest), open(manifest, "a", errors="surrogateescape", opener=_opened) as stream:
        stream.write("".join(name + "\n" for name in sorted(names)))


def _say(line):
    with contextlib.suppress(OSError):  # a stdout that is closed stops nobody
        os.write(1, (line + "\n").encode(errors="surrogateescape"))


def _is_alive(pid):
    return os.path.exists("/proc/" + pid)

"""What the checks see: files below one root, the environment, programs, and imports that a child process tries."""
import collections
import glob
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

OK, ABSENT, WARNING, WRONG = "OK", "-", "warning", "wrong"
# `found`: one line, what is there or what is the matter. `right`: one line, what would be right where it is not.
Row = collections.namedtuple("Row", "status name found right", defaults=("",))
PROGRAM_SECONDS, IMPORT_SECONDS = 30, 180  # PyTorch from a cold network disk takes a minute
FULL = 0.25  # of a device's memory: some 5 % of an idle NPU's are in use
ANSWER = "doctor: "  # so probe.py marks its line, among whatever the libraries print


class Machine(object):
    """`device`: npu, gpu, cpu or auto. Tests put files below a `root` other than /."""

    def __init__(self, device="auto", root="/"):
        self.device, self.root, self.environ, self._facts = device.replace("cuda", "gpu"), root, os.environ, {}
        self.python = "%d.%d" % sys.version_info[:2]

    def at(self, path):
        """Return where an absolute path really is."""
        return os.path.join(self.root, path.lstrip("/"))

    def glob(self, pattern):
        """Return the absolute paths that match, in order, without the root."""
        return sorted("/" + os.path.relpath(path, self.root) for path in glob.glob(self.at(pattern)))

    def read(self, path):
        """Return the text of a file, "" where it cannot be read."""
        try:
            with open(self.at(path), encoding="utf-8", errors="replace") as stream:
                return stream.read()
        except OSError:
            return ""

    def keys(self, path):
        """Return {key in lower case: value} of the lines key=value of a file."""
        return {key.strip().lower(): value.strip() for key, value in re.findall(r"(?m)^([^=\n]+)=(.*)$", self.read(path))}

    def space(self, path):
        """Return (MiB in all, MiB free for this user) of the file system of a path, zeros where there is no such path."""
        usage = shutil.disk_usage(path) if os.path.exists(path) else (0, 0, 0)
        return usage[0] // 2 ** 20, usage[2] // 2 ** 20

    def run(self, *command, seconds=PROGRAM_SECONDS):
        """Return (exit status, output) of a program: None where it is not there, 124 where it did not end in time. One that
        hangs in a driver cannot always be killed, so it is not waited for."""
        with tempfile.TemporaryFile() as stream:
            try:
                child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
                                         start_new_session=True, env=dict(self.environ, TORCH_DEVICE_BACKEND_AUTOLOAD="0"))
                status = child.wait(seconds)
            except OSError:
                return None, ""
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                return 124, "no answer within %d s" % seconds
            stream.seek(0)
            return status, stream.read().decode("utf-8", "replace")

    def probe(self, module):
        """Import a module in a child and return what probe.py says of it: {} where it is not installed, else at least "version"
        ("" where that is not known), and "error", one line, where the import fails."""
        if module != "torch_npu" and importlib.util.find_spec(module) is None:  # the plug-in can be built in
            return {}
        if module not in self._facts:
            script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "probe.py")
            status, text = self.run(sys.executable, script, module, seconds=IMPORT_SECONDS)
            answers = [line[len(ANSWER):] for line in text.splitlines() if line.startswith(ANSWER)]
            end = text if status == 124 else "its import ends Python with status %s" % status  # -11: signal 11
            self._facts[module] = json.loads(answers[-1]) if answers else {"error": end}
            if self._facts[module]:
                self._facts[module].setdefault("version", installed_version(module))
        return self._facts[module]


def installed_version(module):
    """Return the version that the name of the module's .dist-info or .egg-info folder ends with, "" where there is none: that
    needs no import, and importlib.metadata is not in Python 3.7."""
    name = re.compile(r"%s-([^-]+?)(-py[\d.]+)?\.(dist|egg)-info$" % module, re.IGNORECASE)
    entries = [entry for folder in sys.path if os.path.isdir(folder) for entry in os.listdir(folder)]
    return next((found.group(1) for found in map(name.match, entries) if found), "")


def brief(text, width=74):
    """Return a library's message as one line of at most `width` characters, without the folders of the files that it names."""
    text = re.sub(r"(?<![\w.:/])/\S*/(?=\S)", "", (text.strip().splitlines() or [""])[0])
    return text if len(text) <= width else text[:width - 3] + "..."

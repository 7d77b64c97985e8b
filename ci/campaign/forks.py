"""A server that runs Python programs in forks of one interpreter, which has the large libraries already: 0.2 s instead of 4 s.

A folder with a stand-in `python3` goes first on a script's PATH; the stand-in hands its command line, folder, environment and
streams over and waits for the status. What it does not know (`-c`, common/run.py, which imports no library) it leaves to the
interpreter itself. Signals do not reach the programs: this is for trials that send none.
"""
import atexit
import contextlib
import importlib
import importlib.util
import io
import json
import multiprocessing.process
import os
import resource
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import traceback

LIBRARIES = ("numpy", "PIL.Image", "cv2", "yaml", "yacs.config", "torch", "torch.distributed", "torch.multiprocessing",
             "torchvision", "torchvision.transforms", "torchvision.datasets")
MEMORY = 8 << 30  # bytes that a program may have: an absurd size may not take the machine's

STAND_IN = """import json, os, signal, socket, sys
words = sys.argv[1:]
if words[:1] == ["-u"]:
    words = words[1:]
if not words or words[0].startswith("-") or words[0].endswith("common/run.py"):
    os.execv({python!r}, [{python!r}] + sys.argv[1:])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    asked = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
    streams = [number for number in (0, 1, 2) if os.path.exists("/proc/self/fd/%d" % number)]
    socket.send_fds(server, [len(asked).to_bytes(8, "big")], streams)
    server.sendall(asked)
    status = int(server.recv(16) or 1)
if status < 0:
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


class Forks(object):
    """The server, in `environment` or in this process's, and `path`, the folder of the stand-in. To be closed."""

    def __init__(self, folder, environment=os.environ):
        self.path = os.path.join(folder, "forks")
        os.makedirs(self.path, exist_ok=True)
        address = os.path.join(self.path, "socket")
        with contextlib.suppress(FileNotFoundError):
            os.remove(address)
        program = os.path.join(self.path, "stand_in.py")
        with open(program, "w") as stream:
            stream.write(STAND_IN.format(python=sys.executable, address=address))
        for name in ("python3", "python"):
            with open(os.path.join(self.path, name), "w") as stream:  # a first line #!PYTHON may hold no blank
                stream.write('#!/bin/sh\nexec %s -IS %s "$@"\n' % (shlex.quote(sys.executable), shlex.quote(program)))
            os.chmod(stream.name, 0o755)
        self._server = subprocess.Popen([sys.executable, "-u", os.path.abspath(__file__), address], stdout=subprocess.PIPE,
                                        env=dict(environment, OMP_NUM_THREADS="1", TORCH_DEVICE_BACKEND_AUTOLOAD="0"))
        assert self._server.stdout.readline() == b"ready\n", "the server of forks did not start"

    def close(self):
        """End the server."""
        self._server.terminate()
        self._server.wait()
        self._server.stdout.close()


def serve(address):
    """Answer stand-ins at the socket `address` for ever."""
    for name in LIBRARIES:
        with contextlib.suppress(Exception):  # whoever needs it will say that it is not there
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen(64)
    print("ready")
    while os.getppid() != 1:
        if select.select([server], [], [], 5)[0]:
            client = server.accept()[0]
            if os.fork() == 0:
                server.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _answer(client)
            client.close()


def _answer(client):
    """Run what the client asks for, tell it the status, and end; with the client the program ends too."""
    head, streams = socket.recv_fds(client, 8, 3)[:2]
    size = int.from_bytes(head, "big")
    asked = b""
    while len(asked) < size:
        asked += client.recv(size - len(asked))
    program = os.fork()
    if program == 0:
        client.close()
        os.setsid()
        _become(streams, *json.loads(asked.decode()))
    for number in streams:
        os.close(number)
    while True:
        if select.select([client], [], [], 0.02)[0]:  # nothing more is said: the client has ended
            os.killpg(program, signal.SIGKILL)
        ended, status = os.waitpid(program, os.WNOHANG)
        if ended:
            with contextlib.suppress(OSError):
                os.killpg(program, signal.SIGKILL)
            with contextlib.suppress(OSError):
                client.sendall(str(-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)).encode())
            os._exit(0)


def _become(streams, words, folder, environment):
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    multiprocessing.process.ORIGINAL_DIR = folder  # where spawned ranks look for the program
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.stdout = io.TextIOWrapper(open(1, "wb", 0, closefd=False), write_through=True)
    sys.stderr = io.TextIOWrapper(open(2, "wb", 0, closefd=False), write_through=True, errors="backslashreplace")
    sys.argv, sys.path[0] = words, os.path.dirname(os.path.abspath(words[0]))
    sys.path[1:1] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    sys.modules.pop("sitecustomize", None)
    status = 0
    try:
        if importlib.util.find_spec("sitecustomize"):  # as at the start of an interpreter: this may be another one
            importlib.import_module("sitecustomize")
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            sys.stderr.write(end.code + "\n")
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1])

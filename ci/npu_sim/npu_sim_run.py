"""Runs a command on simulated NPUs: it and its child processes find the simulator as "torch_npu", in strict mode.

usage: npu-sim run [--require-npu | --no-require-npu] COMMAND [ARGUMENT ...]
       (without installation: ci/npu_sim/run ...)
example: npu-sim run python train.py --device npu

--require-npu: fail, with status 1, where no process of the command has used an NPU. This is the default for pytest, and
    where the environment has CI (as hosted runners set it); NPU_SIM_REQUIRE=1 or 0 says it, too.
environment: NPU_SIM_DEVICE_COUNT (8), NPU_SIM_STRICT (error), NPU_SIM_LIBRARIES, NPU_SIM_MEMORY_GIB (64),
    NPU_SIM_TRANSFER (0), NPU_SIM_APEX (0), NPU_SIM_CLOCK (0), NPU_SIM_CACHE, NPU_SIM_REPORT and others: README.md
"""

import os
import signal
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
FLAGS = {"--require-npu": True, "--no-require-npu": False}


def console():
    """The console script `npu-sim`; returns its exit status."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["run"]:
        real = real_torch_npu()
        if real:
            print("npu_sim: " + real, file=sys.stderr)
        return 1 if real else main(arguments[1:])
    print(__doc__.strip())
    return 0 if arguments in (["-h"], ["--help"]) else 2


def main(arguments):
    """Run the command that the arguments say; return its exit status."""
    flag = FLAGS[arguments.pop(0)] if arguments and arguments[0] in FLAGS else None
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0 if arguments else 2
    prepare(os.environ)
    try:
        if flag or (flag is None and required_by_default(arguments)):
            return run_and_require(arguments)
        os.execvp(arguments[0], arguments)
    except OSError as error:
        print("npu_sim: %s: %s" % (arguments[0], error.strerror), file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126


def prepare(environment):
    """Make processes with this environment find the simulator, in strict mode."""
    stand_ins = [os.path.join(HERE, "stand_ins")] if environment.get("NPU_SIM_APEX", "0") not in ("", "0") else []
    earlier = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    environment["PYTHONPATH"] = os.pathsep.join(stand_ins + [HERE] + earlier)
    environment.setdefault("NPU_SIM_STRICT", "error")


def real_torch_npu():
    """None, or one line about a real torch_npu that this Python has, whose place the simulator does not take."""
    import importlib.metadata  # Python 3.8: `run` itself needs none

    for found in importlib.metadata.distributions(name="torch_npu"):
        if "+sim" not in found.version and os.path.isdir(str(found.locate_file("torch_npu"))):
            return "torch_npu %s is installed in %s; the simulated NPU does not take its place, use an environment without it" % (
                found.version, found.locate_file(""))
    return None


def required_by_default(arguments):
    """Whether a command that uses no NPU has failed, where no flag says so."""
    setting = os.environ.get("NPU_SIM_REQUIRE")
    if setting:
        return setting != "0"
    pytest = os.path.basename(arguments[0]) in ("pytest", "py.test") or arguments[1:3] == ["-m", "pytest"]
    return pytest or os.environ.get("CI", "").lower() not in ("", "0", "false")


def run_and_require(command):
    """Run a command whose processes leave their ids in a file when they use an NPU; return its status, 1 where none has."""
    outer = os.environ.get("NPU_SIM_USED")  # of a `run` around this one
    with tempfile.NamedTemporaryFile("r", prefix="npu_sim_") as used:
        status = wait_for(subprocess.Popen(command, env=dict(os.environ, NPU_SIM_USED=used.name)))
        ids = used.read()
    if ids and outer:
        with open(outer, "a") as handle:
            handle.write(ids)
    if status < 0:
        end_by(-status)
    if status == 0 and not ids:
        print("npu_sim: the command ended with 0, but none of its processes used an NPU (--no-require-npu lets that pass)",
              file=sys.stderr)
        return 1
    return status


def wait_for(process):
    """Wait for a process, hand on signals to it, and return its status, negative where a signal has ended it."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda received, _: received != signal.SIGINT and process.send_signal(received))
    return process.wait()  # Ctrl-C goes to the whole group of processes: the command has had it, too


def end_by(number):
    """End by a signal, as the command has."""
    if number != signal.SIGKILL:  # which nobody can handle
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)

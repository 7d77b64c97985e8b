"""What waits says so, and ends; a rank that is killed, or that has no memory left, is one line and the right status."""
import faulthandler
import multiprocessing
import os
import signal
import subprocess
import time

import pytest
import torch

import npu_sim
from common import cli, distributed, meters, spawn, watchdog
from conftest import CI, environment, running_in, script_command, wait_until
from test_genet_data import write_cifar

LAYOUT = {ranks: distributed.layout("cpu", range(ranks)) for ranks in (1, 2)}
ONE_RANK = distributed.Rank(0, 1, 0, torch.device("cpu"))
HERE = os.getpid()


# --- what a rank does, and for how long -------------------------------------------------------------------------------

@pytest.fixture
def board():
    """A board on which this process writes."""
    entries = [watchdog.BEFORE]
    watchdog.mark.move_to(entries, 0)
    yield entries
    watchdog.mark.move_to([watchdog.BEFORE], 0)


def looks(watch, number):
    """Return what so many looks say."""
    return [watch.look() for _ in range(number)]


def test_a_stall_ends_after_so_many_looks(board, capfd):
    """Once a step is done, a wait is said every 30 s, and the line that ends the run names rank, phase and option; any turn of the
    loop begins the count anew."""
    watch = watchdog.Watch(board, 3, [HERE], 40, LAYOUT[1])
    clock = meters.Clock(torch.device("cpu"), 4)

    def batches():
        yield
        assert looks(watch, 20) == [None] * 20
        yield
        assert looks(watch, 40) == [None] * 40

    for _ in clock.over(batches()):
        clock.lap(1)
    said = capfd.readouterr().out.splitlines()
    assert len(said) == 1 and said[0].startswith("rank 3 waiting for data, since ") and said[0].endswith(" (30 s)")
    assert watch.look().endswith(" (40 s): ended by --stall_timeout=40; --resume goes on")


@pytest.mark.parametrize("where", ["before", "first step", "between", "off"])
def test_what_may_take_long(board, where, capfd):
    """Before the first step of a pass is done (it compiles; other ranks are late) and between two passes, only half an hour ends a
    run, and with --stall_timeout=0 nothing; it is said all the same."""
    watch = watchdog.Watch(board, 0, [HERE], 0 if where == "off" else 40, LAYOUT[1])
    clock = meters.Clock(torch.device("cpu"), 4)
    steps = clock.over([1, 2])
    if where != "before":
        next(steps)
    if where in ("between", "off"):
        clock.lap(1)
    if where == "between":
        clock.stop()
    assert looks(watch, 100) == [None] * 100
    assert len(capfd.readouterr().out.splitlines()) == 3
    assert (looks(watch, 1701)[-1] is None) == (where == "off")


def test_saving_counts_between_passes_too(board):
    """The end of an epoch is saved where no step is taken: a mount that is gone ends the run there as well."""
    watch = watchdog.Watch(board, 0, [HERE], 5, LAYOUT[1])
    with watchdog.mark.within(watchdog.SAVING):
        assert looks(watch, 6)[-1].startswith("rank 0 saving, since")


def test_all_that_stand_still_are_named(board):
    """Of two ranks, one waits for data and the other for it; one that has just moved is left out."""
    watchdog.mark.enter(watchdog.DATA)
    watchdog.mark.is_steady = True
    watchdog.mark.enter(watchdog.DATA)
    entries = [board[0], 8 | watchdog.STEP, 8 | watchdog.STEP]
    asleep = subprocess.Popen(["sleep", "60"])
    wait_until(lambda: state(asleep.pid) == "S")
    watch = watchdog.Watch(entries, 4, [HERE, asleep.pid, HERE], 6, LAYOUT[2])
    for _ in range(6):
        assert watch.look() is None
        entries[2] += 16
    assert watch.look().startswith("rank 4 waiting for data; rank 5 in a collective, since ")
    asleep.kill()
    asleep.wait()


@pytest.mark.parametrize("device, ranks, words", [
    ("npu", 1, "in the device,"), ("cuda", 2, "in the device or in a collective,"), ("cpu", 1, "computing,")])
def test_words_of_a_step(device, ranks, words):
    """On a device the host waits for that; with several ranks what it waits for there may be another one."""
    entries = [8 | watchdog.STEP]
    watch = watchdog.Watch(entries, 0, [HERE], 2, LAYOUT[ranks]._replace(device_type=device))
    assert looks(watch, 3)[-1].startswith("rank 0 " + words)


def test_who_waits_for_a_device_that_hangs_is_left_out(board, monkeypatch):
    """Of two ranks in a step, the device of one still does other work: that rank waits for the other one, which is named alone. Where all
    do, or none, all are."""
    monkeypatch.setattr(watchdog, "_PATIENCE", 1)
    layout = LAYOUT[2]._replace(device_type="npu")
    entries = [8 | watchdog.STEP, 8 | watchdog.STEP]
    watchdog.mark.move_to(entries, 0)
    watchdog.mark.enter(watchdog.STEP)
    for answer, said in ((True, "rank 1 in the device, since"), (False, "rank 0 in the device or in a collective; rank 1 in")):
        entries[:] = [entry & ~watchdog._ANSWERS | 8 for entry in entries]
        watch = watchdog.Watch(entries, 0, [HERE, HERE], 3, layout)
        assert watch.look() is None
        asked = []
        with watchdog.over_device(lambda: asked.append(1) or answer):
            wait_until(lambda: asked and (not answer or entries[0] & watchdog._ANSWERS))
        assert looks(watch, 3)[-1].startswith(said)
    entries[:] = [entry | watchdog._ANSWERS for entry in entries]
    assert looks(watchdog.Watch(entries, 0, [HERE, HERE], 3, layout), 4)[-1].startswith("rank 0 in the device or in a collective; rank 1 in")


def state(pid):
    return watchdog._parent_and_state(pid)[1]


def test_a_stopped_process_is_found_before_the_first_step(board):
    """SIGSTOP of a rank, or of a loader process of it, is named with what wakes it, and ends the run wherever it was."""
    child = subprocess.Popen(["sleep", "60"])
    child.send_signal(signal.SIGSTOP)
    wait_until(lambda: state(child.pid) == "T")
    for pid in (child.pid, HERE):
        line = looks(watchdog.Watch(board, 0, [pid], 3, LAYOUT[1]), 4)[-1]
        assert line.startswith("rank 0 before its first step (process %d is stopped; kill -CONT %d wakes it), since " % (child.pid, child.pid))
    child.kill()
    child.wait()


def test_a_program_that_is_stopped():
    """What run.py starts cannot speak when it is stopped: run.py ends it, but not one that goes on."""
    child = subprocess.Popen(["sleep", "60"])
    ended = []
    with watchdog.over_program(child.pid, 1, ended.append):
        time.sleep(2.5)
        assert ended == []
        child.send_signal(signal.SIGSTOP)
        wait_until(lambda: ended)
    assert "process %d is stopped" % child.pid in ended[0]
    child.kill()
    child.wait()


# --- one line, and the right status -----------------------------------------------------------------------------------

NO_MEMORY = [  # what libraries say, the figure in it
    (RuntimeError("CUDA out of memory. Tried to allocate 2.50 GiB (GPU 0; 79.10 GiB total capacity; ..."), "2.50 GiB"),
    (RuntimeError("NPU out of memory. Tried to allocate 80 bytes (NPU 1; 64.00 GiB total capacity; ..."), "80 bytes"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:114] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
                  "4000 bytes. Error code 12 (Cannot allocate memory)"), "4000 bytes"),
    (MemoryError("Unable to allocate 1.46 TiB for an array with shape (9,) and data type uint8"), "1.46 TiB"),
    (MemoryError(), ""), (OSError(12, "Cannot allocate memory"), ""), (RuntimeError("CUDNN_STATUS_ALLOC_FAILED"), "")]


@pytest.mark.parametrize("error, figure", NO_MEMORY)
def test_no_memory_is_a_line(board, error, figure):
    """Before the first step a size is bad input (2); later a run stops (3). The line has the figure and says what takes less."""
    def work(*_):
        raise error

    for begun, kind in ((False, cli.UserError), (True, cli.TrainingStopped)):
        if begun:
            watchdog.mark.enter(watchdog.STEP)
        with pytest.raises(kind, match="rank 0 is out of memory on cpu") as raised:
            distributed._run_rank(work, None, LAYOUT[1], 0)
        assert figure in str(raised.value) and "--batch_size" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), OSError(2, "No such file or directory"),
                                   ValueError("out of memory is not what this is about")])
def test_other_errors_keep_their_traceback(error):
    """A mistake of the program is no lack of memory, and one rank alone loses no other."""
    assert not isinstance(error, (RuntimeError, OSError)) or distributed._reason(error, ONE_RANK) is None
    assert distributed._reason(RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"), ONE_RANK) is None


def test_a_lost_rank_is_a_line():
    """What a rank says of another one that is gone has no frames of C++ in it."""
    error = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3\nframe #0: x\nframe #1")
    reason = distributed._reason(error, ONE_RANK._replace(rank=1, world_size=2))
    assert isinstance(reason, cli.TrainingStopped) and spawn.LOST_RANK in str(reason) and "frame" not in str(reason)


class Ranks(object):
    """Processes that end, each after so many seconds, by a signal, or stay and say something."""

    def __init__(self, *endings):
        context = multiprocessing.get_context("fork")
        self.reader, self.writer = context.Pipe(duplex=False)

        def act(after, how):
            faulthandler.disable()  # pytest's: these deaths are wanted
            time.sleep(after)
            if not isinstance(how, tuple):
                os.kill(os.getpid(), how) if how else os._exit(0)
            self.writer.send(how)
            time.sleep(60)

        self.processes = [context.Process(target=act, args=ending) for ending in endings]
        for process in self.processes:
            process.start()

    def failure(self):
        """Return the status and the reason of the run."""
        try:
            return spawn.first_failure(self.processes, self.reader, lambda: None, 0)
        finally:
            for process in self.processes:
                process.kill()


LOST, CRASH, STOPPED = (3, "rank 0 " + spawn.LOST_RANK), (1, "rank 0:\nTraceback"), (3, "the loss is nan")


@pytest.mark.parametrize("endings, status, words", [
    ([(0, LOST), (0.3, signal.SIGKILL)], 137, "rank 1 was killed by signal 9; where nobody sent it, memory ran out: "),
    ([(0, CRASH), (0.3, signal.SIGSEGV)], 139, "rank 1 was killed by signal 11"),
    ([(0, signal.SIGABRT), (0.5, signal.SIGKILL)], 137, "rank 1 was killed by signal 9"),
    ([(0, signal.SIGABRT), (0.5, LOST)], 134, "rank 0 was killed by signal 6"),
    ([(0, LOST), (0.3, CRASH)], 1, "Traceback"), ([(0, LOST), (0.5, STOPPED)], 3, "the loss is nan"),
    ([(0, LOST), (0, 0)], 3, spawn.LOST_RANK), ([(0, 0), (0.2, 0)], 0, "")])
def test_the_reason_counts_more_than_its_consequences(endings, status, words):
    """A peer's complaint, a crash or an abort over it may be here first: the rank that was killed, or has said why, is named."""
    seen, text = Ranks(*endings).failure()
    assert seen == status and words in text


# --- the scripts ------------------------------------------------------------------------------------------------------

NPU = {"PYTHONPATH": os.path.join(CI, "npu_sim"), "NPU_SIM_STRICT": "1"}
needs_npu = pytest.mark.skipif(npu_sim.skip_reason() is not None, reason=str(npu_sim.skip_reason()))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The options of a run of seconds."""
    folder = tmp_path_factory.mktemp("cifar")
    write_cifar(folder / "cifar-10-batches-py", per_batch=20)
    return ["--data_path=%s" % folder, "--workers=0", "--batch_size=8", "--depth=10", "--width=1"]


def trainer_and_ranks(process):
    """Return the ids of the program that a script has started, and of its ranks, or itself where it is the only one."""
    trainer, = children(process.pid)
    return trainer, [pid for pid in children(trainer) if "spawn_main" in open("/proc/%d/cmdline" % pid).read()] or [trainer]


def children(pid):
    return sorted(int(other) for other in os.listdir("/proc") if other.isdigit() and watchdog._parent_and_state(other)[0] == str(pid))


def start(script, out, *more, env=None):
    """Start a script of GENet on two ranks or one."""
    command = script_command("GENet/test/" + script, "--output_path=%s" % out, "--stall_timeout=10", *more)
    return subprocess.Popen(command + ["--device_list=0,1"] * ("8p" in script), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                            universal_newlines=True, env=env or environment())


HURT = [("train_full_8p.sh", signal.SIGSTOP, 3, ["rank 1 ", "is stopped", "--stall_timeout=10"]),
        ("train_full_1p.sh", signal.SIGSTOP, 3, ["is stopped", "--stall_timeout=10"]),
        ("train_full_1p.sh", signal.SIGKILL, 137, ["killed by signal 9", "memory"])]


@pytest.fixture(scope="module")
def hurt(tiny, tmp_path_factory):
    """[(status, stderr, output path)] of the runs of HURT, which wait for their time-outs together."""
    outs = [tmp_path_factory.mktemp("hurt") / "o" for _ in HURT]
    started = [start(row[0], out, "--device=cpu", "--train_epochs=10000", *tiny) for row, out in zip(HURT, outs)]
    try:
        for row, out, process in zip(HURT, outs, started):
            wait_until((out / "checkpoint.pth.tar").exists)
            os.kill(trainer_and_ranks(process)[1][-1], row[1])
        errors = [process.communicate(timeout=600)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, error, out) for process, error, out in zip(started, errors, outs)]


@pytest.mark.parametrize("number", range(len(HURT)))
def test_a_rank_that_is_stopped_or_killed(hurt, number):
    """One line on stderr, the status that a cluster's engine understands, no process left, and the log kept."""
    status, errors, out = hurt[number]
    assert status == HURT[number][2] and len(errors.splitlines()) == 1 and all(word in errors for word in HURT[number][3]), errors
    wait_until(lambda: not running_in(out))
    assert (out / "train_0.log").read_text().count("Epoch: [0]") > 0


FAULTS = [("train_full_8p.sh", "oom@step=3,rank=1", ["rank 1 is out of memory on npu:1", "bytes"]),
          ("train_full_1p.sh", "hang@step=3", ["rank 0 in the device, since", "--stall_timeout=10"]),
          ("train_full_8p.sh", "hang@step=3,rank=1", [": error: rank 1 in the device, since", "--stall_timeout=10"]),
          ("train_full_8p.sh", "collective_timeout@step=3,rank=1", ["rank 1 in the device or in a collective", "--stall_timeout=10"])]


@pytest.fixture(scope="module")
def faulty(tiny, tmp_path_factory):
    """[(status, stderr)] of the runs of FAULTS, which wait for their time-outs together."""
    started = [start(script, tmp_path_factory.mktemp("faulty"), "--device=npu", "--train_epochs=1", *tiny,
                     env=environment(NPU_SIM_FAULT=fault, **NPU)) for script, fault, _ in FAULTS]
    errors = [process.communicate(timeout=600)[1] for process in started]
    return [(process.returncode, error) for process, error in zip(started, errors)]


@needs_npu
@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_faults_of_an_npu(faulty, number):
    """A device that is full, hangs or does not come to a collective: status 3 and a line that names rank and phase."""
    status, said = faulty[number]
    errors = [line for line in said.splitlines() if "logger.cpp" not in line]  # PyTorch's own, of DistributedDataParallel
    assert status == 3 and len(errors) == 1 and all(word in errors[0] for word in FAULTS[number][2]), said

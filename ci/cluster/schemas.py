"""What the four operators take, as JSON schemas: written from their types, CRDs and webhooks, and stricter in that nothing is
accepted that is not named here. Of a pod there is what deploy/ uses; Kubernetes' own schemas judge pods under --slow."""
TEXT, NUMBER, FLAG = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0}
NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
LABELS = {"type": "object", "additionalProperties": TEXT}
QUANTITY = {"anyOf": [COUNT, {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?$"}]}
RESTARTS = {"enum": ["Always", "OnFailure", "Never", "ExitCode"]}


def record(required="", **fields):
    """Return the schema of an object that has these fields and no other; `required`: the names of those that must be there."""
    return {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": False}


def array(items, least=0):
    """Return the schema of a list of `items`."""
    return {"type": "array", "items": items, "minItems": least}


def whole(kind, version, spec, name=NAME, labels=None):
    """Return the schema of an object of a kind."""
    metadata = record("name" + (" labels" if labels else ""), name=name, namespace=NAME, labels=labels or LABELS,
                      annotations=LABELS)
    return record("apiVersion kind metadata spec", apiVersion={"const": version}, kind={"const": kind}, metadata=metadata,
                  spec=spec)


# Devices have names with a slash, and are whole. (That limits are requests is for the test to see: a schema can't compare.)
_RESOURCES = {"type": "object", "properties": {"cpu": QUANTITY, "memory": QUANTITY}, "additionalProperties": False,
              "patternProperties": {r"^[a-z.]+/[A-Za-z0-9]+$": {"type": "integer", "minimum": 1}}}
RESOURCES = record("requests limits", requests=_RESOURCES, limits=_RESOURCES)
ENVIRONMENT = array(record("name", name=TEXT, value=TEXT, valueFrom={"type": "object"}))
_VOLUME = record("name", name=NAME, persistentVolumeClaim=record("claimName", claimName=NAME, readOnly=FLAG),
                 emptyDir=record(medium={"enum": ["", "Memory"]}, sizeLimit=QUANTITY),
                 hostPath=record("path", path=TEXT, type=TEXT))


def container(name, needs="name image command resources"):
    """Return the schema of the training's container, which has to have this name where the operator looks for it."""
    mount = record("name mountPath", name=NAME, mountPath=TEXT, readOnly=FLAG, subPath=TEXT)
    return record(needs, name={"const": name} if name else NAME, image={"type": "string", "minLength": 1}, workingDir=TEXT,
                  imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]}, command=array(TEXT, 1), args=array(TEXT),
                  env=ENVIRONMENT, resources=RESOURCES, volumeMounts=array(mount),
                  ports=array(record("containerPort", name=NAME, containerPort=NUMBER, protocol=TEXT)))


def template(name, labels=None, **more):
    """Return the schema of a pod template with a container `name`. `labels`: the schema of those that it must have."""
    spec = record("containers terminationGracePeriodSeconds", containers=array(container(name, **more), 1), volumes=array(_VOLUME),
                  terminationGracePeriodSeconds={"type": "integer", "minimum": 1}, nodeSelector=LABELS, hostNetwork=FLAG,
                  restartPolicy={"enum": ["Always", "OnFailure", "Never"]}, serviceAccountName=NAME,
                  tolerations=array({"type": "object"}))
    return record("spec metadata" if labels else "spec", metadata=record(labels=labels or LABELS, annotations=LABELS), spec=spec)


# --- Kubeflow's PyTorchJob v1 -------------------------------------------------------------------------------------------

_TORCH_REPLICAS = record("template", replicas=COUNT, restartPolicy=RESTARTS, template=template("pytorch"))
_ONE_TORCH_REPLICA = record("template", replicas={"const": 1}, restartPolicy=RESTARTS, template=template("pytorch"))
PYTORCHJOB = whole("PyTorchJob", "kubeflow.org/v1", record(
    "pytorchReplicaSpecs",
    nprocPerNode={"type": "string", "pattern": "^(auto|cpu|gpu|[1-9][0-9]*)$"},
    elasticPolicy=record(minReplicas=COUNT, maxReplicas=COUNT, maxRestarts=COUNT, rdzvPort=NUMBER, rdzvHost=TEXT, rdzvId=TEXT,
                         rdzvBackend={"enum": ["c10d", "etcd", "etcd-v2"]}, rdzvConf=array(record(key=TEXT, value=TEXT)),
                         standalone=FLAG),
    runPolicy=record(
        cleanPodPolicy={"enum": ["None", "Running", "All"]}, ttlSecondsAfterFinished=COUNT, activeDeadlineSeconds=COUNT,
        backoffLimit=COUNT, suspend=FLAG, managedBy={"enum": ["kubeflow.org/training-operator", "kueue.x-k8s.io/multikueue"]},
        schedulingPolicy=record(minAvailable=COUNT, queue=TEXT, priorityClass=TEXT, minResources=_RESOURCES,
                                scheduleTimeoutSeconds=COUNT)),
    pytorchReplicaSpecs=record("Master", Master=_ONE_TORCH_REPLICA, Worker=_TORCH_REPLICAS)))

# --- Kubeflow's TrainJob v2 ---------------------------------------------------------------------------------------------

_TRAINER_VERSION = "trainer.kubeflow.org/v1alpha1"
# The operator sets these itself, and refuses a job that does.
_TRAINER_ENVIRONMENT = dict(ENVIRONMENT, items=dict(ENVIRONMENT["items"], properties=dict(
    ENVIRONMENT["items"]["properties"],
    name={"not": {"enum": ["PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"]}})))
# Without numProcPerNode the ranks of a machine are counted by resources with gpu in their name: 1 a CPU where there is none.
_COUNTED = {"anyOf": [{"required": ["numProcPerNode"]}, {"properties": {"resourcesPerNode": {"properties": {"limits": {
    "propertyNames": {"not": {"pattern": "^huawei.com/"}}}}}}}]}
TRAINJOB = whole("TrainJob", _TRAINER_VERSION, record(
    "runtimeRef trainer",
    runtimeRef=record("name", name=NAME, kind={"enum": ["ClusterTrainingRuntime", "TrainingRuntime"]},
                      apiGroup={"const": "trainer.kubeflow.org"}),
    trainer=dict(record(image=TEXT, command=array(TEXT, 1), args=array(TEXT), env=_TRAINER_ENVIRONMENT, numNodes=COUNT,
                        numProcPerNode={"type": "integer", "minimum": 1}, resourcesPerNode=RESOURCES), **_COUNTED),
    suspend=FLAG, managedBy={"enum": ["trainer.kubeflow.org/trainjob-controller", "kueue.x-k8s.io/multikueue"]},
    activeDeadlineSeconds={"type": "integer", "minimum": 1}), name=dict(NAME, pattern="^[a-z]([-a-z0-9]*[a-z0-9])?$"))

_JOB = record("template", backoffLimit=COUNT, template=template("node", needs="name image"))
_STEP = "trainer.kubeflow.org/trainjob-ancestor-step"
_ANCESTOR = record(_STEP, **{_STEP: {"const": "trainer"}})
CLUSTERTRAININGRUNTIME = whole("ClusterTrainingRuntime", _TRAINER_VERSION, record(
    "mlPolicy template",
    mlPolicy=record("torch", numNodes=COUNT, torch=record()),
    podGroupPolicy=record(coscheduling=record(scheduleTimeoutSeconds=COUNT),
                          volcano=record(networkTopology=record(mode={"enum": ["hard", "soft"]}, highestTierAllowed=COUNT))),
    template=record("spec", spec=record(
        "replicatedJobs",
        failurePolicy=record(maxRestarts=COUNT, restartStrategy={"enum": ["Recreate", "BlockingRecreate", "InPlaceRestart"]}),
        replicatedJobs=array(record("name template", name={"const": "node"}, template=record(
            "metadata spec", metadata=record("labels", labels=_ANCESTOR), spec=_JOB)), 1)))),
    labels=record("trainer.kubeflow.org/framework", **{"trainer.kubeflow.org/framework": {"const": "torch"}}))

# --- Volcano's Job ------------------------------------------------------------------------------------------------------

_POLICIES = array(record(
    "action", event={"enum": ["*", "PodPending", "PodRunning", "PodFailed", "PodEvicted", "Unknown", "TaskCompleted", "TaskFailed",
                              "OutOfSync", "CommandIssued", "JobUpdated"]},
    action={"enum": ["AbortJob", "RestartJob", "RestartTask", "RestartPod", "RestartPartition", "TerminateJob", "CompleteJob",
                     "ResumeJob"]},
    exitCode=NUMBER, timeout=TEXT))
_PLUGINS = {"type": "object", "additionalProperties": False,
            "properties": {name: array(TEXT) for name in ("ssh", "env", "svc", "pytorch", "hcclrank")}}
_TASK = record("name template", name=NAME, replicas=COUNT, minAvailable=COUNT, maxRetry=COUNT, policies=_POLICIES,
               template=template(None))
# The plug-in pytorch sets nothing where no task has its master's name, which is "master" unless it is told another.
_TASKS = dict(array(_TASK, 1), contains={"properties": {"name": {"const": "master"}}})
VOLCANO = whole("Job", "batch.volcano.sh/v1alpha1", record(
    "tasks plugins schedulerName", minAvailable=COUNT, queue=TEXT, schedulerName={"const": "volcano"}, maxRetry=COUNT,
    priorityClassName=TEXT, ttlSecondsAfterFinished=COUNT, plugins=dict(_PLUGINS, required=["pytorch", "svc"]), policies=_POLICIES,
    tasks=_TASKS))

# --- MindCluster's AscendJob --------------------------------------------------------------------------------------------

_CHIP = {"type": "string", "pattern": "^ascend-(910|[a-z0-9]*b|npu)$"}
_POD_LABELS = {"type": "object", "properties": {"ring-controller.atlas": _CHIP}, "required": ["ring-controller.atlas"],
               "additionalProperties": TEXT}
_JOB_LABELS = record(
    "framework ring-controller.atlas",
    framework={"const": "pytorch"}, **{
        "ring-controller.atlas": _CHIP, "fault-scheduling": {"enum": ["grace", "force", "off"]},
        "fault-retry-times": {"type": "string", "pattern": "^(100|[1-9]?[0-9])$"}, "pod-rescheduling": {"enum": ["on", "off"]},
        "subHealthyStrategy": {"enum": ["ignore", "graceExit", "forceExit", "hotSwitch"]},
        "tor-affinity": {"enum": ["large-model-schema", "normal-schema", "null"]}})
_ASCEND_TEMPLATE = template("ascend", labels=_POD_LABELS)
_ASCEND_MASTER = record("template", replicas={"const": 1}, restartPolicy=RESTARTS, template=_ASCEND_TEMPLATE)
_ASCEND_WORKER = record("template", replicas={"type": "integer", "minimum": 0, "maximum": 20000}, restartPolicy=RESTARTS,
                        template=_ASCEND_TEMPLATE)
ASCENDJOB = whole("AscendJob", "mindxdl.gitee.com/v1", record(
    "replicaSpecs", schedulerName={"const": "volcano"}, successPolicy={"enum": ["", "AllWorkers"]},
    runPolicy=record(backoffLimit=COUNT, activeDeadlineSeconds=COUNT, ttlSecondsAfterFinished=COUNT, cleanPodPolicy=TEXT,
                     schedulingPolicy=record(minAvailable=COUNT, queue=TEXT, priorityClass=TEXT, minResources=_RESOURCES)),
    replicaSpecs=record("Master", Master=_ASCEND_MASTER, Worker=_ASCEND_WORKER)), labels=_JOB_LABELS)

OF_KIND = {schema["properties"]["kind"]["const"]: schema
           for schema in (PYTORCHJOB, TRAINJOB, CLUSTERTRAININGRUNTIME, VOLCANO, ASCENDJOB)}

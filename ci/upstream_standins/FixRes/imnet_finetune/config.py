from typing import NamedTuple

from imnet_resnet50_scratch.config import ClusterConfig  # noqa: F401


class TrainerConfig(NamedTuple):
    lr: float
    batch_per_gpu: int
    save_folder: str
    imnet_path: str
    architecture: str
    resnet_weight_path: str
    EfficientNet_models: str
    local_rank: int
    global_rank: int
    num_tasks: int
    job_id: str

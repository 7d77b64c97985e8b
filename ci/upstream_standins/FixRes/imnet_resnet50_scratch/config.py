from typing import NamedTuple


class ClusterConfig(NamedTuple):
    dist_backend: str
    dist_url: str


class TrainerConfig(NamedTuple):
    lr: float
    batch_per_gpu: int
    save_folder: str
    imnet_path: str
    local_rank: int
    global_rank: int
    num_tasks: int
    job_id: str

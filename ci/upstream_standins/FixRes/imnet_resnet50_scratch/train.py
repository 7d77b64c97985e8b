"""Upstream's names, one epoch on one device; what a Trainer of fine-tuning does otherwise is in the methods that it replaces."""
import os

import torch
import torchvision.models as models
from torchvision import datasets

from .samplers import RASampler


class TrainerState(object):
    def __init__(self, model, optimizer, lr_scheduler):
        self.model, self.optimizer, self.lr_scheduler = model, optimizer, lr_scheduler


class Trainer(object):
    def __init__(self, train_cfg, cluster_cfg):
        self._train_cfg, self._cluster_cfg = train_cfg, cluster_cfg

    def _setup_process_group(self):
        torch.cuda.set_device(self._train_cfg.local_rank)
        torch.distributed.init_process_group(backend="nccl", init_method=self._cluster_cfg.dist_url, world_size=1, rank=0)

    def network(self):
        images = datasets.ImageFolder(self._train_cfg.imnet_path + "/train", transform=None)
        len(RASampler(images, self._train_cfg.num_tasks, self._train_cfg.global_rank, len(images), 1))
        return models.resnet50()

    def _init_state(self):
        config, model = self._train_cfg, self.network()
        model.cuda(config.local_rank)
        model = torch.nn.parallel.DistributedDataParallel(model, device_ids=[config.local_rank], output_device=config.local_rank)
        rate = 8 * config.lr * config.batch_per_gpu * config.num_tasks / 512
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)
        self._state = TrainerState(model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=30))

    def set_mode(self):
        self._state.model.train()

    def evaluate(self):
        self._state.model.eval()
        with torch.no_grad():
            for images, labels in self._test_loader:
                torch.nn.CrossEntropyLoss()(self._state.model(images.cuda(0, non_blocking=True)), labels.cuda(0))

    def _train(self):
        self.set_mode()
        self._state.lr_scheduler.step(0)
        for images, labels in self._train_loader:
            loss = torch.nn.CrossEntropyLoss()(self._state.model(images.cuda(0)), labels.cuda(0))
            self._state.optimizer.zero_grad()
            loss.backward()
            self._state.optimizer.step()
        self.evaluate()
        folder = os.path.join(self._train_cfg.save_folder, self._train_cfg.job_id)
        os.makedirs(folder)
        for name in ("checkpoint.pth", "checkpoint_0.pth"):
            torch.save({"epoch": 0, "accuracy": 0.0, "model": self._state.model.state_dict(),
                        "optimizer": self._state.optimizer.state_dict(), "lr_scheduler": self._state.lr_scheduler.state_dict()},
                       os.path.join(folder, name))

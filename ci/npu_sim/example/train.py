"""A small training script of the usual shape, on an NPU or a CPU: `../run python train.py --device npu --ranks 2`.

It trains a residual network on random images for a few steps, on one or more ranks, and prints the loss of each step;
with --checkpoint it resumes from that file where it exists, and writes it at the end.
"""

import argparse
import os
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(x + self.bn(self.conv(x)))


def build_model(channels=8, classes=10):
    stem = nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
    return nn.Sequential(stem, Block(channels), Block(channels), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(channels, classes))


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("npu", "cpu"), default="npu")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--checkpoint")
    return parser.parse_args()


def pick_device(kind, rank):
    if kind == "cpu":
        return torch.device("cpu")
    import torch_npu  # noqa: F401  (registers torch.npu)

    device = torch.device("npu", rank)
    torch.npu.set_device(device)
    torch.npu.manual_seed_all(0)
    return device


def print_line(text):
    """In one piece: the ranks share one stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def train(rank, options):
    device = pick_device(options.device, rank)
    torch.manual_seed(0)
    model = build_model().to(device)
    if options.ranks > 1:
        dist.init_process_group("hccl" if device.type == "npu" else "gloo", rank=rank, world_size=options.ranks)
        model = DistributedDataParallel(model, device_ids=[rank] if device.type == "npu" else None)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    scaler = torch.amp.GradScaler(device.type, enabled=options.amp, init_scale=1024.0)
    if options.checkpoint and os.path.exists(options.checkpoint):
        state = torch.load(options.checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    criterion = nn.CrossEntropyLoss()
    data = torch.Generator().manual_seed(1 + rank)
    for step in range(options.steps):
        images, labels = torch.randn(8, 3, 16, 16, generator=data), torch.randint(0, 10, (8,), generator=data)
        images, labels = images.to(device), labels.to(device)
        with torch.autocast(device.type, dtype=torch.float16, enabled=options.amp):
            loss = criterion(model(images), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if rank == 0:
            print_line("step %d loss %.9f" % (step, loss.item()))
    if options.checkpoint and rank == 0:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, options.checkpoint)
    if device.type == "npu":
        torch.npu.synchronize()
        print_line("rank %d peak memory %d bytes" % (rank, torch.npu.max_memory_allocated()))
    if options.ranks > 1 and device.type == "npu":
        dist.destroy_process_group()
    elif options.ranks > 1:  # gloo's group may wait for ever for its network, and its threads abort a process that ends: end at once
        dist.barrier()
        os._exit(0)


def main():
    options = parse()
    if options.ranks == 1:
        return train(0, options)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29511")
    mp.spawn(train, (options,), nprocs=options.ranks)


if __name__ == "__main__":
    main()

"""A loop with Accelerate, on one rank or several: prepare, accumulation, mixed precision, gathered metrics, save and load.

usage: [torchrun ...] accelerate_loop.py FOLDER [no|fp16|bf16]
"""
import json
import sys

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

CLASSES = 4


def pictures(length, seed):
    """Noisy pictures whose colour is their class."""
    labels = torch.arange(length) % CLASSES
    noise = torch.randn(length, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return torch.utils.data.TensorDataset(noise + 2 * torch.eye(CLASSES, 3)[labels, :, None, None], labels)


def evaluate(accelerator, model, batches):
    """The accuracy over all ranks; each picture counts once."""
    model.eval()
    right = []
    for images, target in batches:
        with torch.no_grad():
            predicted = model(images).argmax(-1)
        predicted, target = accelerator.gather_for_metrics((predicted, target))
        right.append(predicted == target)
    right = torch.cat(right).cpu()
    return right.float().mean().item(), len(right)


def main(folder, precision="no"):
    """Train; return what the first rank prints."""
    accelerator = Accelerator(mixed_precision=precision, gradient_accumulation_steps=2)
    set_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(8, CLASSES))
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40 * accelerator.num_processes)
    train = torch.utils.data.DataLoader(pictures(128, 0), batch_size=8, shuffle=True, num_workers=2)
    val = torch.utils.data.DataLoader(pictures(36, 1), batch_size=8)
    model, optimizer, train, val, schedule = accelerator.prepare(model, optimizer, train, val, schedule)
    losses = []
    for _ in range(5):
        model.train()
        for images, target in train:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(images), target)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        losses.append(accelerator.reduce(loss.detach(), "mean").item())
    accuracy, counted = evaluate(accelerator, model, val)
    accelerator.save_state(folder)
    accelerator.wait_for_everyone()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    accelerator.load_state(folder)
    again = evaluate(accelerator, model, val)[0]
    devices = accelerator.gather(torch.tensor([accelerator.device.index or 0], device=accelerator.device)).tolist()
    accelerator.print("result", json.dumps(dict(
        type=accelerator.device.type, devices=devices, ranks=accelerator.num_processes, losses=losses, accuracy=accuracy,
        again=again, counted=counted, backend=torch.distributed.get_backend() if torch.distributed.is_initialized() else None)))
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])

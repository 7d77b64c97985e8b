"""A small residual network and a short training, the same on every device."""

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        return torch.relu(self.main(x) + self.shortcut(x))


class Net(nn.Module):
    def __init__(self, width=8, dropout=0.0):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.MaxPool2d(2))
        self.body = nn.Sequential(Block(width, width), Block(width, 2 * width, 2))
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * width, 10))

    def forward(self, x):
        x = self.body(self.stem(x))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def sgd(parameters, **options):
    return torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=1e-4, nesterov=True, **options)


def train(device, steps=4, make_optimizer=sgd, dropout=0.0, amp=None, scaler=None):
    """Trains on one batch of 4 random 3x16x16 images. Returns (model, optimizer, last loss)."""
    torch.manual_seed(0)
    device = torch.device(device)
    model = Net(dropout=dropout).to(device)
    images = torch.randn(4, 3, 16, 16).to(device)
    labels = torch.randint(0, 10, (4,)).to(device)
    optimizer, criterion = make_optimizer(model.parameters()), nn.CrossEntropyLoss(label_smoothing=0.1)
    for _ in range(steps):
        with torch.autocast(device.type, dtype=amp or torch.bfloat16, enabled=amp is not None):
            loss = criterion(model(images), labels)
        optimizer.zero_grad()
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            scaler.step(optimizer)
            scaler.update()
    return model, optimizer, loss.item()


def largest_difference(a, b):
    """Over all parameters and buffers of two models, wherever they are."""
    pairs = zip(a.state_dict().values(), b.state_dict().values())
    return max((p.cpu().float() - q.cpu().float()).abs().max().item() for p, q in pairs)

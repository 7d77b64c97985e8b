"""Soft targets, the loss against them, and mixup."""
import torch
import torch.nn as nn
import torch.nn.functional as F


class SoftCrossEntropyLoss(nn.Module):
    """Cross entropy of logits (N, C) against target distributions (N, C): sum over classes, mean over samples."""

    def forward(self, logits, targets):
        return -(targets * F.log_softmax(logits, dim=1)).sum() / logits.shape[0]


def smooth_one_hot(labels, num_classes, smoothing, dtype=torch.float32):
    """Return (N, C) targets: smoothing / C everywhere, and 1 - smoothing more at the label."""
    targets = torch.full((labels.shape[0], num_classes), smoothing / num_classes, dtype=dtype, device=labels.device)
    return targets.scatter_(1, labels.long().unsqueeze(1), 1.0 - smoothing + smoothing / num_classes)


def draw_mixup(batch_size, alpha, rng):
    """Return (weight of a sample itself, index of the partner of each): one Beta(alpha, alpha) draw, a permutation."""
    weight = rng.beta(alpha, alpha)
    return weight, torch.from_numpy(rng.permutation(batch_size))


def mixup(values, weight, partners):
    """Return weight * values + (1 - weight) * values of the partners (https://arxiv.org/abs/1710.09412)."""
    return values * weight + values[partners] * (1.0 - weight)

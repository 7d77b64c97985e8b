"""The operators of torch.nn.SyncBatchNorm, which have no CPU kernel to fall back on.

x, y and their gradients are (N, C, ...); mean, invstd and what belongs to them are (C,), one row per rank where
gathered; statistics are in float32.
"""

import torch


def _all_but_channels(x):
    return [d for d in range(x.dim()) if d != 1]


def _per_channel(v, x):
    return v.view([1, -1] + [1] * (x.dim() - 2))


def batch_norm_stats(x, eps):
    x, dims = x.float(), _all_but_channels(x)
    return x.mean(dims), torch.rsqrt(x.var(dims, unbiased=False) + eps)


def batch_norm_elemt(x, weight, bias, mean, invstd, eps):
    y = (x.float() - _per_channel(mean, x)) * _per_channel(invstd, x)
    if weight is not None:
        y = y * _per_channel(weight, x) + _per_channel(bias, x)
    return y.to(x.dtype)


def batch_norm_gather_stats_with_counts(x, mean, invstd, running_mean, running_var, momentum, eps, counts):
    counts = counts.float().view(-1, 1)
    total = counts.sum()
    joint_mean = (mean * counts).sum(0) / total
    joint_var = ((invstd.pow(-2) - eps + mean.pow(2)) * counts).sum(0) / total - joint_mean.pow(2)
    if running_mean is not None:
        running_mean.mul_(1 - momentum).add_(joint_mean.to(running_mean.dtype), alpha=momentum)
    if running_var is not None:
        unbiased = joint_var * total / (total - 1)
        running_var.mul_(1 - momentum).add_(unbiased.to(running_var.dtype) * momentum)
    return joint_mean, torch.rsqrt(joint_var + eps)


def batch_norm_backward_reduce(grad, x, mean, invstd, weight, input_g, weight_g, bias_g):
    grad, dims = grad.float(), _all_but_channels(x)
    sum_dy = grad.sum(dims)
    sum_dy_xmu = (grad * (x.float() - _per_channel(mean, x))).sum(dims)
    affine = weight is not None
    grad_weight = (sum_dy_xmu * invstd).to(weight.dtype) if affine and weight_g else None
    grad_bias = sum_dy.to(weight.dtype) if affine and bias_g else None
    return sum_dy, sum_dy_xmu, grad_weight, grad_bias


def batch_norm_backward_elemt(grad, x, mean, invstd, weight, sum_dy, sum_dy_xmu, counts):
    total = counts.sum().float()
    xmu = x.float() - _per_channel(mean, x)
    centred = grad.float() - _per_channel(sum_dy / total, x) - xmu * _per_channel(invstd.pow(2) * sum_dy_xmu / total, x)
    scale = invstd if weight is None else invstd * weight
    return (centred * _per_channel(scale, x)).to(grad.dtype)


_KERNELS = (batch_norm_stats, batch_norm_elemt, batch_norm_gather_stats_with_counts, batch_norm_backward_reduce,
            batch_norm_backward_elemt)
_library = None  # the registrations live as long as this object


def register():
    global _library
    _library = torch.library.Library("aten", "IMPL")
    for kernel in _KERNELS:
        _library.impl(kernel.__name__, kernel, "PrivateUse1")

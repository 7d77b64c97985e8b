"""What is done to a network from outside: counting its operations, precise BN statistics, when its average is updated."""
import torch
import torch.distributed as dist
import torch.nn as nn

from common.network import update_average
from pycls.core.config import cfg, step_batch_size


def complexity(model, im_size):
    """Return {flops, params, acts} for one picture of im_size: multiply-adds and outputs of convolutions and linears.

    Counted as pycls does: a bias adds one operation for each output channel; BN, activations, pooling and sums add none.
    """
    counted = {"flops": 0, "acts": 0, "params": sum(p.numel() for p in model.parameters())}

    def count(module, inputs, output):
        positions = output.shape[2] * output.shape[3] if output.dim() == 4 else 1
        bias = module.bias.numel() if module.bias is not None else 0
        counted["flops"] += module.weight.numel() * positions + bias
        counted["acts"] += output.numel()

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    was_training = model.training
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, im_size, im_size, device=next(model.parameters()).device))
    model.train(was_training)
    for handle in handles:
        handle.remove()
    return counted


def precise_bn_batches(loader_length):
    """Return how many batches of the train loader the precise statistics are made from: at least one."""
    wanted = cfg.BN.NUM_SAMPLES_PRECISE // step_batch_size() // cfg.NUM_GPUS
    return max(1, min(wanted, loader_length))


@torch.no_grad()
def compute_precise_bn_stats(model, inputs):
    """Replace the running statistics of every BN by their mean over batches, and over the ranks.

    `inputs` yields the batches on the device of `model`; the variances are the unbiased ones of each batch. The model's mode
    and the BNs' momenta are put back. Raises ValueError when not one batch comes.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta, was_training = [bn.momentum for bn in norms], model.training
    model.train()
    for bn in norms:
        bn.momentum = 1.0  # so that the running statistics are those of the last batch alone
    means, variances = _mean_statistics(model, norms, inputs)
    for bn, momentum, mean, variance in zip(norms, momenta, means, variances):
        bn.momentum = momentum
        bn.running_mean.copy_(mean)
        bn.running_var.copy_(variance)
    model.train(was_training)


def _mean_statistics(model, norms, inputs):
    totals, seen = 0.0, 0
    for batch in inputs:
        model(batch)
        totals = totals + torch.cat([bn.running_mean for bn in norms] + [bn.running_var for bn in norms])
        seen += 1
    if seen == 0:
        raise ValueError("no batch came to compute BN statistics from")
    sizes = [bn.num_features for bn in norms]
    pieces = mean_over_ranks(totals / seen).split(sizes + sizes)
    return pieces[:len(norms)], pieces[len(norms):]


def count_batches(model, count):
    """Add `count` to the batches that every BN has seen."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked += count


def mean_over_ranks(tensor):
    """Return the mean of `tensor` over all ranks (a collective where there are several)."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor)
        tensor = tensor / dist.get_world_size()
    return tensor


def ema_alpha(epoch):
    """Return the weight of the newest weights in one update of the moving average: 1 during warm-up."""
    if epoch < cfg.OPTIM.WARMUP_EPOCHS:
        return 1.0
    adjust = cfg.TRAIN.BATCH_SIZE / cfg.OPTIM.MAX_EPOCH * cfg.OPTIM.EMA_UPDATE_PERIOD
    return min(1.0, cfg.OPTIM.EMA_ALPHA * adjust)


def update_ema(ema, network, update, epoch):
    """After every OPTIM.EMA_UPDATE_PERIOD-th update of an epoch: ema = ema * (1 - a) + network * a. As in newer pycls."""
    if ema is not None and update % cfg.OPTIM.EMA_UPDATE_PERIOD == 0:
        update_average(ema, network, ema_alpha(epoch))

"""Little things that are done to an optimizer and to weights."""
import torch


def set_rate(optimizer, rate):
    """Give every parameter group the learning rate `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def update_average(average, newest, share):
    """Move the network `average` by `share` (0 to 1) towards the network `newest`: parameters and buffers alike; counters
    (integers) are copied."""
    for averaged, value in zip(average.state_dict().values(), newest.state_dict().values()):
        if averaged.is_floating_point():
            averaged.mul_(1.0 - share).add_(value.to(averaged.dtype) * share)
        else:
            averaged.copy_(value)

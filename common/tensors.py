"""One operator for many tensors, where PyTorch has it (foreach), and one for each elsewhere."""
import torch


def copy_(targets, sources):
    """Copy each source into its target, of the same shape and of any dtype."""
    _each("_foreach_copy_", targets, sources)


def add_(targets, sources):
    """Add each source to its target; `sources` may be one number for all."""
    _each("_foreach_add_", targets, sources)


def multiply_(targets, factor):
    """Multiply each target by a number."""
    _each("_foreach_mul_", targets, factor)


def lerp_(targets, sources, share):
    """Move each target by `share` (0 to 1) towards its source, of the same dtype."""
    _each("_foreach_lerp_", targets, sources, share)


def _each(name, targets, sources, *more):
    if not targets:
        return
    if hasattr(torch, "_foreach_copy_"):  # PyTorch 2.1: before, they took tensors of one type alone
        getattr(torch, name)(targets, sources, *more)
        return
    alone = getattr(torch.Tensor, name[len("_foreach_"):])
    for number, target in enumerate(targets):
        alone(target, sources[number] if isinstance(sources, list) else sources, *more)

"""One operator for many tensors, where PyTorch has it (foreach), and one for each elsewhere."""
import torch


def each(operator, targets, sources, *more):
    """Do to each of `targets` what torch.Tensor's method `operator` does, such as "copy_", with its element of the list `sources`, or with
    one number for all; `more` are the method's further arguments. copy_ and add_ take a source of any dtype."""
    if targets and hasattr(torch, "_foreach_copy_"):  # PyTorch 2.1: before, they took tensors of one type alone
        getattr(torch, "_foreach_" + operator)(targets, sources, *more)
        return
    for number, target in enumerate(targets):
        getattr(target, operator)(sources[number] if isinstance(sources, list) else sources, *more)

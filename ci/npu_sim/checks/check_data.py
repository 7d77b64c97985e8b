"""The input pipeline: pinned memory, loader processes and forks."""

import multiprocessing

import pytest
import torch
import torch_npu  # noqa: F401  (registers torch.npu)
from torch.utils.data import DataLoader, Dataset, TensorDataset

NPU = "npu:0"


def test_pinning_for_cuda_is_refused():
    """A loader that names CUDA for pinning is refused in strict mode."""
    with pytest.raises(RuntimeError, match="pin_memory_device='cuda'.*check_data.py"):
        DataLoader(TensorDataset(torch.ones(2)), pin_memory=True, pin_memory_device="cuda")


class OnDevice(Dataset):
    """A mistake: samples are made on the device, in the loader's processes."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.ones(2, device=NPU)


def test_pinned_memory():
    """Host tensors can be pinned, views of them are pinned, NPU tensors cannot be."""
    pinned = torch.arange(4.0).pin_memory()
    assert pinned.is_pinned() and pinned[1:].is_pinned() and torch.empty(3, pin_memory=True).is_pinned()
    assert not torch.ones(2).is_pinned()
    assert pinned.to(NPU, non_blocking=True).tolist() == [0, 1, 2, 3]
    with pytest.raises(RuntimeError, match="pinned"):
        torch.ones(2, device=NPU).pin_memory()


@pytest.mark.parametrize("workers", [0, 2])
def test_loader(workers):
    """Loaders pin what they give out, from forked workers too, in a process that has used the device."""
    torch.ones(1, device=NPU)
    data = TensorDataset(torch.arange(20.0), torch.arange(20))
    seen = 0
    for images, labels in DataLoader(data, 5, shuffle=True, num_workers=workers, pin_memory=True, persistent_workers=workers > 0):
        assert images.is_pinned() and labels.is_pinned()
        seen += images.to(NPU, non_blocking=True).sum().item()
    assert seen == sum(range(20))


def test_loader_that_uses_the_device():
    """A data set that touches the device in a forked worker fails as on the device."""
    torch.ones(1, device=NPU)
    with pytest.raises(RuntimeError, match="forked subprocess"):
        next(iter(DataLoader(OnDevice(), num_workers=1)))


def use_device(queue):
    try:
        torch.ones(2, device=NPU)
        queue.put("ran")
    except RuntimeError as error:
        queue.put(str(error))


def test_fork():
    """A forked child of a process that has used the device cannot use it."""
    torch.ones(2, device=NPU)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=use_device, args=(queue,))
    child.start()
    assert "you must use the 'spawn' start method" in queue.get(timeout=60)
    child.join()


def test_sharing_between_processes_is_refused():
    """Passing NPU tensors between processes is not simulated, and says so instead of sending garbage."""
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    with pytest.raises((NotImplementedError, RuntimeError)):
        queue.put(torch.ones(2, device=NPU))

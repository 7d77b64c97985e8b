"""From a data set to normalised batches on the device.

Loader processes write pictures where the trainer reads them: into slots of memory that all of them share, so that a picture is
copied once and nothing is pickled. From there a batch goes as bytes, in the order in which it lies in memory, over pinned memory
to the device, which arranges and normalises it.
"""
import collections
import inspect
import itertools
import mmap
import os
import time
from operator import attrgetter

import numpy as np
import torch

from common import cli, device as devices, distributed, environment, ranges
from common.cli import UserError
from common.workers import start as start_workers

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _cpus():
    try:
        return environment.cpus(environment.number("LOCAL_WORLD_SIZE", 1, ranges.size))
    except UserError:  # launch.py says so, where a launcher counts
        return environment.cpus()


_CPUS = _cpus()  # now, as in workers.py
_MEASURED = 10  # batches of the start, from which it is said what the loader processes can do

_SLOTS = 3  # batches of each loader process: one that is in the making, one that is ready, one that is in use or is the next to do


class Loader(object):
    """Iterates (images, labels, unreadable files) over the batches of keys, pairs of integers, of a batch sampler.

    images: (N, 3, H, W), in memory (N, H, W, 3), of what `dataset.sample()` says each is; they are overwritten when the next
    batch is asked for. labels: int64 (N,). Where the data set's pictures come with a shift (a pair, as of EfficientNet-B3), a
    fourth entry: float32 (N, 3).
    """

    def __init__(self, dataset, batches, workers, tell=None):
        """Where this process may use fewer CPUs than the machine has, it has no more `workers` than those, and they stay there.
        `tell(line)` is called once, in trainings, with the images/s that they can reach. Raises UserError where there are no memory,
        processes or open files for them."""
        self.batch_sampler, self.dataset, self._rates = batches, dataset, []
        self._tell = tell if hasattr(batches, "global_batch") else None
        self.num_workers = min(workers, _CPUS) if _CPUS < (os.cpu_count() or 1) else workers
        sample, place = dataset.sample(), (max(1, self.num_workers) * _SLOTS, batches.batch_size)
        self._slots, self._keys = _shared_array(place + sample.shape, sample.dtype), _shared_array(place + (2,), np.dtype(np.int64))
        self._workers, self._waiting = start_workers(self.num_workers, self._fill), collections.deque()

    def __len__(self):
        return len(self.batch_sampler)

    def __iter__(self):
        for slot, labels, bad, shifts, seconds in self._filled():
            self._measure(len(labels) / seconds)
            images = torch.from_numpy(self._slots[slot, :len(labels)]).permute(0, 3, 1, 2)
            batch = images, torch.tensor(labels, dtype=torch.int64), bad
            yield batch + (torch.from_numpy(np.array(shifts)),) if shifts else batch

    def _filled(self):
        while self._waiting:  # of an iteration that was broken off
            self._waiting.popleft().receive()
        for number, keys in enumerate(self.batch_sampler):
            slot = number % len(self._slots)
            for worker in self._workers:
                worker.check()
            self._keys[slot, :len(keys)] = keys
            if self._workers:
                self._waiting.append(self._workers[number % self.num_workers])
                self._waiting[-1].send((slot, len(keys)))
            else:
                yield self._fill((slot, len(keys)))
            if len(self._waiting) == len(self._slots):
                yield self._waiting.popleft().receive()
        while self._waiting:
            yield self._waiting.popleft().receive()

    def _fill(self, task):
        """Return the slot that holds the pictures of its first so many keys now, labels, unreadable files, shifts, seconds."""
        slot, count = task
        start = time.perf_counter()
        labels, bad, shifts = [], [], []
        keys = self._keys[slot, :count].tolist()
        getattr(self.dataset, "expect", len)(keys)  # a packed data set reads ahead
        for key in keys:
            picture, label, messages = self.dataset[tuple(key)]
            bad += messages
            if picture is None:
                continue
            pixels, shift = picture if isinstance(picture, tuple) else (picture, None)
            if pixels.shape != self._slots.shape[2:]:
                raise ValueError("a picture of %s in a batch of pictures of %s" % (pixels.shape, self._slots.shape[2:]))
            self._slots[slot, len(labels)] = pixels
            labels.append(label)
            shifts += [] if shift is None else [shift]
        return slot, labels, bad, shifts, time.perf_counter() - start

    def _measure(self, rate):
        if self._tell and len(self._rates) < _MEASURED:
            self._rates.append(rate * max(1, self.num_workers))
            if len(self._rates) == _MEASURED:
                self._tell("input: up to %.0f images/s, loader processes: %d" % (sum(self._rates) / _MEASURED, self.num_workers))


def _shared_array(shape, dtype):
    # Anonymous memory, which forked processes share: /dev/shm, of which Docker gives 64 MiB, has nothing to do with it.
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    try:
        memory = mmap.mmap(-1, max(1, size))
    except (OSError, OverflowError, ValueError):
        raise UserError("no memory for %.1f GB of batches, %d in the making; take a smaller --batch_size, or fewer --workers"
                        % (size / 1e9, shape[0]))
    return np.frombuffer(memory, dtype, size // dtype.itemsize).reshape(shape)


def device_batches(dataset, batches, workers, rank, mean=IMAGENET_MEAN, std=IMAGENET_STD, skip_bad_images=False):
    """Return the DeviceBatches of an ImageFolder in the order of a batch sampler. `workers`: loader processes of this rank."""
    return DeviceBatches(Loader(dataset, batches, workers, rank.print), rank.device, mean, std, skip_bad_images)


class DeviceBatches(object):
    """Iterates a loader and gives (normalised (N, 3, H, W), int64 (N,)) on the device.

    Raises TrainingStopped at an unreadable image, unless `skip_bad_images`; then `bad_images` collects their names.
    """

    def __init__(self, source, device, mean=IMAGENET_MEAN, std=IMAGENET_STD, skip_bad_images=False):
        """`source`: as a Loader; the images as they lie in memory, or as a permutation of that."""
        self.source, self._device, self._skip_bad_images = source, device, skip_bad_images
        self._mean = 255 * torch.tensor(mean, device=device).view(1, -1, 1, 1)
        self._std = 255 * torch.tensor(std, device=device).view(1, -1, 1, 1)
        self._prefetch = Prefetcher(device)
        self.bad_images, self.classes = set(), list(getattr(getattr(source, "dataset", None), "classes", []))

    def __len__(self):
        """Return the steps of a whole epoch."""
        return len(self.source)

    images = property(attrgetter("source.batch_sampler.images"), doc="Images of the training set.")
    global_batch = property(attrgetter("source.batch_sampler.global_batch"), doc="Images whose gradients make one update, over all ranks.")
    step_images = property(attrgetter("source.batch_sampler.step_images"),
                           doc="Images of a step, over all ranks: fewer than `global_batch` where gradients are accumulated.")

    run_length = property(attrgetter("source.batch_sampler.run_length"), doc="Pictures that --shuffle_shards leaves side by side; 1: none.")

    def of_epoch(self, epoch, first_step=0):
        """Return an iterator over the training batches of an epoch from `first_step` on."""
        self.source.batch_sampler.set_epoch(epoch, first_step)
        return iter(self)

    def __iter__(self):
        return self._prefetch(self._readable(), self._finished)

    def _readable(self):
        for images, labels, bad, *shift in self.source:
            if bad and not self._skip_bad_images:
                raise cli.TrainingStopped("cannot read %s; --skip_bad_images goes on without such files" % bad[0])
            for message in set(bad) - self.bad_images:
                cli.print_line("skipped unreadable image " + message)
            self.bad_images.update(bad)
            if len(labels):
                yield [images, labels] + shift

    def count_bad(self, rank):
        """Return how many unreadable images all ranks have met (evaluation and training of a file count once each)."""
        return int(distributed.sum_over_ranks([len(self.bad_images)], rank)[0])

    def _finished(self, images, labels, shift=None):
        """Return what the network gets, and labels; `shift` (N, 3), of 255, is added to each image's channels first."""
        mean = self._mean if shift is None else self._mean - shift[:, :, None, None]
        images = images.contiguous(memory_format=devices.memory_format(self._device))  # as it lies there, but for an NPU
        return torch.sub(images, mean).div_(self._std), labels.clone()


class Prefetcher(object):
    """Gives batches on a device, of which the next one's copy runs on a stream of its own while the device computes.

    On a CPU it does nothing. The stream serves all epochs: memory of one belongs to it for ever.
    """

    def __init__(self, device):
        self._device, self._stream, self._free = device, None, None

    def __call__(self, batches, finish):
        """Yield `finish(*tensors on the device)` of each batch, a list of tensors of the host; its result may not be their memory."""
        if self._device.type == "cpu":
            yield from (finish(*batch) for batch in batches)
            return
        ahead = None
        for batch in itertools.chain(batches, [None]):  # None: the last one may arrive
            sent = batch and self._send(batch)
            if ahead:
                yield self._arrive(ahead, finish)
            ahead = sent

    def _send(self, batch):
        api = getattr(torch, self._device.type)
        self._stream = self._stream or api.Stream(device=self._device)
        with api.stream(self._stream):
            if self._free:  # the memory that the copy takes may be that of the batch before the last one
                self._stream.wait_event(self._free)
            return [_sent(tensor, self._device) for tensor in batch], self._stream.record_event()

    def _arrive(self, ahead, finish):
        tensors, event = ahead
        current = getattr(torch, self._device.type).current_stream(self._device)
        current.wait_event(event)
        finished = finish(*tensors)
        self._free = current.record_event()
        return finished


def _sent(tensor, device):
    """Return the tensor on the device, where it lies in memory as it does here: whatever else an NPU copies, it waits for."""
    if tensor.device.type == device.type:
        return tensor
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    copy = _pinned(tensor.permute(*order).contiguous(), device).to(device, non_blocking=True)
    return copy.permute(*[order.index(axis) for axis in range(len(order))])


_LOADER_OPTIONS = inspect.signature(torch.utils.data.DataLoader.__init__).parameters


def _pinned(tensor, device):
    # Between PyTorch 1.12 and 2.5 memory is pinned for CUDA unless another device is named; before, and after, nobody has to.
    named = device.type != "cuda" and "pin_memory_device" in _LOADER_OPTIONS and not hasattr(torch, "accelerator")
    return tensor.pin_memory(device.type) if named else tensor.pin_memory()

"""Batches of CIFAR: the whole split lies in memory as bytes, and a batch is cut out of it in a few array operations.

Upstream's pipeline for an image (pad 4, random 32x32 crop, random flip, [0, 1], normalise) is kept sample for sample;
no image goes through PIL. Batches stay uint8, a quarter of the size, until they are normalised on the device.
"""
import collections
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

PADDING = 4
CORNERS = 2 * PADDING + 1
MEAN_STD = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}


def draw_augmentation(seed, epoch, count):
    """Return top, left (int64 (count,), each in 0..8) and flip (bool (count,)) for the images 0..count-1 of an epoch.

    Entry i depends on nothing but (seed, epoch, i): one number out of 9 * 9 * 2 is drawn for each image, in order.
    """
    draws = np.random.RandomState([seed % 2 ** 32, epoch]).randint(0, CORNERS * CORNERS * 2, count)
    return draws // (2 * CORNERS), draws // 2 % CORNERS, draws % 2 == 1


def pad(images):
    """Return images (n, 3, h, w) with PADDING black pixels added on each side."""
    return np.pad(images, ((0, 0), (0, 0), (PADDING, PADDING), (PADDING, PADDING)), mode="constant")


class HostCrops:
    """Cuts crops out of padded images (n, 3, side + 8, side + 8), uint8, in host memory.

    All 81 crops of each image exist as a view of the same memory, so that a batch is one indexed copy.
    """

    def __init__(self, padded):
        count, channels, height, width = padded.shape
        image, channel, row, pixel = padded.strides
        shape = (count, CORNERS, CORNERS, channels, height - 2 * PADDING, width - 2 * PADDING)
        strides = (image, row, pixel, channel, row, pixel)
        self.windows = np.lib.stride_tricks.as_strided(padded, shape, strides, writeable=False)

    def __call__(self, index, top, left, flip):
        """Return crops (b, 3, side, side), uint8, of the images `index`; all four arguments are arrays of length b."""
        crops = self.windows[index, top, left]
        crops[flip] = crops[flip][..., ::-1]
        return torch.from_numpy(crops)


class DeviceCrops:
    """The same on a device that holds the padded images: nothing but 4 numbers for each image is sent to it."""

    def __init__(self, padded, device):
        _, self.channels, self.height, self.width = padded.shape
        self.pixels = torch.from_numpy(padded).to(device).reshape(-1)

    def __call__(self, index, top, left, flip):
        """Return crops (b, 3, side, side), uint8, on the device."""
        device = self.pixels.device
        numbers = np.stack([index, top, left, flip.astype(np.int64)])
        index, top, left, flip = torch.from_numpy(numbers).to(device, non_blocking=True)[:, :, None]
        rows = top + torch.arange(self.height - 2 * PADDING, device=device)
        columns = torch.arange(self.width - 2 * PADDING, device=device)
        columns = left + torch.where(flip > 0, len(columns) - 1 - columns, columns)
        planes = index * self.channels + torch.arange(self.channels, device=device)
        starts = (planes[:, :, None] * self.height + rows[:, None, :]) * self.width
        return self.pixels[starts[:, :, :, None] + columns[:, None, None, :]]


class CifarLoader:
    """Iterates (uint8 images (b, 3, h, w), int64 labels (b,), []) for common.data.DeviceBatches.

    images, labels: numpy arrays of the whole split. batches: a batch sampler of keys (epoch, index). `seed` turns the
    training augmentation on. workers: threads that prepare batches ahead; with 0 each is made when it is asked for. The
    results do not depend on their number. (Threads, not processes: cutting a batch takes less time than handing it over,
    and nearly all of it is spent in numpy, where threads run side by side.)
    """

    def __init__(self, images, labels, batches, device, workers=0, seed=None):
        self.batch_sampler, self.workers = batches, workers
        self._labels = torch.from_numpy(labels)
        self._count, self._seed = len(images), seed
        self._draws = (None, None)
        self._images = images
        if seed is not None:
            # On a GPU, indexing is next to nothing. An NPU compiles and runs such integer gathers slowly.
            padded = pad(images)
            self._images = DeviceCrops(padded, device) if device.type == "cuda" else HostCrops(padded)

    def __len__(self):
        return len(self.batch_sampler)

    def __iter__(self):
        if self.workers == 0:
            return map(self._batch, self.batch_sampler)
        return self._ahead()

    def _ahead(self):
        waiting = collections.deque()
        with ThreadPoolExecutor(self.workers) as threads:
            for keys in self.batch_sampler:
                waiting.append(threads.submit(self._batch, keys))
                if len(waiting) > self.workers + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _batch(self, keys):
        index = np.array([index for _, index in keys])
        if self._seed is None:
            images = torch.from_numpy(self._images[index])
        else:
            images = self._images(index, *(draw[index] for draw in self._draws_of(keys[0][0])))
        labels = self._labels[torch.from_numpy(index)]
        return images, labels, []

    def _draws_of(self, epoch):
        drawn, draws = self._draws
        if drawn != epoch:
            draws = draw_augmentation(self._seed, epoch, self._count)
            self._draws = (epoch, draws)
        return draws

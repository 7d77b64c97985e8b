"""Batches that are made up once and stay on the device, so that a step alone is measured (--dummy)."""
import torch

from common import data, device as devices

# As many as ImageNet and CIFAR have: images of training, images of validation.
IMAGENET, CIFAR = (1281167, 50000), (50000, 10000)


class SyntheticBatches(object):
    """Stands in for loading.DeviceBatches: gives one and the same batch, as often as data.TrainBatches has some of so many images."""

    def __init__(self, images, batch_size, size, classes, rank, max_steps=None, accumulate=1):
        """`size`: pixels of a side of the images; `classes`: how many class numbers there are."""
        batches = data.TrainBatches(images, batch_size, rank, max_steps=max_steps, accumulate=accumulate)
        self._sampler, self.images = batches, images
        self.global_batch, self.step_images = batches.global_batch, batches.step_images
        generator = torch.Generator()
        generator.manual_seed(rank.rank)
        pixels = torch.randn(batch_size, 3, size, size, generator=generator)
        labels = torch.randint(classes, (batch_size,), generator=generator)
        self._batch = pixels.to(rank.device).contiguous(memory_format=devices.memory_format(rank.device)), labels.to(rank.device)

    def __len__(self):
        """Return the steps of a whole epoch."""
        return len(self._sampler)

    def of_epoch(self, epoch, first_step=0):
        """Return an iterator over the batches from `first_step` on."""
        return (self._batch for _ in range(first_step, len(self)))

    def __iter__(self):
        return self.of_epoch(0)

    def count_bad(self, rank):
        """Return how many images were unreadable: none."""
        return 0

"""The order of the images in fine-tuning."""
import numpy as np
import torch


class FixedOrderSampler:
    """One rank's images: shuffled once, and in the same order in every epoch, as upstream, which never sets the epoch.

    The order is that of PyTorch's DistributedSampler with seed 0: a permutation, padded with its own beginning so that every rank
    has as many, of which rank r takes r, r + ranks, ... `order(seed)`, an ImageFolder's, takes the permutation's place.
    """

    def __init__(self, num_images, num_replicas, rank, seed=0, order=None):
        self.num_images, self.num_replicas, self.rank, self.seed, self.order = num_images, num_replicas, rank, seed, order
        self.num_samples = -(-num_images // num_replicas)

    def __len__(self):
        return self.num_samples

    def steps(self, batch_size):
        """Return the steps of an epoch."""
        return -(-self.num_samples // batch_size)

    def indices(self):
        """Return this rank's image indices in order, int64 (num_samples,)."""
        generator = torch.Generator()
        generator.manual_seed(self.seed)
        order = self.order(self.seed) if self.order else torch.randperm(self.num_images, generator=generator).numpy()
        return np.resize(order, self.num_samples * self.num_replicas)[self.rank::self.num_replicas]

    def keys(self, epoch):
        """Return (draw, index) for each of this rank's images in order, int64 (num_samples, 2).

        The draw is the epoch: it matters to the second recipe, whose training images are augmented.
        """
        indices = self.indices()
        return np.stack([np.full_like(indices, epoch), indices], axis=1)

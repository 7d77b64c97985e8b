"""Repeated augmentation ("MultiGrain", arXiv 1902.05509): an epoch has two thirds of the images, each three times."""
import numpy as np

from common.cli import UserError

IMAGES_PER_EPOCH = 5005 * 512  # an epoch is as long as two over ImageNet, however much the sampler holds


class RASampler:
    """One rank's part of a stream in which the `repetitions` copies of an image stand next to each other.

    The stream of an epoch is a permutation with every index repeated, cut to `length_factor` times the data set, and continued
    with its own beginning until it holds `repetitions` times the data set. Rank r takes positions r, r + ranks, ...: on three
    or more ranks the copies of an image fall into the same global batch, each on another rank.

    Epoch e uses the permutation that upstream's run from epoch 0 would use then: numpy's RandomState(seed) draws one after the
    other. `order(number)`, an ImageFolder's, gives permutations in their place. Raises UserError where the data set is too small
    for such a stream.
    """

    def __init__(self, num_images, num_replicas, rank, repetitions=3, length_factor=2.0, shuffle=True, seed=0, order=None):
        self.num_images, self.num_replicas, self.rank = num_images, num_replicas, rank
        self.repetitions, self.shuffle, self.seed, self.order = repetitions, shuffle, seed, order
        self.num_samples = -(-num_images * repetitions // num_replicas)
        self.total_size = self.num_samples * num_replicas
        self.stream_length = int(num_images * length_factor)
        self._generator, self._drawn = np.random.RandomState(seed), 0
        if not self.stream_length <= self.total_size <= 2 * self.stream_length:
            raise UserError(
                "repeated augmentation needs %d to %d images an epoch over all ranks, but %d image(s) times %d on %d rank(s) make "
                "%d: take more images or fewer ranks" % (self.stream_length, 2 * self.stream_length, num_images, repetitions,
                                                   num_replicas, self.total_size))

    def __len__(self):
        """Return the images of this rank in one pass over the whole stream; `steps` says how many an epoch takes."""
        return self.num_samples

    def steps(self, batch_size):
        """Return the steps of an epoch: until the rank's images end, or all ranks together have seen IMAGES_PER_EPOCH."""
        return min(-(-self.num_samples // batch_size), -(-IMAGES_PER_EPOCH // (batch_size * self.num_replicas)))

    def indices(self, epoch):
        """Return this rank's image indices in order, int64 (num_samples,)."""
        return self.keys(epoch)[:, 1]

    def keys(self, epoch):
        """Return (draw, index) for each of this rank's images in one pass over the whole stream, int64 (num_samples, 2).

        The draw is the position in the stream of the whole run, so that no two copies of an image are augmented alike.
        """
        positions = np.arange(self.rank, self.total_size, self.num_replicas)
        wrapped = np.where(positions < self.stream_length, positions, positions - self.stream_length)
        indices = self._order(epoch)[wrapped // self.repetitions]
        return np.stack([epoch * self.total_size + positions, indices], axis=1)

    def _order(self, epoch):
        """Return the images in the order in which the epoch's stream takes them, long enough for it."""
        rounds = -(-self.stream_length // (self.num_images * self.repetitions))
        if not self.shuffle:
            return np.tile(np.arange(self.num_images), rounds)
        if self.order:
            return np.concatenate([self.order(self.seed + number) for number in range(epoch * rounds, (epoch + 1) * rounds)])
        self._skip_to(epoch * rounds)
        self._drawn += rounds
        return np.concatenate([self._generator.permutation(self.num_images) for _ in range(rounds)])

    def _skip_to(self, drawn):
        """Bring the generator to where it stands after `drawn` permutations; a run in order has nothing to skip."""
        if self._drawn > drawn:
            self._generator, self._drawn = np.random.RandomState(self.seed), 0
        while self._drawn < drawn:
            self._generator.permutation(self.num_images)
            self._drawn += 1

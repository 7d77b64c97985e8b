import itertools
import math

import numpy as np


class RASampler(object):
    """Upstream's names; its order by arrays."""

    def __init__(self, dataset, num_replicas, rank, dataset_len, batch_size, repetitions=1, len_factor=1.0, shuffle=False,
                 drop_last=False):
        self.images, self.repetitions, self.length, self.shuffle = dataset_len, repetitions, int(dataset_len * len_factor), shuffle
        self.num_samples = math.ceil(len(dataset) * repetitions / num_replicas)
        self.total_size, self.part = self.num_samples * num_replicas, slice(rank, None, num_replicas)

    def __len__(self):
        return self.num_samples

    def __iter__(self):
        stream = np.zeros(0, dtype=int)
        while len(stream) < self.length:
            order = np.random.permutation(self.images) if self.shuffle else np.arange(self.images)
            stream = np.concatenate([stream, np.repeat(order, self.repetitions)])
        stream = stream[:self.length]
        stream = np.concatenate([stream, stream[:self.total_size - self.length]])
        assert len(stream) == self.total_size
        return itertools.chain(stream[self.part].tolist())

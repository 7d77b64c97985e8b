"""Images from class folders (common/folders.py), and their order. (Their way to the device is in common/loading.py.)

The host only decodes, crops and resizes (common/jpeg.py, common/transforms.py). The augmentation of a sample is a pure function
of (seed, epoch, index), so results do not depend on the number of workers, and a resumed run sees exactly what the interrupted
one would have seen.
"""
import errno
import os
import random
import time

import numpy as np
import torch
from PIL import Image

from common import cli, decoders, folders, jpeg, packed
from common.cli import UserError
from common.folders import class_names
from common.loading import (IMAGENET_MEAN, IMAGENET_STD, DeviceBatches, Loader, device_batches)  # noqa: F401  (data.Loader …)

_SLOW_SCAN = 5  # seconds: a local disk has 256,000 files listed in 0.3
_NOT_THE_FILE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # what reading fails for, without any fault of what is read


# --- the data set on disk ---------------------------------------------------------------------------------------------

def check_layout(root, splits=("train", "val")):
    """Raise UserError unless `root` holds ImageNet's layout: one folder per class in each of `splits`, or their packed form."""
    if not os.path.isdir(root):
        raise UserError("data path %s is not a folder; it should hold %s" % (root, " and ".join(s + "/" for s in splits)))
    classes = {}
    for split in splits:
        folder = os.path.join(root, split)
        if not os.path.isdir(folder):
            raise UserError("data path %s has no folder %s/ (wanted: %s/<class>/<image>)" % (root, split, split))
        classes[split] = class_names(folder)
    if len(splits) > 1 and classes[splits[0]] != classes[splits[1]]:
        odd = sorted(set(classes[splits[0]]) ^ set(classes[splits[1]]))
        raise UserError("%s: %s/ and %s/ have different classes (%s is only in one)" % ((root,) + tuple(splits) + (odd[0],)))


class Files(object):
    """The pictures below `root`/<class>/, in the order of class and file names: `classes` (names), `targets` int64 (n,)."""

    def __init__(self, root):
        """Raises UserError for a class without a picture."""
        self._root, self.classes = root, class_names(root)
        paths, targets, start = [], [], time.monotonic()
        for number, name in enumerate(self.classes):
            found = folders.pictures(root, name) or folders.refuse("class folder %s has no image" % os.path.join(root, name))
            paths += [os.fsencode(path) for path in found]
            targets += [number] * len(found)
        # Arrays, not lists: a million Python objects would be copied page by page into every worker.
        self.keys = np.array(paths)
        self.targets = np.array(targets, dtype=np.int64)
        seconds = time.monotonic() - start
        if seconds > _SLOW_SCAN:
            cli.print_line("%s: %d pictures found in %.0f s; packed (tools/dataset.py) they are there at once, and are read faster"
                           % (root, len(paths), seconds))

    def path(self, index):
        """Return the path of a picture."""
        return os.path.join(self._root, os.fsdecode(bytes(self.keys[index])))

    def read(self, index):
        """Return the bytes of a picture's file. Raises OSError."""
        return folders.read(self.path(index))


class ImageFolder(torch.utils.data.Dataset):
    """The pictures of a folder, of files or packed.

    Takes keys (epoch, index) and gives (uint8 array (height, width, 3), class number, unreadable files met), after
    `transform(picture, random.Random)`, whose picture is a PIL image in RGB or a jpeg.JpegPicture. In place of an
    unreadable file there is the next readable one with `replace` (trainings with --skip_bad_images), and None without it:
    DeviceBatches leaves that out, or stops and names the file.
    """

    def __init__(self, root, transform, outputs, seed=0, replace=False, decoder="exact"):
        """`outputs`: those of the network; raises UserError where there are more classes. `decoder`: of decoders.DECODERS."""
        self.root = root
        self._files = packed.Shards(root) if packed.is_packed(root) else Files(root)
        self.classes, self.targets, self.path = self._files.classes, self._files.targets, self._files.path
        self.expect = getattr(self._files, "expect", len)  # of the keys that come next
        if len(self.classes) > outputs:
            raise UserError("%s has %d classes, the network has %d outputs (--num_classes, MODEL.NUM_CLASSES in a configuration)"
                            % (root, len(self.classes), outputs))
        self._open, self._transform, self._seed = decoders.opener(decoder), transform, seed
        self._attempts = len(self) if replace else 1

    def __len__(self):
        return len(self.targets)

    def order(self, shuffle_shards):
        """Return what orders an epoch's pictures: packed.Shards.order with `shuffle_shards`, or None: all are shuffled. Raises UserError
        where the folder is not packed."""
        if shuffle_shards and not hasattr(self._files, "order"):
            raise UserError("--shuffle_shards: %s is no packed data set; tools/dataset.py pack makes one" % self.root)
        return self._files.order if shuffle_shards else None

    def __getitem__(self, key):
        epoch, first = key
        bad = []
        for offset in range(self._attempts):
            index = (first + offset) % len(self)
            try:
                picture = self._transform(self._open(self._files.read(index)), sample_rng(self._seed, epoch, index))
            except (OSError, jpeg.Unreadable) as error:
                if getattr(error, "errno", None) in _NOT_THE_FILE:
                    raise cli.TrainingStopped("cannot read pictures: %s; raise the limit (ulimit -n, memory), or take fewer --workers"
                                              % error.strerror)
                bad.append("%s (%s)" % (folders.shown(self.path(index)), folders.why(error)))
                continue
            return picture, int(self.targets[index]), bad
        return None, -1, bad

    def sample(self):
        """Return what the transform makes of a blank picture: all pixels have its shape and type."""
        picture = self._transform(Image.new("RGB", (64, 64)), random.Random(0))
        return picture[0] if isinstance(picture, tuple) else picture


def sample_rng(seed, epoch, index):
    """Return the random.Random from which the augmentation of one sample in one epoch draws."""
    return random.Random((seed << 80) + (epoch << 48) + index)


# --- which rank sees what, when ---------------------------------------------------------------------------------------

class TrainBatches(object):
    """A batch sampler: shuffled, sharded, able to start in the middle of an epoch.

    Epoch e's order is the permutation of torch's generator seeded with seed + e (PyTorch's DistributedSampler), and rank
    r takes every world_size-th of it. N ranks with batches of B/N together see in each step what one rank sees with B.
    `order(seed + e)`, an ImageFolder's, takes the permutation's place; a rank then has a stretch of each step's part.
    """

    def __init__(self, length, batch_size, rank, seed=0, max_steps=None, drop_last=True, accumulate=1, order=None):
        """`batch_size` is that of one rank; `max_steps` ends each epoch early. With `drop_last` an epoch is a whole number of
        updates, of `accumulate` batches each. Without, it ends with a smaller batch, for which the order is repeated from its
        start until all ranks have equally many. Raises UserError when there is not a single update."""
        self.images, self.global_batch = length, batch_size * accumulate * rank.world_size
        self.batch_size = batch_size
        self.step_images, self._rank, self._seed = batch_size * rank.world_size, rank, seed
        self._max_steps, self._drop_last, self._accumulate = max_steps, drop_last, accumulate
        self._order, self.run_length = order, packed.RUN if order else 1
        self._epoch = self._first_step = 0
        if len(self) == 0:
            raise UserError("a batch of %d is larger than the data set of %d training images" % (self.global_batch, length))

    def set_epoch(self, epoch, first_step=0):
        """Choose the epoch that the next iteration is of, and the step that it starts with."""
        self._epoch, self._first_step = epoch, first_step

    def __len__(self):
        """Return the steps of a whole epoch."""
        whole = self.images // self.global_batch * self._accumulate
        steps = whole if self._drop_last else -(-self.images // self.step_images)
        return min(steps, self._max_steps or steps)

    def __iter__(self):
        epoch, (rank, ranks) = self._epoch, self._rank[:2]
        order = (self._order or self._shuffled)(self._seed + epoch)
        if not self._drop_last:
            order = np.resize(order, -(-self.images // ranks) * ranks)
        for step in range(self._first_step, len(self)):
            part = order[step * self.step_images:(step + 1) * self.step_images]
            part = np.split(part, ranks)[rank] if self._order else part[rank::ranks]
            yield [(epoch, int(index)) for index in part]

    def _shuffled(self, seed):
        return torch.randperm(self.images, generator=torch.Generator().manual_seed(seed)).numpy()


class EvalBatches(object):
    """A batch sampler: in order, each image once over all ranks, nothing padded; a rank may get one batch fewer."""

    def __init__(self, length, batch_size, rank, max_steps=None):
        """`batch_size` is that of one rank; `max_steps` leaves the rest of the images out."""
        if max_steps:
            length = min(length, max_steps * batch_size * rank.world_size)
        self._indices = range(rank.rank, length, rank.world_size)
        self.images, self.batch_size = length, batch_size

    def __len__(self):
        return (len(self._indices) + self.batch_size - 1) // self.batch_size

    def __iter__(self):
        for start in range(0, len(self._indices), self.batch_size):
            yield [(0, index) for index in self._indices[start:start + self.batch_size]]

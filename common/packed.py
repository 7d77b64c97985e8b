"""Packed data sets: the pictures of a class-folder tree in a few tar files, with an index, read in any order.

`tools/dataset.py pack` writes DIR/shard-00000.tar ... for each of train and val, in the form that webdataset reads (for each picture
its file and a .cls file with the class number), and DIR/index.npz beside them: NumPy arrays, an entry a picture, in the order that
the folder's own pictures have, so that a training draws the same batches from both.

    shards uint16, offsets int64, lengths int32   where the bytes of the picture's file are
    labels int64, keys bytes                      class number; path below the folder: <class>/<picture>
    checksums uint32                              zlib.crc32 of the bytes
    classes text                                  (an entry a class) names
"""
import contextlib
import os

import numpy as np

from common.cli import UserError

INDEX = "index.npz"
SHARD = "shard-%05d.tar"
RUN = 32  # pictures that --shuffle_shards leaves side by side: some megabytes, which a disk reads at a stretch
FIELDS = [("shards", np.uint16), ("offsets", np.int64), ("lengths", np.int32), ("labels", np.int64), ("checksums", np.uint32)]


def is_packed(folder):
    """Return whether `folder` holds one side of a packed data set."""
    return os.path.isfile(os.path.join(folder, INDEX))


def read_index(folder):
    """Return the arrays of a packed folder's index by name. Raises UserError for what is no index."""
    path = os.path.join(folder, INDEX)
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in [field for field, _ in FIELDS] + ["keys", "classes"]}
    except Exception as error:  # a damaged archive can fail in any way
        raise UserError("%s is not the index of a packed data set (%s); tools/dataset.py pack writes it" % (path, error))


class Shards(object):
    """The pictures of a packed folder, by number: `classes` (names), `targets` int64 (n,). Each process opens each shard once."""

    def __init__(self, root):
        """Raises UserError where the index cannot be read or a shard is missing."""
        index = read_index(root)
        self._root, self._shards, self._offsets, self._lengths = root, index["shards"], index["offsets"], index["lengths"]
        self.classes, self.targets, self._keys = index["classes"].tolist(), index["labels"], index["keys"]
        self._files = {}
        for number in np.unique(self._shards):
            if not os.path.isfile(self._path(number)):
                raise UserError("%s is missing; %s names it" % (self._path(number), os.path.join(root, INDEX)))

    def _path(self, shard):
        return os.path.join(self._root, SHARD % shard)

    def path(self, index):
        """Return what an error calls a picture: shard and name."""
        return "%s of %s" % (os.fsdecode(bytes(self._keys[index])), self._path(self._shards[index]))

    def order(self, seed):
        """Return a permutation of the pictures, int64 (n,), a pure function of `seed`: the shards in random order, in each its runs
        of RUN pictures in random order, and the pictures of a run as they lie in the file."""
        rng, places = np.random.RandomState(seed % 2 ** 32), np.lexsort((self._offsets, self._shards))
        shards = np.searchsorted(self._shards[places], self._shards[places])  # where each place's shard begins
        runs = shards + (np.arange(len(places)) - shards) // RUN * RUN
        return places[np.lexsort((rng.permutation(len(places))[runs], rng.permutation(len(places))[shards]))]

    def expect(self, keys):
        """Have the kernel fetch the pictures of (epoch, index) that are read next: all at once, however far a disk or a server is."""
        with contextlib.suppress(OSError):  # `read` says what is wrong
            for _, index in keys:
                os.posix_fadvise(*self._place(index), os.POSIX_FADV_WILLNEED)

    def _place(self, index):
        """Return (file, offset, length) of a picture."""
        shard = self._shards[index]
        if shard not in self._files:
            self._files[shard] = os.open(self._path(shard), os.O_RDONLY | os.O_CLOEXEC)
        return self._files[shard], int(self._offsets[index]), int(self._lengths[index])

    def read(self, index):
        """Return the bytes of a picture's file. Raises OSError where they cannot be read or are not there."""
        file, offset, length = self._place(index)
        content = os.pread(file, length, offset)
        if len(content) < length:
            raise OSError("the shard ends before the picture does")
        return content

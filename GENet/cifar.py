"""CIFAR-10 and CIFAR-100 in their Python format: folders of pickles, read without running anything that is in them."""
import hashlib
import io
import os
import pickle
from collections import namedtuple

import numpy as np

from common import folders
from common.cli import UserError

SIDE = 32
PIXELS = 3 * SIDE * SIDE

Layout = namedtuple("Layout", "folder train test meta label_key names_key classes")
LAYOUTS = {
    "cifar10": Layout("cifar-10-batches-py", tuple("data_batch_%d" % number for number in range(1, 6)), ("test_batch",),
                      "batches.meta", "labels", "label_names", 10),
    "cifar100": Layout("cifar-100-python", ("train",), ("test",), "meta", "fine_labels", "fine_label_names", 100),
}
# MD5 of the files as their authors publish them (https://www.cs.toronto.edu/~kriz/cifar.html).
PUBLISHED_MD5 = {
    "cifar10": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
    "cifar100": {
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
}


def find_folder(data_path, dataset="cifar10"):
    """Return the folder that holds the pickles: `data_path` itself or the data set's folder in it.

    Raises UserError where neither is there or a file of the data set is missing.
    """
    layout = LAYOUTS[dataset]
    if not os.path.isdir(data_path):
        raise UserError("data path %s is not a folder; name the one that holds %s" % (data_path, layout.folder))
    inner = os.path.join(data_path, layout.folder)
    folder = inner if os.path.isdir(inner) else data_path
    names = layout.train + layout.test + (layout.meta,)
    missing = [name for name in names if not os.path.isfile(os.path.join(folder, name))]
    if len(missing) == len(names):
        raise UserError("no %s data set in %s; name the folder that holds %s" % (dataset, data_path, layout.folder))
    if missing:
        raise UserError("%s in %s is incomplete: no file %s" % (dataset, folder, ", ".join(missing)))
    return folder


def read_split(folder, split, dataset="cifar10"):
    """Return the images, uint8 (n, 3, 32, 32) in RGB, and the labels, int64 (n,), of `split`: "train" or "test".

    The order is that of the files, and within a file that of its rows. Raises UserError where a file is missing,
    truncated or not a CIFAR batch.
    """
    layout = LAYOUTS[dataset]
    batches = [read_batch(os.path.join(folder, name), dataset) for name in getattr(layout, split)]
    return np.concatenate([images for images, _ in batches]), np.concatenate([labels for _, labels in batches])


def read_batch(path, dataset="cifar10"):
    """Return the images and labels, as read_split does, of one file."""
    layout = LAYOUTS[dataset]
    content = load_pickle(path)
    images = content.get("data")
    labels = content.get(layout.label_key)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (PIXELS,):
        raise UserError("%s is not a %s batch: no 'data' of n x %d bytes" % (path, dataset, PIXELS))
    if not isinstance(labels, list) or len(labels) != len(images) or not len(labels):
        raise UserError("%s is not a %s batch: no list '%s' of as many labels as images" % (path, dataset, layout.label_key))
    if not all(type(label) is int and 0 <= label < layout.classes for label in labels):
        raise UserError("%s: a label is not an integer from 0 to %d" % (path, layout.classes - 1))
    return images.reshape(-1, 3, SIDE, SIDE), np.array(labels, dtype=np.int64)


def class_names(folder, dataset="cifar10"):
    """Return the class names in the order of the labels. Raises UserError where the file does not hold them."""
    layout = LAYOUTS[dataset]
    path = os.path.join(folder, layout.meta)
    names = load_pickle(path).get(layout.names_key)
    if not isinstance(names, list) or len(names) != layout.classes or not all(isinstance(name, str) for name in names):
        raise UserError("%s: no list '%s' of %d names" % (path, layout.names_key, layout.classes))
    return names


def verify_checksums(folder, dataset="cifar10"):
    """Return whether the folder holds the published data set; raise UserError where one of its files is damaged.

    The published data set is known by its file of class names. A data set with names of its own, such as the demo data,
    has no checksums to be compared with.
    """
    published = PUBLISHED_MD5[dataset]
    meta = LAYOUTS[dataset].meta
    if md5(os.path.join(folder, meta)) != published[meta]:
        return False
    damaged = [name for name in sorted(published) if md5(os.path.join(folder, name)) != published[name]]
    if damaged:
        raise UserError("%s in %s is not the published file (MD5 differs): get the data set again; one that was changed on "
                        "purpose needs a %s of its own" % (", ".join(damaged), folder, meta))
    return True


def md5(path):
    """Return the MD5 of a file in hexadecimal."""
    return hashlib.md5(folders.read(path)).hexdigest()


def load_pickle(path):
    """Return the dict in a CIFAR pickle, its byte strings as text and its arrays as numpy arrays.

    Nothing that the file asks for is called, not even numpy's own constructors. Raises UserError for a file that is
    missing, truncated, no pickle, or that asks for anything but plain values and uint8 arrays.
    """
    try:
        content = _CifarUnpickler(io.BytesIO(folders.read(path)), encoding="latin1").load()
        if not isinstance(content, dict):
            raise ValueError("it holds no dict")
        return {key: value.as_numpy() if isinstance(value, _Array) else value for key, value in content.items()}
    except OSError as error:
        raise UserError("%s cannot be read: %s" % (path, folders.why(error)))
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise UserError("%s is truncated or not a CIFAR pickle (%s)" % (path, str(error) or type(error).__name__))


class _Dtype:
    """Takes the place of numpy.dtype: its state (byte order and such) says nothing more about single bytes."""

    def __init__(self, name, *_):
        self.name = name

    def __setstate__(self, state):
        pass


class _Array:
    """Takes the place of numpy.ndarray: keeps the pickled state, and checks it before an array is made of it."""

    def __init__(self, *_):
        self.state = None

    def __setstate__(self, state):
        self.state = state

    def as_numpy(self):
        _, shape, dtype, fortran_order, raw = self.state
        if dtype.name not in ("u1", "|u1", "uint8"):
            raise ValueError("its array is not of bytes")
        raw = raw.encode("latin1") if isinstance(raw, str) else raw  # pickled by Python 2
        return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran_order else "C")


def _from_buffer(buffer, dtype, shape, order):
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", bytes(buffer)))
    return array


def _encode(text, encoding):
    if encoding != "latin1":
        raise ValueError("its bytes are spelled in %r" % encoding)
    return text.encode("latin1")


class _CifarUnpickler(pickle.Unpickler):
    """Knows the names that an array of bytes is pickled with, by any numpy, and refuses all others."""

    known = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Dtype, ("_codecs", "encode"): _encode}
    for module in ("numpy.core", "numpy._core"):
        known[module + ".multiarray", "_reconstruct"] = _Array
        known[module + ".numeric", "_frombuffer"] = _from_buffer

    def find_class(self, module, name):
        if (module, name) not in self.known:
            raise ValueError("it asks for %s.%s, which was not run" % (module, name))
        return self.known[module, name]

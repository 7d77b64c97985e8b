"""Files that are wrong: weights, checkpoints, data sets. Each function takes the path of a good copy that it may spoil."""
import os
import pickle
import shutil
import zipfile
from collections import OrderedDict

import numpy as np
import torch

from common import checkpoint


class Runs(object):
    """Unpickled as it stands, makes the file `mark`: nothing of the kind may ever be run."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, ("touch '%s'" % self.mark,)


# --- bytes of any file ------------------------------------------------------------------------------------------------

def _cut(share):
    def cut(path, mark):
        os.truncate(path, int(os.path.getsize(path) * share))
    return cut


def _bytes(content):
    def write(path, mark):
        with open(path, "wb") as stream:
            stream.write(content)
    return write


def _folder(path, mark):
    os.remove(path)
    os.mkdir(path)


def _gone(path, mark):
    os.remove(path)


def _pipe(path, mark):
    os.remove(path)
    os.mkfifo(path)


def _loop(path, mark):
    os.remove(path)
    os.symlink(path, path)


def _code(path, mark):
    with open(path, "wb") as stream:
        pickle.dump({"state_dict": Runs(mark)}, stream, 2)


def _torch_code(path, mark):
    torch.save({"state_dict": {"weight": torch.zeros(1)}, "more": Runs(mark)}, path)


def _bomb(path, mark):
    """A zip of kilobytes that claims gigabytes."""
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, path)
    with zipfile.ZipFile(path) as good:
        entries = {name: good.read(name) for name in good.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, content in entries.items():
            if name.endswith("data/0"):
                with bomb.open(name, "w", force_zip64=True) as stream:
                    for _ in range(256):
                        stream.write(bytes(1 << 24))
            else:
                bomb.writestr(name, content)


def _claim(path, mark):
    """A tensor of 2**60 elements, by its description alone."""
    torch.save({"state_dict": OrderedDict(weight=torch.zeros(1).expand(1 << 60))}, path)


BYTES = dict({"cut at %g" % share: _cut(share) for share in (0, 0.001, 0.5, 0.9, 0.999)}, **{
    "text": _bytes(b"no weights"), "zeros": _bytes(bytes(100000)), "html": _bytes(b"<!DOCTYPE html><html>404</html>"),
    "zip header": _bytes(b"PK\x03\x04" + bytes(50)), "pickle opcodes": _bytes(b"\x80\x02}q\x00(" + b"\xff" * 200),
    "git-lfs pointer": _bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    "folder": _folder, "gone": _gone, "pipe": _pipe, "link to itself": _loop, "pickled code": _code, "torch code": _torch_code,
    "zip bomb": _bomb, "2**60 elements": _claim})


# --- the content of weights -------------------------------------------------------------------------------------------

def _each(change):
    """Return a mangling of the first tensor of at least one element, and of its key."""
    def mangle(state):
        key = next(key for key, value in state.items() if torch.is_tensor(value) and value.numel() > 1)
        return change(dict(state), key)
    return mangle


def _with(value):
    return _each(lambda state, key: dict(state, **{key: value(state[key]) if callable(value) else value}))


WEIGHTS = {
    "number keys": lambda state: dict(enumerate(state.values())),
    "a number key": _each(lambda state, key: {**state, 7: state[key]}),
    "a tuple key": _each(lambda state, key: {**state, (1, 2): state[key]}), "no entries": lambda state: {},
    "number": _with(3.0), "text": _with("weights"), "None": _with(None), "list": _with([1.0, 2.0]), "dict": _with({"a": 1}),
    "sparse": _with(lambda tensor: tensor.to_sparse()), "bool": _with(lambda tensor: tensor > 0),
    "complex": _with(lambda tensor: tensor.to(torch.complex64)), "scalar": _with(torch.tensor(1.0)), "empty": _with(torch.zeros(0)),
    "meta": _with(lambda tensor: tensor.to("meta")), "other shape": _with(lambda tensor: torch.zeros(3, 5, 7)),
    "transposed": _with(lambda tensor: tensor.transpose(0, -1) if tensor.shape[0] != tensor.shape[-1] else tensor[:-1]),
    "missing key": _each(lambda state, key: {name: value for name, value in state.items() if name != key}),
    "extra key": _each(lambda state, key: dict(state, **{"no.such.layer": state[key]})),
    "nan": _with(lambda tensor: torch.full_like(tensor, float("nan"))),
    "inf": _with(lambda tensor: torch.full_like(tensor, float("inf"))),
    "other network": lambda state: {"fc.weight": torch.zeros(10, 4), "fc.bias": torch.zeros(10)},
    "list of all": lambda state: list(state.values()), "one tensor": lambda state: torch.zeros(4),
    "None of all": lambda state: None,
    "text of all": lambda state: "state_dict", "number of all": lambda state: 17,
    "nested": lambda state: {"state_dict": {"state_dict": state}},
}


def weights(name, path):
    """Spoil the file of weights `path`."""
    state = checkpoint.weights(checkpoint.load(path), use_ema="false")
    found = WEIGHTS[name](state)
    torch.save(found if name.endswith(" of all") or name == "one tensor" else {"state_dict": found}, path)


# --- the content of a checkpoint to resume from -----------------------------------------------------------------------

ABSURD = {"-1": -1, "10**9": 10 ** 9, "10**30": 10 ** 30, "text": "three", "None": None, "nan": float("nan"), "list": [1],
          "0.5": 0.5,
          "tensor": torch.ones(3)}
RESUMED = dict([("%s %s" % (key, name), (key, value)) for key in ("epoch", "step") for name, value in ABSURD.items()]
               + [("%s %s" % (key, name), (key, ABSURD[name])) for key in ("seed", "global_batch", "train_images", "step_images")
                  for name in ("-1", "text", "10**9", "None")]
               + [("%s %s" % (key, name), (key, value)) for key in ("results", "tally", "optimizer", "optimizer_state", "amp")
                  for name, value in (("None", None), ("text", "x"), ("empty", {}), ("list", [1, 2]), ("number", 3))])
PARTS = ("groups", "momentum shape", "momentum text", "momentum nan", "rate text", "one parameter")


def resumed(name, path):
    """Spoil the checkpoint `path`, or return False where it has no such entry."""
    content = checkpoint.load(path)
    if name in PARTS:
        optimizer = next((content[key] for key in ("optimizer", "optimizer_state") if key in content), None)
        if optimizer is None:
            return False
        _spoil_optimizer(name, optimizer)
    else:
        key, value = RESUMED[name]
        if key not in content:
            return False
        content[key] = value
    torch.save(content, path)
    return True


def _spoil_optimizer(name, optimizer):
    states = optimizer["state"]
    first = states[sorted(states)[0]] if states else {}
    momentum = next((key for key, value in first.items() if torch.is_tensor(value) and value.dim()), "momentum_buffer")
    if name == "groups":
        optimizer["param_groups"] = []
    elif name == "one parameter":
        optimizer["param_groups"][0]["params"] = [0]
    elif name == "rate text":
        optimizer["param_groups"][0]["lr"] = "fast"
    else:
        first[momentum] = {"momentum shape": torch.zeros(2, 3), "momentum text": "x",
                           "momentum nan": torch.full_like(first[momentum], float("nan")) if momentum in first else None}[name]


# --- data sets --------------------------------------------------------------------------------------------------------

def _first_class(root):
    return os.path.join(root, "train", sorted(os.listdir(os.path.join(root, "train")))[0])


def _picture(make):
    """Return a mangling that puts a picture x.JPEG among the training images: every image is read."""
    def mangle(root, mark):
        make(os.path.join(_first_class(root), "x.JPEG"))
    return mangle


def _written(content):
    def write(path):
        with open(path, "wb") as stream:
            stream.write(content)
    return write


def _named(name):
    def mangle(root, mark):
        with open(os.path.join(os.fsencode(_first_class(root)), name), "wb") as stream:
            stream.write(b"no picture")
    return mangle


def _truncated(root, mark):
    path = os.path.join(_first_class(root), sorted(os.listdir(_first_class(root)))[0])
    os.truncate(path, os.path.getsize(path) // 2)


def _links_back(root, mark):
    os.symlink(os.path.join(root, "train"), os.path.join(root, "train", "n99999999"))
    os.symlink(os.path.join(root, "train"), os.path.join(_first_class(root), "again"))


def _without(*names):
    def mangle(root, mark):
        shutil.rmtree(os.path.join(root, *names))
    return mangle


def _file_for(*names):
    def mangle(root, mark):
        shutil.rmtree(os.path.join(root, *names))
        _written(b"")(os.path.join(root, *names))
    return mangle


def _empty_class(root, mark):
    os.mkdir(os.path.join(root, "train", "n00000000a"))


def _other_classes(root, mark):
    first = sorted(os.listdir(os.path.join(root, "val")))[0]
    os.rename(os.path.join(root, "val", first), os.path.join(root, "val", "other"))


def _huge(path):
    """A PNG of few bytes that claims 60000 x 60000 pixels."""
    import struct
    import zlib
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    _written(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))(path)


TIFF = (b"II*\x00\x08\x00\x00\x00\x02\x00\x00\x01\x04\x00\x01\x00\x00\x00\x40\x00\x00\x00"
        b"\x01\x01\x04\x00\x01\x00\x00\x00\xff\xff\xff\x7f")
IMAGES = {
    "no picture": _picture(_written(b"no picture")), "empty picture": _picture(_written(b"")), "truncated picture": _truncated,
    "broken TIFF": _picture(_written(TIFF)), "huge PNG": _picture(_huge),
    "JPEG header alone": _picture(_written(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00")),
    "named pipe": _picture(os.mkfifo), "device": _picture(lambda path: os.symlink("/dev/zero", path)),
    "link to itself": _picture(lambda path: os.symlink(path, path)),
    "link to nothing": _picture(lambda path: os.symlink("/no/such", path)),
    "folder as picture": _picture(os.mkdir), "class links back": _links_back, "macOS file": _named(b"._x.JPEG"),
    "newline in name": _named(b"a\nb.JPEG"), "percent in name": _named(b"100%s%d.JPEG"),
    "invalid UTF-8 name": _named(b"\xff\xfe.JPEG"),
    "metacharacters in name": _named(b"$(touch x);'\".JPEG"), "no train": _without("train"), "no val": _without("val"),
    "file for train": _file_for("train"), "file for val": _file_for("val"), "empty class": _empty_class,
    "other classes in val": _other_classes}


def _batch(change):
    def mangle(root, mark):
        path = os.path.join(root, "cifar-10-batches-py", "data_batch_2")
        with open(path, "rb") as stream:
            content = pickle.load(stream)
        found = change(content, mark)
        with open(path, "wb") as stream:
            pickle.dump(content if found is None else found, stream, 2)
    return mangle


def _file(mangle):
    return lambda root, mark: mangle(os.path.join(root, "cifar-10-batches-py", "data_batch_3"), mark)


CIFAR = dict({"file " + name: _file(mangle) for name, mangle in BYTES.items() if name not in ("zip bomb", "2**60 elements")}, **{
    "batch with code": _batch(lambda content, mark: {"data": Runs(mark), "labels": [0]}),
    "no labels": _batch(lambda content, mark: content.pop("labels") and None),
    "no data": _batch(lambda content, mark: {"labels": [1]}),
    "label 10": _batch(lambda content, mark: content["labels"].__setitem__(0, 10)),
    "label -1": _batch(lambda content, mark: content["labels"].__setitem__(0, -1)),
    "label text": _batch(lambda content, mark: content["labels"].__setitem__(0, "cat")),
    "one label less": _batch(lambda content, mark: content["labels"].pop() and None),
    "other shape": _batch(lambda content, mark: content.update(data=np.zeros((8, 100), np.uint8))),
    "floats": _batch(lambda content, mark: content.update(data=content["data"].astype(np.float64))),
    "objects": _batch(lambda content, mark: content.update(data=[[1, 2], [3]])), "list": _batch(lambda content, mark: [1, 2, 3]),
    "number": _batch(lambda content, mark: 5),
    "no images": _batch(lambda content, mark: {"data": np.zeros((0, 3072), np.uint8), "labels": []}),
    "no folder": lambda root, mark: shutil.rmtree(os.path.join(root, "cifar-10-batches-py"))})

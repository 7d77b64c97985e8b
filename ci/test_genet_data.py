"""GENet's data: reading the CIFAR pickles safely, and cutting batches out of them as upstream's pipeline would."""
import hashlib
import json
import os
import pickle
import random
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import cifar
import cifar_batches
from common.cli import UserError
from common.data import DeviceBatches
from common.device import import_torchvision
from fill import make_image

with open(os.path.join(os.path.dirname(__file__), "golden", "GENet.json")) as stream:
    TRANSFORMS = json.load(stream)["transforms"]


# --- the transforms ---------------------------------------------------------------------------------------------------

def golden_images(case):
    """The case's picture as one padded or plain image in a batch of 1."""
    picture = make_image(**case["image"])
    return np.ascontiguousarray(picture.transpose(2, 0, 1))[None]


def normalized(images, dataset="cifar10"):
    """What the device makes of uint8 images (n, 3, h, w)."""
    mean, std = cifar_batches.MEAN_STD[dataset]
    source = [(torch.as_tensor(images), torch.zeros(len(images), dtype=torch.int64), [])]
    return next(iter(DeviceBatches(source, torch.device("cpu"), mean, std)))[0]


def assert_golden(image, case):
    assert list(image.shape) == case["shape"]
    for (channel, row, column), value in zip(case["indices"], case["values"]):
        assert float(image[channel, row, column]) == pytest.approx(value, abs=1e-5)
    assert float(image.double().mean()) == pytest.approx(case["mean"], abs=1e-6)
    assert float(image.double().std()) == pytest.approx(case["std"], rel=1e-4)


@pytest.mark.parametrize("case", TRANSFORMS["eval"], ids=lambda case: "%(width)dx%(height)d-%(seed)d" % case["image"])
def test_golden_eval_transform(case):
    """Evaluation: the whole image, scaled and normalised with upstream's constants."""
    assert_golden(normalized(golden_images(case), case["dataset"])[0], case)


@pytest.mark.parametrize("make", [cifar_batches.HostCrops, lambda padded: cifar_batches.DeviceCrops(padded, torch.device("cpu"))],
                         ids=["host", "device"])
@pytest.mark.parametrize("case", TRANSFORMS["train"], ids=lambda case: "%(crop_top)d-%(crop_left)d-%(flip)s" % case)
def test_golden_train_transform(case, make):
    """Training: padding before normalisation, the crop at the given corner, the flip, on the host and on a device."""
    crops = make(cifar_batches.pad(golden_images(case)))
    numbers = (np.array([0]), np.array([case["crop_top"]]), np.array([case["crop_left"]]), np.array([case["flip"]]))
    assert_golden(normalized(crops(*numbers), case["dataset"])[0], case)


def upstream_pipeline(image, top, left, flip, dataset):
    """The sheet's pipeline for one image (3, 32, 32), by PIL and torchvision, with the draws given."""
    transforms = pytest.importorskip("torchvision.transforms")
    picture = ImageOps.expand(Image.fromarray(image.transpose(1, 2, 0)), border=4, fill=0)
    picture = picture.crop((left, top, left + 32, top + 32))
    if flip:
        picture = picture.transpose(Image.FLIP_LEFT_RIGHT)
    return transforms.Normalize(*cifar_batches.MEAN_STD[dataset])(transforms.ToTensor()(picture))


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_batches_equal_upstreams_pipeline_sample_for_sample(dataset):
    """A vectorised batch is, image by image, what PIL and torchvision make of the same draws; host and device agree."""
    import_torchvision()
    images = np.random.RandomState(0).randint(0, 256, (20, 3, 32, 32)).astype(np.uint8)
    top, left, flip = cifar_batches.draw_augmentation(7, 3, 200)
    index = np.random.RandomState(1).randint(0, 20, 200)
    padded = cifar_batches.pad(images)
    on_host = cifar_batches.HostCrops(padded)(index, top, left, flip)
    on_device = cifar_batches.DeviceCrops(padded, torch.device("cpu"))(index, top, left, flip)
    assert on_host.dtype == torch.uint8 and torch.equal(on_host, on_device)
    batch = normalized(on_host, dataset)
    for ours, *sample in zip(batch, index, top, left, flip):
        expected = upstream_pipeline(images[sample[0]], *sample[1:], dataset=dataset)
        assert torch.allclose(ours, expected, atol=2e-6)


def test_draws_are_a_function_of_seed_epoch_and_index():
    """An image's draws depend neither on the others nor on how many there are; epochs and seeds differ."""
    whole = cifar_batches.draw_augmentation(5, 2, 1000)
    part = cifar_batches.draw_augmentation(5, 2, 100)
    assert all(np.array_equal(a[:100], b) for a, b in zip(whole, part))
    for seed, epoch in ((5, 3), (6, 2), (0, 0)):
        assert not np.array_equal(whole[0], cifar_batches.draw_augmentation(seed, epoch, 1000)[0])


def test_draws_are_uniform():
    """Corners uniform in 0..8 both ways, flips with probability one half, all independent."""
    top, left, flip = cifar_batches.draw_augmentation(0, 0, 81 * 2 * 200)
    counts = np.bincount((top * 9 + left) * 2 + flip, minlength=162)
    assert len(counts) == 162
    assert ((counts - 200) ** 2 / 200).sum() == pytest.approx(161, abs=5 * (2 * 161) ** 0.5)


# --- the pickles ------------------------------------------------------------------------------------------------------

def python2_string(text):
    """Pickle opcodes of a Python 2 str, as CIFAR's own files hold them."""
    if len(text) < 256:
        return b"U" + struct.pack("B", len(text)) + text
    return b"T" + struct.pack("<i", len(text)) + text


def python2_batch(images, labels, label_key=b"labels", tail=b"."):
    """A batch file as Python 2 and the numpy of 2009 wrote it, byte for byte the opcodes of CIFAR-10's own files."""
    rows = images.reshape(len(images), -1)
    shape = b"M" + struct.pack("<H", rows.shape[0]) + b"M" + struct.pack("<H", rows.shape[1]) + b"\x86"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + python2_string(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + python2_string(b"u1") + b"K\x00K\x01\x87R(K\x03" + python2_string(b"|") \
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array += b"(K\x01" + shape + dtype + b"\x89" + python2_string(rows.tobytes()) + b"tb"
    numbers = b"](" + b"".join(b"K" + struct.pack("B", label) for label in labels) + b"e"
    return b"\x80\x02}(" + python2_string(b"data") + array + python2_string(label_key) + numbers + b"u" + tail


def published_meta():
    """The bytes of CIFAR-10's own batches.meta."""
    strings = [b"num_cases_per_batch", b"label_names"] + b"airplane automobile bird cat deer dog frog horse ship truck".split()
    memo = iter(range(2, 100))

    def string(text):
        return python2_string(text) + b"q" + struct.pack("B", next(memo))

    body = string(strings[0]) + b"M\x10\x27" + string(strings[1]) + b"]q" + struct.pack("B", next(memo)) + b"("
    body += b"".join(string(name) for name in strings[2:]) + b"e" + string(b"num_vis") + b"M\x00\x0c"
    return b"\x80\x02}q\x01(" + body + b"u."


def pictures(count, seed=0):
    """Random images and labels."""
    rng = np.random.RandomState(seed)
    return rng.randint(0, 256, (count, 3, 32, 32)).astype(np.uint8), rng.randint(0, 10, count).tolist()


def write_cifar(folder, per_batch=6, protocol=2):
    """Write a small data set in CIFAR-10's layout; return the training images and labels."""
    folder.mkdir(parents=True)
    images, labels = pictures(6 * per_batch)
    for number, name in enumerate(["data_batch_%d" % k for k in range(1, 6)] + ["test_batch"]):
        part = slice(number * per_batch, (number + 1) * per_batch)
        content = {"batch_label": name, "labels": labels[part], "data": images[part].reshape(per_batch, -1), "filenames": []}
        (folder / name).write_bytes(pickle.dumps(content, protocol))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}, protocol))
    return images, labels


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("inside", [True, False], ids=["one level up", "directly"])
def test_reading_the_folder(tmp_path, protocol, inside):
    """Files of every pickle protocol; the folder itself or the one above it; the order is that of the files."""
    folder = tmp_path / "a b $c" / "cifar-10-batches-py"
    images, labels = write_cifar(folder, protocol=protocol)
    found = cifar.find_folder(str(folder.parent if inside else folder))
    train, test = cifar.read_split(found, "train"), cifar.read_split(found, "test")
    assert np.array_equal(np.concatenate([train[0], test[0]]), images) and train[0].dtype == np.uint8
    assert np.concatenate([train[1], test[1]]).tolist() == labels and train[1].dtype == np.int64
    assert cifar.class_names(found) == list("abcdefghij")


def test_reading_files_of_python_2(tmp_path):
    """CIFAR's own files were written by Python 2: their strings and arrays come out right."""
    images, labels = pictures(300)
    path = tmp_path / "data_batch_1"
    path.write_bytes(python2_batch(images, labels))
    read = cifar.read_batch(str(path))
    assert np.array_equal(read[0], images) and read[1].tolist() == labels
    reference = pickle.loads(path.read_bytes(), encoding="latin1")  # the fixture is what numpy takes for a batch, too
    assert np.array_equal(reference["data"].reshape(-1, 3, 32, 32), images) and reference["labels"] == labels


def test_reading_cifar100(tmp_path):
    """CIFAR-100: its own folder, file names, label key and number of classes."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    images, labels = pictures(20)
    labels[0] = 99
    for name in ("train", "test"):
        (folder / name).write_bytes(python2_batch(images, labels, b"fine_labels"))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["class %d" % number for number in range(100)]}, 2))
    found = cifar.find_folder(str(tmp_path), "cifar100")
    assert cifar.read_split(found, "train", "cifar100")[1].tolist() == labels
    assert len(cifar.class_names(found, "cifar100")) == 100
    with pytest.raises(UserError, match="labels"):
        cifar.read_batch(str(folder / "train"), "cifar10")


def test_pixels_have_their_places(tmp_path):
    """Pixel (y, x) of channel c is entry 1024 c + 32 y + x of a row."""
    row = np.zeros((1, 3072), np.uint8)
    row[0, 1024 * 2 + 32 * 5 + 7] = 200
    (tmp_path / "batch").write_bytes(pickle.dumps({"data": row, "labels": [3]}, 2))
    images, _ = cifar.read_batch(str(tmp_path / "batch"))
    assert images[0, 2, 5, 7] == 200 and images.sum() == 200


def test_missing_folder_and_files(tmp_path):
    """One line says what is missing: the folder, the data set in it, or which file of it."""
    with pytest.raises(UserError, match="is not a folder"):
        cifar.find_folder(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="no cifar10 data set in .*cifar-10-batches-py"):
        cifar.find_folder(str(tmp_path))
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder)
    (folder / "data_batch_4").unlink()
    with pytest.raises(UserError, match="incomplete: no file data_batch_4"):
        cifar.find_folder(str(tmp_path))


@pytest.mark.parametrize("keep", [0, 1, 100, 3000, -1])
@pytest.mark.parametrize("write", [lambda images, labels: python2_batch(images, labels),
                                   lambda images, labels: pickle.dumps({"labels": labels, "data": images.reshape(6, -1)}, 4)],
                         ids=["python 2", "protocol 4"])
def test_truncated_file(tmp_path, write, keep):
    """A file that ends too early is named in one line, wherever it ends."""
    path = tmp_path / "data_batch_2"
    path.write_bytes(write(*pictures(6))[:keep])
    with pytest.raises(UserError, match="data_batch_2 is truncated or not a CIFAR pickle"):
        cifar.read_batch(str(path))


class Attack:
    """Pickles to a call of os.system."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("content", [
    lambda command: Attack(command), lambda command: {"data": Attack(command), "labels": [1]}], ids=["bare", "in the dict"])
def test_no_code_in_a_file_is_run(tmp_path, content):
    """A pickle that asks for a call is refused by name, and the call is not made."""
    ran, path = tmp_path / "ran", tmp_path / "test_batch"
    path.write_bytes(pickle.dumps(content("touch '%s'" % ran), 2))
    with pytest.raises(UserError, match="system, which was not run"):
        cifar.read_batch(str(path))
    assert not ran.exists()
    pickle.loads(path.read_bytes())
    assert ran.exists()  # the file does run code when it is let


@pytest.mark.parametrize("content, complaint", [
    (["a list"], "holds no dict"),
    ({"labels": [1]}, "no 'data'"),
    ({"data": np.zeros((2, 100), np.uint8), "labels": [1, 2]}, "no 'data'"),
    ({"data": np.zeros((2, 3072), np.float32), "labels": [1, 2]}, "array is not of bytes"),
    ({"data": np.zeros((2, 3072), np.uint8)}, "no list 'labels'"),
    ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "no list 'labels'"),
    ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, "no list 'labels'"),
    ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 10]}, "label is not an integer from 0 to 9"),
    ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, "2"]}, "label is not an integer from 0 to 9"),
    ({"data": {1: 2}, "labels": [1]}, "no 'data'"),
    (random.Random(0), "which was not run")], ids=range(11))
def test_a_pickle_of_something_else(tmp_path, content, complaint):
    """A pickle that is no CIFAR batch is refused in one line that says what is wrong with it."""
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps(content, 3))
    with pytest.raises(UserError, match=complaint):
        cifar.read_batch(str(path))


def test_random_damage_never_escapes(tmp_path):
    """Whatever bytes are damaged, reading gives a batch or one UserError, nothing else."""
    rng = random.Random(0)
    content = python2_batch(*pictures(2))
    path = tmp_path / "batch"
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(3):  # in the opcodes: the pixels lie in the middle
            place = rng.choice([rng.randrange(200), len(damaged) - 1 - rng.randrange(30)])
            damaged[place] = rng.randrange(256)
        path.write_bytes(bytes(damaged))
        try:
            cifar.read_batch(str(path))
        except UserError:
            refused += 1
    assert refused > 200


def test_published_data_set_is_checksummed(tmp_path, monkeypatch):
    """CIFAR-10's own class-name file marks the real data set: a file of it with other bytes is named; others pass."""
    assert hashlib.md5(published_meta()).hexdigest() == cifar.PUBLISHED_MD5["cifar10"]["batches.meta"]
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder)
    assert cifar.verify_checksums(str(folder)) is False
    (folder / "batches.meta").write_bytes(published_meta())
    assert cifar.class_names(str(folder))[:2] == ["airplane", "automobile"]
    with pytest.raises(UserError, match="data_batch_1, .*test_batch in .* is not the published file"):
        cifar.verify_checksums(str(folder))
    monkeypatch.setitem(cifar.PUBLISHED_MD5, "cifar10", {path.name: cifar.md5(str(path)) for path in folder.iterdir()})
    assert cifar.verify_checksums(str(folder)) is True


def test_published_checksums():
    """The MD5 table is torchvision's."""
    datasets = import_torchvision().datasets
    for name, reference in (("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)):
        table = dict(reference.train_list + reference.test_list)
        if hasattr(reference, "meta"):
            table[reference.meta["filename"]] = reference.meta["md5"]
        assert {key: cifar.PUBLISHED_MD5[name][key] for key in table} == table

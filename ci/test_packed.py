"""Packed data sets (tools/dataset.py pack, common/packed.py): the same pictures in the same order, whatever happens on the way."""
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from common import cli, data, distributed, jpeg, packed, records, transforms
from conftest import ROOT, environment, load_script, write_images

sys.path.append(os.path.join(ROOT, "tools"))
import verbs  # noqa: E402

ALONE = distributed.Rank(0, 1, 0, torch.device("cpu"))
needs_jpegtran = pytest.mark.skipif(not shutil.which("jpegtran"), reason="jpegtran (libjpeg-turbo-progs) is not installed")


def dataset_tool(*options):
    return subprocess.run([sys.executable, os.path.join(ROOT, "tools", "dataset.py")] + [str(option) for option in options],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=300, env=environment())


def pack(source, out, *options):
    done = dataset_tool("pack", source, out, "--workers", 2, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_refused(words, *options, error=cli.UserError):
    """`pack` ends with such an error, of one line."""
    with pytest.raises(error, match=re.escape(words)) as raised:
        verbs.run("datasets", "", ["pack"] + [str(option) for option in options])
    assert "\n" not in str(raised.value)


def noise(size, seed):
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, size[::-1] + (3,)).astype(np.uint8))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A data set with names that are hard on tar files, pictures of 90 kB, a PNG, a progressive and a grey JPEG, a broken file."""
    root = tmp_path_factory.mktemp("pack") / "a $b"
    write_images(root / "train", classes=3, per_class=8)
    write_images(root / "val", classes=3, per_class=2)
    folder = root / "train" / "n00000001"
    for number in range(20):
        noise((300, 200), number).save(str(folder / ("big%d.jpg" % number)), quality=95)
    noise((30, 20), 0).save(str(folder / "p\u00e4 \u56fe.png"))
    (folder / "deeper").mkdir()
    noise((97, 83), 1).save(str(folder / "deeper" / ("x" * 120 + ".JPEG")), progressive=True)
    noise((97, 83), 2).convert("L").save(str(folder / "grey.jpeg"))
    (folder / "broken.jpg").write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def shards(folders, tmp_path_factory):
    """The same, packed into shards of 1 MiB."""
    out = tmp_path_factory.mktemp("packed") / "out"
    pack(folders, out, "--shard-size", 1)
    return out


def batches_of(root, workers=0):
    """Return what a training gets of a data set in two epochs: unreadable files (names alone), labels, pixels."""
    dataset = data.ImageFolder(os.path.join(str(root), "train"), transforms.train_transform(24), 3, seed=3, replace=True)
    sampler = data.TrainBatches(len(dataset), 8, ALONE, seed=3)
    source, found = data.Loader(dataset, sampler, workers), []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        found += [(len(bad), labels.tolist(), images.numpy().tobytes()) for images, labels, bad in source]
    return found


def test_a_training_sees_the_same(folders, shards):
    """Layout, classes, order, augmentation and pixels are those of the folders, in the trainer's process and in loaders'; a broken
    picture is as broken, and is named."""
    data.check_layout(str(shards))
    wanted = batches_of(folders)
    assert batches_of(shards) == wanted and batches_of(shards, workers=2) == wanted and sum(bad for bad, _, _ in wanted)
    dataset = data.ImageFolder(str(shards / "train"), transforms.eval_transform(16, 16), 3)
    bad = [dataset[(0, index)][2] for index in range(len(dataset))]
    assert sum(len(messages) for messages in bad) == 1
    assert "n00000001/broken.jpg of %s" % (shards / "train" / "shard-000") in [messages for messages in bad if messages][0][0]


def test_shards_are_plain_tar_files(folders, shards):
    """tar reads them; each picture is followed by its class number under the same name; the index says where the bytes are."""
    index = packed.read_index(str(shards / "train"))
    assert len(os.listdir(str(shards / "train"))) == index["shards"].max() + 2 and index["shards"].max() >= 1
    seen = {}
    for number in range(index["shards"].max() + 1):
        with tarfile.open(str(shards / "train" / (packed.SHARD % number))) as tar:
            members = tar.getmembers()
            for picture, label in zip(members[::2], members[1::2]):
                assert os.path.splitext(picture.name)[0] + ".cls" == label.name
                seen[picture.name] = (number, picture.offset_data, tar.extractfile(picture).read(), int(tar.extractfile(label).read()))
    names = [os.fsdecode(bytes(key)) for key in index["keys"]]
    assert sorted(seen) == sorted(names) and index["keys"].tolist() == data.Files(str(folders / "train")).keys.tolist()
    for position, name in enumerate(names):
        shard, offset, content, label = seen[name]
        assert (shard, offset, label) == tuple(index[field][position] for field in ("shards", "offsets", "labels"))
        assert content == open(str(folders / "train" / name), "rb").read() and len(content) == index["lengths"][position]


def test_what_is_written_survives(folders, shards, tmp_path):
    """After a kill the same command writes what is missing, and nothing else; when all is there, nothing. Other options are refused."""
    out = tmp_path / "out"
    shutil.copytree(str(shards), str(out))
    assert "packed already" in pack(folders, out, "--shard-size", 1)
    index = packed.read_index(str(out / "train"))
    pack(folders, tmp_path / "again", "--shard-size", 1)
    # As a kill leaves it: a shard is done, the next one is begun, there is no index.
    plan = {"pictures": len(index["labels"]), "bytes": int(sum(index["lengths"])), "shard_size": 1, "restart_markers": False}
    (out / "train" / "plan.json").write_text(json.dumps(plan))
    os.remove(str(out / "train" / packed.INDEX))
    own = index["shards"] == 0
    rows = np.zeros(own.sum(), dtype=packed.FIELDS + [("rewritten", bool)])
    order = np.argsort(index["offsets"][own])
    for name, _ in packed.FIELDS:
        rows[name] = index[name][own][order]
    np.save(str(out / "train" / (packed.SHARD % 0 + ".npy")), rows)
    os.rename(str(out / "train" / (packed.SHARD % 1)), str(out / "train" / (packed.SHARD % 1 + ".part")))
    kept = os.stat(str(out / "train" / (packed.SHARD % 0))).st_mtime_ns
    assert_refused("other pictures or options", folders, out, "--shard-size", 2)
    pack(folders, out, "--shard-size", 1)
    assert os.stat(str(out / "train" / (packed.SHARD % 0))).st_mtime_ns == kept
    for name in sorted(os.listdir(str(shards / "train"))):
        assert (out / "train" / name).read_bytes() == (shards / "train" / name).read_bytes(), name
    assert sorted(os.listdir(str(out / "train"))) == sorted(os.listdir(str(shards / "train")))


def test_check_of_packed_data(shards, tmp_path):
    """A bit that has changed, a shard that is gone or cut off and a picture that was broken before: each is a problem with a name."""
    done = dataset_tool("check", shards, "--classes", 3)
    assert done.returncode == 1 and "BAD: 1 problem" in done.stdout and "broken.jpg of" in done.stdout, done.stdout
    out = tmp_path / "out"
    shutil.copytree(str(shards), str(out))
    index = packed.read_index(str(out / "val"))
    with open(str(out / "val" / (packed.SHARD % 0)), "r+b") as shard:
        shard.seek(int(index["offsets"][0]) + 100)
        byte = shard.read(1)
        shard.seek(-1, 1)
        shard.write(bytes([byte[0] ^ 1]))
    os.truncate(str(out / "train" / (packed.SHARD % 0)), 5000)
    os.remove(str(out / "train" / (packed.SHARD % 1)))
    done = dataset_tool("check", out, "--classes", 4)
    for words in ("its checksum differs", "%s is missing" % (packed.SHARD % 1), "val has 3 classes instead of 4"):
        assert words in done.stdout, done.stdout
    with pytest.raises(cli.UserError, match="is missing"):
        data.ImageFolder(str(out / "train"), None, 3)


def test_a_damaged_index(shards, tmp_path):
    """Defect: the traceback of whatever zipfile or zlib raises for a copy that was broken off, or has a wrong byte."""
    index = tmp_path / packed.INDEX
    whole = (shards / "train" / packed.INDEX).read_bytes()
    middle = len(whole) // 2
    for content in (b"PK no index", b"", whole[:middle], whole[:-5], whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1:]):
        index.write_bytes(content)
        with pytest.raises(cli.UserError, match="is not the index"):
            packed.read_index(str(tmp_path))


def test_a_shard_that_was_cut_off(shards, tmp_path):
    """A picture that lies beyond the end is unreadable; it is not half a picture."""
    shutil.copytree(str(shards / "train"), str(tmp_path / "train"))
    os.truncate(str(tmp_path / "train" / (packed.SHARD % 0)), 5000)
    files = packed.Shards(str(tmp_path / "train"))
    with pytest.raises(OSError, match="ends before the picture"):
        files.read(int(np.argmax(np.where(packed.read_index(str(tmp_path / "train"))["shards"] == 0, files._offsets, 0))))


def test_wrong_use_of_pack(folders, shards, tmp_path):
    """No data set, a packed one, a place that cannot be written."""
    assert_refused("neither train/ nor val/", tmp_path, tmp_path / "out")
    (tmp_path / "train").mkdir()
    assert_refused("OUT is DIR", tmp_path, str(tmp_path) + "/.")  # which would be folders and packed at once
    (tmp_path / "train").rmdir()
    assert_refused("packed already", shards, tmp_path / "out")
    (tmp_path / "file").write_text("x")
    assert_refused(str(tmp_path / "file"), folders, tmp_path / "file", error=cli.TrainingStopped)


@needs_jpegtran
def test_restart_markers_change_no_pixel(folders, tmp_path):
    """Baseline JPEG files get markers and an index, everything else stays as it was; a training sees the same pixels."""
    told = pack(folders, tmp_path / "out", "--restart-markers")
    assert batches_of(tmp_path / "out") == batches_of(folders)
    files, originals = packed.Shards(str(tmp_path / "out" / "train")), data.Files(str(folders / "train"))
    indexed = 0
    for number in range(len(files.targets)):
        content, original = files.read(number), originals.read(number)
        head = jpeg.header(content)
        assert (content == original) == (jpeg.header(original) is None)
        if content != original:
            indexed += 1
            assert head.index
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), np.asarray(Image.open(io.BytesIO(original))))
    assert indexed >= 20 and "%d rewritten" % indexed in told


def test_the_order_of_shuffled_shards(shards, monkeypatch):
    """--shuffle_shards: a pure function of the seed; a shard's pictures come one after the other, RUN of them as they lie in the file,
    and neither shards nor runs always in the same order."""
    monkeypatch.setattr(packed, "RUN", 4)
    folder, index = packed.Shards(str(shards / "train")), packed.read_index(str(shards / "train"))
    orders = [folder.order(seed) for seed in range(8)]
    assert folder.order(2 ** 32 + 3).tolist() == orders[3].tolist() != orders[4].tolist()
    ranks = {shard: np.argsort(np.argsort(index["offsets"][index["shards"] == shard])) for shard in np.unique(index["shards"])}
    for order in orders:
        assert sorted(order.tolist()) == list(range(len(index["labels"])))
        assert np.count_nonzero(np.diff(index["shards"][order])) == len(ranks) - 1 > 0
        for shard in ranks:
            place = np.empty(len(index["labels"]), int)
            place[index["shards"] == shard] = ranks[shard]
            places = place[order[index["shards"][order] == shard]]
            jumps = np.flatnonzero(np.diff(places) != 1) + 1
            assert all(places[start] % 4 == 0 for start in jumps) and len(jumps) <= len(places) // 4
    assert len({index["shards"][order[0]] for order in orders}) > 1 and len({order[5] for order in orders}) > 2


def test_shuffled_shards_over_ranks_and_resumed(folders, shards, monkeypatch):
    """Ranks together see in each step what one sees, each a stretch of it; a resumed epoch goes on where it was; each picture comes
    once. Class folders have no such order, and the checkpoint of one order does not go on with the other."""
    monkeypatch.setattr(packed, "RUN", 4)
    dataset = data.ImageFolder(str(shards / "train"), transforms.train_transform(24), 3)
    order = dataset.order(True)

    def batches(rank, batch_size, epoch=5, step=0):
        made = data.TrainBatches(len(dataset), batch_size, rank, 3, order=order)
        made.set_epoch(epoch, step)
        return list(made)

    alone, keys = batches(ALONE, 8), [(5, index) for index in order(8)]
    ranks = [batches(ALONE._replace(rank=rank, world_size=2), 4) for rank in range(2)]
    assert sum(alone, []) == keys[:8 * len(alone)] and [first + second for first, second in zip(*ranks)] == alone
    assert batches(ALONE, 8, step=2) == alone[2:] and batches(ALONE, 8, epoch=6) != alone
    kept = data.TrainBatches(len(dataset), 9, ALONE, 3, drop_last=False, order=order)
    assert sorted(index for batch in kept for _, index in batch) == list(range(len(dataset)))
    assert dataset.order(False) is None and kept.run_length == 4 and data.TrainBatches(9, 3, ALONE).run_length == 1
    with pytest.raises(cli.UserError, match="--shuffle_shards: .* is no packed data set"):
        data.ImageFolder(str(folders / "train"), None, 3).order(True)


def test_a_batch_is_fetched_ahead(shards, monkeypatch):
    """Before the first picture of a batch is decoded, the kernel has been told where all of them are; a shard that is gone is for
    the reading to say."""
    told, advise = [], os.posix_fadvise
    monkeypatch.setattr(os, "posix_fadvise", lambda file, *where: told.append(where) or advise(file, *where))
    seen = []
    dataset = data.ImageFolder(str(shards / "train"), lambda picture, rng: seen.append(len(told)) or np.zeros((1, 1, 3), np.uint8), 3)
    index = packed.read_index(str(shards / "train"))
    keys = next(iter(data.TrainBatches(len(dataset), 8, ALONE, 3, order=dataset.order(True))))
    next(iter(data.Loader(dataset, data.TrainBatches(len(dataset), 8, ALONE, 3, order=dataset.order(True)), 0)))
    assert told[:8] == [(index["offsets"][i], index["lengths"][i], os.POSIX_FADV_WILLNEED) for _, i in keys] and seen[1] == 8
    monkeypatch.setattr(packed, "SHARD", "gone-%d")
    packed.Shards.expect(dataset._files, [(0, int(np.argmax(index["shards"])))])


@needs_jpegtran
def test_intervals_are_as_many_as_the_index_can_list(monkeypatch):
    """Two units each; of a picture with more than fit into the segment, larger ones, which are better than no index."""
    restart, content = load_script("tools/datasets/_restart.py"), io.BytesIO()
    noise((128, 96), 3).save(content, "JPEG", subsampling=2)

    def units():
        head = jpeg.header(restart.with_restart_markers(content.getvalue()))
        return head.index[1] - 2
    assert units() == 8 * 6 // 2
    monkeypatch.setattr(restart, "_INTERVALS", 20)
    assert units() == 8 * 6 // 4


def losses_of(root, out):
    done = subprocess.run(
        ["bash", os.path.join(ROOT, "ResNet50", "test", "train_full_1p.sh"), "--data_path=%s" % root, "--device=cpu", "--arch=resnet18",
         "--image_size=32", "--train_epochs=1", "--batch_size=8", "--max_steps=2", "--workers=0", "--seed=1", "--skip_bad_images",
         "--output_path=%s" % out], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, env=environment())
    assert done.returncode == 0, done.stdout
    return [record["data"]["train.loss"] for record in records.read(str(out / "metrics.jsonl"))
            if record["type"] == "LOG" and "train.loss" in record["data"]]


def test_a_script_trains_on_packed_data(folders, shards, tmp_path):
    """--data_path takes both, and the losses are equal to the last digit."""
    losses = losses_of(shards, tmp_path / "packed")
    assert len(losses) >= 2 and losses == losses_of(folders, tmp_path / "folders")

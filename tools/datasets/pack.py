"""Pack ImageNet's folders into a few tar files with an index: faster to copy, and to read from disks and network file systems.

--data_path then takes OUT as it takes DIR: the same pictures in the same order, to the last bit of the weights. The tar files are
plain ones, in random order and with a .cls file (the class number) beside each picture, as webdataset and torchdata read them; the
index is described in common/packed.py. What has been written survives a kill: the same command goes on.

--restart-markers rewrites baseline JPEG files, without a loss and with all their metadata, so that training decodes no more of them
than its crop touches. It takes libjpeg-turbo's jpegtran (package libjpeg-turbo-progs); each rewritten picture is compared, pixel by
pixel, with its original, and stays as it was where that fails or where it is no baseline JPEG.

Example: dataset.py pack /data/imagenet /data/packed --restart-markers
"""
import io
import json
import os
import shutil
import tarfile
import zlib
from collections import namedtuple

import numpy as np

from common import cli, data, packed
from datasets import _pool, _restart

SPLITS = ("train", "val")
ORDER_SEED = 0  # of the pictures in the shards
_BLOCK = tarfile.BLOCKSIZE

# What a process is told: numbers of the pictures that a shard holds, the number and folder of the shard, whether to rewrite.
Task = namedtuple("Task", "numbers shard out restart")


def add_flags(parser):
    """Add the verb's flags to its parser."""
    add = parser.add_argument
    add("dir", metavar="DIR", help="the data set, with train/ and val/, or one of them")
    add("out", metavar="OUT", help="the folder to write to")
    add("--shard-size", metavar="MIB", type=cli.positive_int, default=1024, help="about how large a tar file is (default: 1024)")
    add("--restart-markers", action="store_true", help="rewrite baseline JPEG files without a loss")
    _pool.add_flag(parser, "pack")


def run(args):
    """Pack both sides, or that one which is there; raise UserError for what is no data set, TrainingStopped where writing fails."""
    splits = [split for split in SPLITS if os.path.isdir(os.path.join(args.dir, split))]
    if not splits:
        raise cli.UserError("%s has neither train/ nor val/; name the folder of the data set" % args.dir)
    if os.path.realpath(args.dir) == os.path.realpath(args.out):
        raise cli.UserError("OUT is DIR: pack into a folder beside %s, whose pictures stay as they are" % args.dir)
    if args.restart_markers and not shutil.which("jpegtran"):
        raise cli.UserError("--restart-markers takes jpegtran: install libjpeg-turbo-progs")
    data.check_layout(args.dir, splits)
    for split in splits:
        try:
            _pack(os.path.join(args.dir, split), os.path.join(args.out, split), args)
        except OSError as error:
            raise cli.TrainingStopped("cannot pack %s: %s; the same command goes on" % (error.filename or args.out, error.strerror or error))


def _pack(folder, out, args):
    if packed.is_packed(folder):
        raise cli.UserError("%s is packed already" % folder)
    files = data.Files(folder)
    sizes = np.array([os.path.getsize(files.path(number)) for number in range(len(files.targets))])
    plan = {"pictures": len(sizes), "bytes": int(sizes.sum()), "shard_size": args.shard_size, "restart_markers": args.restart_markers}
    os.makedirs(out, exist_ok=True)
    if packed.is_packed(out):
        cli.print_line("%s: packed already" % out)
        return
    _agree_with(os.path.join(out, "plan.json"), plan)
    tasks = _tasks(sizes, out, args)
    rows = _run_tasks(files, tasks, args.workers)
    _write_index(files, tasks, rows, out)
    cli.print_line("%s: %d pictures of %d classes in %d shards; %d rewritten, %.3f of the size" % (
        out, len(sizes), len(files.classes), len(tasks), sum(row["rewritten"].sum() for row in rows),
        sum(row["lengths"].sum() for row in rows) / max(1, sizes.sum())))


def _agree_with(path, plan):
    """Note what is packed and how; raise UserError where what is there was begun otherwise."""
    if os.path.exists(path):
        with open(path) as file:
            if json.load(file) != plan:
                raise cli.UserError("%s was begun with other pictures or options; remove the folder, or choose another" % path)
    else:
        _write(path, json.dumps(plan).encode())


def _tasks(sizes, out, args):
    order = np.random.RandomState(ORDER_SEED).permutation(len(sizes))
    shards = np.cumsum(sizes[order]) // (args.shard_size << 20)
    return [Task(order[shards == shard], number, out, args.restart_markers) for number, shard in enumerate(np.unique(shards))]


def _run_tasks(files, tasks, workers):
    """Return the index's rows of each shard, packed now or by an earlier call."""
    global _files  # a million names, which the processes have from here: they are not sent with each task
    _files = files
    return _pool.results(_pack_shard, tasks, workers, tasks[0].out, pictures=lambda task: len(task.numbers))


def _rows_path(task):
    return os.path.join(task.out, packed.SHARD % task.shard + ".npy")


def _pack_shard(task):
    """Write a shard, then what the index will say of it, which marks it as done; return that."""
    if os.path.exists(_rows_path(task)):
        return np.load(_rows_path(task))
    rows = np.zeros(len(task.numbers), dtype=packed.FIELDS + [("rewritten", bool)])
    path = os.path.join(task.out, packed.SHARD % task.shard)
    with open(path + ".part", "wb") as tar:
        for row, number in zip(rows, task.numbers):
            original, key = _files.read(number), os.fsdecode(bytes(_files.keys[number]))
            content = _restart.with_restart_markers(original) if task.restart else original
            row["offsets"] = _add(tar, key, content)
            row["shards"], row["lengths"], row["labels"] = task.shard, len(content), _files.targets[number]
            row["checksums"], row["rewritten"] = zlib.crc32(content), content is not original
            _add(tar, os.path.splitext(key)[0] + ".cls", b"%d" % _files.targets[number])
        tar.write(bytes(2 * _BLOCK))
        tar.flush()
        os.fsync(tar.fileno())
    os.replace(path + ".part", path)
    content = io.BytesIO()
    np.save(content, rows)
    _write(_rows_path(task), content.getvalue())
    return rows


def _add(tar, name, content):
    """Append a member to an open tar file; return where its content begins."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
    offset = tar.tell()
    tar.write(content + bytes(-len(content) % _BLOCK))
    return offset


def _write_index(files, tasks, rows, out):
    """Put the shards' rows into the order of the folder, and remove what was needed on the way."""
    merged = np.zeros(len(files.targets), dtype=rows[0].dtype)
    for task, own in zip(tasks, rows):
        merged[task.numbers] = own
    content = io.BytesIO()
    np.savez(content, keys=files.keys, classes=np.array(files.classes), **{name: merged[name] for name, _ in packed.FIELDS})
    _write(os.path.join(out, packed.INDEX), content.getvalue())
    for task in tasks:
        os.remove(_rows_path(task))
    os.remove(os.path.join(out, "plan.json"))


def _write(path, content):
    with open(path + ".part", "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".part", path)

"""Check a data set before days of training depend on it: its layout, its classes, and every single file.

ImageNet layout, DIR/{train,val}/<class>/<picture>: both sides have the same classes, no class is empty, every picture
is decoded to its last pixel and can become RGB. CIFAR-10 (DIR or DIR/cifar-10-batches-py): all files are there and
hold what they should; nothing that a pickle contains is run; the published files are recognised by their MD5.

A packed data set (dataset.py pack): the shards hold what the index says, to the last bit, besides.

Exit status: 0 good, 1 problems were found, 2 wrong usage.

Example: dataset.py check /data/imagenet --classes 1000
"""
import functools
import os
import sys
import zlib

import numpy as np
from tqdm import tqdm

from GENet import cifar
from common import folders, jpeg, packed
from common.cli import UserError, positive_int
from datasets import _pool

SPLITS = ("train", "val")
LISTED_PROBLEMS = 20
CHUNK = 32  # pictures that a process is given at a time


# --- ImageNet's layout ------------------------------------------------------------------------------------------------

def check_imagenet(root, wanted_classes, workers):
    """Print what is in `root` and return the problems, a list of lines."""
    print("%s: ImageNet layout" % root)
    splits = [split for split in SPLITS if os.path.isdir(os.path.join(root, split))]
    problems = ["there is no folder %s" % os.path.join(root, split) for split in SPLITS if split not in splits]
    found = {split: find_pictures(os.path.join(root, split), problems) for split in splits}
    for split in splits:
        problems += check_classes(root, split, found[split], wanted_classes)
    if len(splits) == len(SPLITS) and all(found.values()):
        problems += compare_classes(found)
    paths = [path for split in splits for name in found[split] for path in found[split][name]]
    return problems + decode_all(paths, workers)


def find_pictures(folder, problems):
    """Return {class name: paths of its pictures}; add to `problems` what cannot be listed, and links that lead nowhere."""
    found = {}
    for name in folders.class_names(folder, problems.append):
        found[name] = [os.path.join(folder, path) for path in folders.pictures(folder, name, problems.append)]
    problems += ["%s is a link to nowhere, or to itself" % entry.path for entry in entries(folder)
                 if entry.is_symlink() and not os.path.exists(entry.path)]
    return found


def entries(folder):
    """Return what is in a folder; nothing where it cannot be listed, which `find_pictures` has said."""
    try:
        return list(os.scandir(folder))
    except OSError:
        return []


def check_classes(root, split, found, wanted_classes):
    """Print the counts of one side and return its problems."""
    sizes = [len(paths) for paths in found.values()]
    print_counts(split, sizes)
    folder = os.path.join(root, split)
    problems = ["class folder %s holds no picture" % os.path.join(folder, name) for name in found if not found[name]]
    loose = sum(entry.name.lower().endswith(folders.EXTENSIONS) for entry in entries(folder))
    if loose:
        problems.append("%s: %s directly in it; training reads %s/<class>/<picture> only" % (folder, pictures(loose), split))
    return problems + (check_number(folder, len(found), wanted_classes) if found else [])


def check_number(folder, classes, wanted_classes):
    """Return the problem of a side with another number of classes than is wanted (None: any)."""
    return ["%s has %d classes instead of %d" % (folder, classes, wanted_classes)] if wanted_classes not in (None, classes) else []


def compare_classes(found):
    """Return a problem for each class that only one side has."""
    return ["class %s is in %s but not in %s" % (name, here, there)
            for here, there in (SPLITS, SPLITS[::-1]) for name in sorted(set(found[here]) - set(found[there]))]


def decode_all(items, workers):
    """Decode all pictures, given as paths or as of `check_packed`, and return a problem for each that is not one."""
    chunks = [items[start:start + CHUNK] for start in range(0, len(items), CHUNK)]
    return [problem for found in _pool.results(decode_some, chunks, workers, "decoding") for problem in found]


def decode_some(items):
    """Return a line for each of some pictures that cannot be decoded."""
    complaints = [(item, decode(item)) if isinstance(item, str) else decode_packed(*item) for item in items]
    return ["%s %s" % complaint for complaint in complaints if complaint[1]]


def decode(path):
    """Return None for a picture that training can read, otherwise what is wrong with it."""
    try:
        return decode_bytes(folders.read(path))
    except (OSError, MemoryError) as error:
        return "cannot be read: %s" % folders.why(error)


def decode_bytes(content):
    """Return None for the bytes of a picture that training can read, to its last pixel, otherwise what is wrong with them."""
    try:
        jpeg.whole(content)
    except jpeg.Unreadable as error:
        return "cannot be read: %s" % error if content else "is an empty file"


# --- packed -----------------------------------------------------------------------------------------------------------

def check_packed(root, wanted_classes, workers):
    """Print what is in `root`, an ImageNet packed by `dataset.py pack`, and return the problems, a list of lines."""
    print("%s: packed" % root)
    splits = [split for split in SPLITS if packed.is_packed(os.path.join(root, split))]
    problems = ["there is no %s" % os.path.join(root, split, packed.INDEX) for split in SPLITS if split not in splits]
    found, items = {}, []
    for split in splits:
        folder = os.path.join(root, split)
        try:
            shards, _ = opened(folder)
        except UserError as error:
            problems.append(str(error))
            continue
        found[split] = shards.classes
        print_counts(split, np.bincount(shards.targets, minlength=len(shards.classes)))
        problems += check_number(folder, len(shards.classes), wanted_classes)
        items += [(folder, number) for number in range(len(shards.targets))]
    return problems + (compare_classes(found) if len(found) == len(SPLITS) else []) + decode_all(items, workers)


@functools.lru_cache(maxsize=None)
def opened(folder):
    """Return (packed.Shards, checksums) of a packed folder, once in each process."""
    return packed.Shards(folder), packed.read_index(folder)["checksums"]


def decode_packed(folder, number):
    """Return (what to call a picture of a packed folder, what is wrong with it: None, or words)."""
    shards, checksums = opened(folder)
    try:
        content = shards.read(number)
        if zlib.crc32(content) != checksums[number]:
            return shards.path(number), "is not what was packed: its checksum differs"
        return shards.path(number), decode_bytes(content)
    except (OSError, MemoryError) as error:
        return shards.path(number), "cannot be read: %s" % folders.why(error)


# --- CIFAR-10 ---------------------------------------------------------------------------------------------------------

def check_cifar10(root, wanted_classes, workers):
    """Print what is in `root` and return the problems, a list of lines."""
    del workers  # seven files are read in a second
    try:
        folder = cifar.find_folder(root)
        names = cifar.class_names(folder)
    except UserError as error:
        return [str(error)]
    layout = cifar.LAYOUTS["cifar10"]
    labels, problems = read_labels(folder, layout.train + layout.test)
    for split, files in (("train", layout.train), ("test", layout.test)):
        problems += check_labels(folder, split, [labels[name] for name in files if name in labels], names)
    if wanted_classes not in (None, len(names)):
        meta = os.path.join(folder, layout.meta)
        problems.append("%s names %d classes instead of %d" % (meta, len(names), wanted_classes))
    return problems + check_origin(folder)


def read_labels(folder, files):
    """Return ({file name: labels int64 (n,)}, problems); the pictures are checked as well, and let go again."""
    labels, problems = {}, []
    for name in tqdm(files, desc="reading", unit="file", disable=None):
        try:
            labels[name] = cifar.read_batch(os.path.join(folder, name))[1]
        except UserError as error:
            problems.append(str(error))
    return labels, problems


def check_labels(folder, split, labels, names):
    """Print the counts of one side and return a problem for each class without pictures."""
    sizes = np.bincount(np.concatenate(labels), minlength=len(names)) if labels else np.zeros(len(names), int)
    print_counts(split, sizes)
    return ["%s: class %d (%s) has no %s picture" % (folder, label, names[label], split)
            for label in np.flatnonzero(sizes == 0)]


def check_origin(folder):
    """Print whether this is the published data set, and return a problem where it was and has been damaged."""
    try:
        original = cifar.verify_checksums(folder)
    except UserError as error:
        return [str(error)]
    print("  %s: %s" % (folder, "the original CIFAR-10 (MD5 as published)" if original else "a CIFAR-10 shaped data set"))
    return []


# --- the command ------------------------------------------------------------------------------------------------------

CHECKS = {"imagenet": check_imagenet, "cifar10": check_cifar10, "packed": check_packed}


def looks_like(root):
    """Return the kinds of data set that `root` may hold, damaged or not."""
    layout = cifar.LAYOUTS["cifar10"]
    files = layout.train + layout.test + (layout.meta,)
    is_cifar = os.path.isdir(os.path.join(root, layout.folder)) or any(os.path.isfile(os.path.join(root, f)) for f in files)
    is_packed = any(packed.is_packed(os.path.join(root, split)) for split in SPLITS)
    is_imagenet = not is_packed and any(os.path.isdir(os.path.join(root, split)) for split in SPLITS)
    return [kind for kind, found in (("imagenet", is_imagenet), ("cifar10", is_cifar), ("packed", is_packed)) if found]


def check_unknown(root):
    """Return the problem of a folder that looks like no data set, and where one may be."""
    inner = sorted(entry.path for entry in os.scandir(root) if entry.is_dir() and looks_like(entry.path))
    hint = "; did you mean %s?" % " or ".join(inner) if inner else ""
    return ["%s holds neither train/ and val/ (ImageNet layout) nor cifar-10-batches-py/%s" % (root, hint)]


def check(root, kind, wanted_classes, workers):
    """Return the problems of the data set in folder `root`. Raises UserError where there is nothing to check."""
    if not os.path.isdir(root):
        raise UserError("%s is not a folder; name the one that holds the data set" % root)
    kinds = [kind] if kind else looks_like(root)
    if len(kinds) > 1:
        raise UserError("%s holds both %s; choose one with --kind" % (root, " and ".join(kinds)))
    return CHECKS[kinds[0]](root, wanted_classes, workers) if kinds else check_unknown(root)


def print_counts(split, sizes):
    """Print the number of pictures of one side, and per class."""
    spread = ", %d to %d per class" % (min(sizes), max(sizes)) if len(sizes) else ""
    print("  %-5s %s, %d classes%s" % (split, pictures(sum(sizes)), len(sizes), spread))


def pictures(count):
    """`1 picture`, `2 pictures`."""
    return "%d picture%s" % (count, "" if count == 1 else "s")


def print_verdict(problems):
    """Print the first problems, how many more there are, and the verdict."""
    for problem in problems[:LISTED_PROBLEMS]:
        print("PROBLEM: %s" % folders.shown(problem))
    if len(problems) > LISTED_PROBLEMS:
        print("... and %d more" % (len(problems) - LISTED_PROBLEMS))
    print("BAD: %d problem%s" % (len(problems), "" if len(problems) == 1 else "s") if problems else "GOOD: no problems found")


def add_flags(parser):
    """Add the verb's flags to its parser."""
    parser.add_argument("dir", metavar="DIR", help="the folder that a model's --data_path names")
    parser.add_argument("--kind", choices=sorted(CHECKS), help="the layout to check for (default: what is found in DIR)")
    _pool.add_flag(parser, "decode")
    parser.add_argument("--classes", metavar="N", type=positive_int, help="how many classes there must be (default: any number)")


def run(arguments):
    """Print what is there and what is wrong with it, and end the process with the status."""
    sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold any bytes
    try:
        problems = check(arguments.dir, arguments.kind, arguments.classes, arguments.workers)
    except OSError as error:
        problems = ["%s cannot be listed: %s" % (error.filename, error.strerror)]
    print_verdict(problems)
    sys.exit(1 if problems else 0)

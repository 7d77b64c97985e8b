#!/usr/bin/env python3
"""Check a data set before days of training depend on it: its layout, its classes, and every single file.

ImageNet layout, DIR/{train,val}/<class>/<picture>: both sides have the same classes, no class is empty, every picture
is decoded to its last pixel and can become RGB. CIFAR-10 (DIR or DIR/cifar-10-batches-py): all files are there and
hold what they should; nothing that a pickle contains is run; the published files are recognised by their MD5.

Exit status: 0 good, 1 problems were found, 2 wrong usage.
"""
import argparse
import os
import signal
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "GENet")]
import cifar  # noqa: E402
from common.cli import Parser, UserError, positive_int, run  # noqa: E402

SPLITS = ("train", "val")
# Those that training reads (common.data, which this program does not import because it needs no torch).
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
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
    if len(splits) == len(SPLITS):
        problems += compare_classes(found)
    paths = [path for split in splits for name in found[split] for path in found[split][name]]
    return problems + decode_all(paths, workers)


def find_pictures(folder, problems):
    """Return {class name: paths of its pictures}; add to `problems` what cannot be listed."""
    def cannot_list(error):
        problems.append("%s cannot be listed: %s" % (error.filename, error.strerror))

    found = {}
    for name in sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()):
        found[name] = [os.path.join(below, file)
                       for below, _, files in os.walk(os.path.join(folder, name), onerror=cannot_list, followlinks=True)
                       for file in sorted(files) if file.lower().endswith(SUFFIXES)]
    return found


def check_classes(root, split, found, wanted_classes):
    """Print the counts of one side and return its problems."""
    sizes = [len(paths) for paths in found.values()]
    print_counts(split, sizes)
    folder = os.path.join(root, split)
    problems = ["class folder %s holds no picture" % os.path.join(folder, name) for name in found if not found[name]]
    loose = sum(entry.name.lower().endswith(SUFFIXES) for entry in os.scandir(folder))
    if loose:
        problems.append("%s: %s directly in it; training reads %s/<class>/<picture> only" % (folder, pictures(loose), split))
    if not found:
        problems.append("%s has no class folders" % folder)
    elif wanted_classes not in (None, len(found)):
        problems.append("%s has %d classes instead of %d" % (folder, len(found), wanted_classes))
    return problems


def compare_classes(found):
    """Return a problem for each class that only one side has."""
    return ["class %s is in %s but not in %s" % (name, here, there)
            for here, there in (SPLITS, SPLITS[::-1]) for name in sorted(set(found[here]) - set(found[there]))]


def decode_all(paths, workers):
    """Decode every picture and return a problem for each that is not one."""
    problems = []
    with ProcessPoolExecutor(workers, initializer=leave_interrupts_to_the_parent) as pool, \
            tqdm(total=len(paths), desc="decoding", unit="picture", disable=None) as bar:
        futures = []
        try:
            for start in range(0, len(paths), CHUNK):
                futures.append(pool.submit(decode_some, paths[start:start + CHUNK]))
            for future in futures:
                done, found = future.result()
                bar.update(done)
                problems += found
        finally:
            for future in futures:
                future.cancel()  # what has not been started is dropped: an interrupt does not wait for it
    return problems


def decode_some(paths):
    """Return the number of pictures and a line for each that cannot be decoded."""
    complaints = [(path, decode(path)) for path in paths]
    return len(paths), ["%s %s" % complaint for complaint in complaints if complaint[1]]


def leave_interrupts_to_the_parent():
    """Ctrl-C reaches every process of the terminal; only the parent shall act on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def decode(path):
    """Return None for a picture that training can read, otherwise what is wrong with it."""
    if not os.path.isfile(path):
        return "is not a file, or a link to nowhere"
    try:
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")  # odd EXIF data and the like do no harm
            Image.open(file).convert("RGB")
    except UnidentifiedImageError:
        return "is not a picture" if os.path.getsize(path) else "is an empty file"
    except Exception as error:  # decoders raise whatever they like on damaged files
        return "cannot be read: %s" % (getattr(error, "strerror", None) or error or type(error).__name__)
    return None


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

CHECKS = {"imagenet": check_imagenet, "cifar10": check_cifar10}


def looks_like(root):
    """Return the kinds of data set that `root` may hold, damaged or not."""
    layout = cifar.LAYOUTS["cifar10"]
    files = layout.train + layout.test + (layout.meta,)
    is_cifar = os.path.isdir(os.path.join(root, layout.folder)) or any(os.path.isfile(os.path.join(root, f)) for f in files)
    is_imagenet = any(os.path.isdir(os.path.join(root, split)) for split in SPLITS)
    return [kind for kind, found in (("imagenet", is_imagenet), ("cifar10", is_cifar)) if found]


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
        print("PROBLEM: %s" % problem)
    if len(problems) > LISTED_PROBLEMS:
        print("... and %d more" % (len(problems) - LISTED_PROBLEMS))
    print("BAD: %d problem%s" % (len(problems), "" if len(problems) == 1 else "s") if problems else "GOOD: no problems found")


def main():
    parser = Parser(description=__doc__, epilog="Example: %(prog)s /data/imagenet --classes 1000",
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", metavar="DIR", help="the folder that a model's --data_path names")
    parser.add_argument("--kind", choices=sorted(CHECKS), help="the layout to check for (default: what is found in DIR)")
    parser.add_argument("--workers", metavar="N", type=positive_int, default=available_cpus(),
                        help="processes that decode (default: %(default)s)")
    parser.add_argument("--classes", metavar="N", type=positive_int, help="how many classes there must be (default: any number)")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold any bytes
    try:
        problems = check(arguments.dir, arguments.kind, arguments.classes, arguments.workers)
    except OSError as error:
        raise UserError("%s cannot be listed: %s" % (error.filename, error.strerror))
    print_verdict(problems)
    sys.exit(1 if problems else 0)


def available_cpus():
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


if __name__ == "__main__":
    run(main)

"""Make a data set of your own pictures: divide DIR/<class>/<picture> into what is trained on and what is validated with.

OUT gets train/<class>/ and val/<class>/, with links to the files where OUT is on their disk and copies elsewhere; DIR stays as it is.
Which side a picture comes to is decided by what is in it: the same pictures are divided alike everywhere, and two files with the same
content come to the same side. After that all of OUT is checked as `dataset.py check` does it.

Exit status: 0 good, 1 OUT is there but problems were found, 2 wrong usage.

Example: dataset.py split /data/pictures /data/mine --val 20
"""
import collections
import hashlib
import os
import shutil
import sys

from tqdm import tqdm

from common import cli, folders, ranges
from datasets import _pool, check


def add_flags(parser):
    """Add the verb's flags to its parser."""
    add = parser.add_argument
    add("dir", metavar="DIR", help="a folder with a folder of pictures for each class")
    add("out", metavar="OUT", help="the data set to write, which --data_path then names")
    add("--val", metavar="PERCENT", type=ranges.whole(1, 99), default=20,
        help="of each class's pictures that are for validation; at least one is, and one is not (default: 20)")
    _pool.add_flag(parser, "check")


def run(args):
    """Write OUT, say what is in it, and end the process with the status; raise UserError for what cannot be divided, TrainingStopped
    where writing fails."""
    sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold any bytes
    sides = [os.path.join(args.dir, split) for split in check.SPLITS]
    if all(map(os.path.isdir, sides)):
        raise cli.UserError("%s is divided already: name it as --data_path" % args.dir)
    if not os.path.isdir(args.dir):
        raise cli.UserError("%s is not a folder; name the one that holds a folder for each class" % args.dir)
    if os.path.realpath(args.out).startswith(os.path.join(os.path.realpath(args.dir), "")):
        raise cli.UserError("%s is in %s, where it would be a class; choose a folder beside that" % (args.out, args.dir))
    plan, problems = _plan(args.dir, args.val)
    try:
        _write(plan, args.out)
    except OSError as error:
        raise cli.TrainingStopped("cannot write %s: %s; the same command goes on" % (error.filename or args.out, error.strerror or error))
    problems += check.check(args.out, "imagenet", None, args.workers)
    check.print_verdict(problems)
    sys.exit(1 if problems else 0)


def _plan(root, percent):
    """Return ({path in OUT: path of the picture}, problems). Raises UserError for a class of which nothing can be left to train on."""
    plan, seen, problems = {}, {}, []
    names = folders.class_names(root)
    if len(names) < 2:
        raise cli.UserError("%s has one class folder, %s: nothing can be learnt from one class" % (root, names[0]))
    for name in tqdm(names, desc="reading", unit="class", disable=None):
        same = _by_content(root, name)
        if len(same) < 2:
            raise cli.UserError("class folder %s has %s; a class needs two that differ, one to train on and one to validate with"
                                % (os.path.join(root, name), check.pictures(len(same))))
        held_out = min(max(1, len(same) * percent // 100), len(same) - 1)
        for number, digest in enumerate(sorted(same)):
            split = "val" if number < held_out else "train"
            plan.update((os.path.join(split, name, path), os.path.join(root, name, path)) for path in same[digest])
            if seen.setdefault(digest, name) != name:
                problems.append("%s is in class %s and in class %s" % (os.path.join(root, name, same[digest][0]), seen[digest], name))
    return plan, problems


def _by_content(root, name):
    """Return {digest of the content: paths, from the class's folder, of the pictures that have it}."""
    found = collections.defaultdict(list)
    for path in folders.pictures(root, name):
        inside = os.path.relpath(path, name)
        try:
            found[hashlib.sha256(folders.read(os.path.join(root, path))).digest()].append(inside)
        except OSError as error:
            raise cli.UserError("%s cannot be read: %s" % (os.path.join(root, path), folders.why(error)))
    return found


def _write(plan, out):
    """Have OUT hold the pictures of the plan. Those of an earlier call that was interrupted stay; raises UserError for other ones."""
    there = {os.path.relpath(os.path.join(folder, name), out) for folder, _, names in os.walk(out) for name in names}
    strange = sorted(there - set(plan) - {path + ".part" for path in plan})
    if strange:
        raise cli.UserError("%s holds %s, which is not of these pictures; choose another folder, or remove it" % (out, strange[0]))
    for path in sorted(set(plan) - there):
        target = os.path.join(out, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        _link(os.path.realpath(plan[path]), target)


def _link(source, target):
    try:
        os.link(source, target)
    except OSError:  # another disk, or one that has no hard links
        shutil.copyfile(source, target + ".part")
        os.replace(target + ".part", target)

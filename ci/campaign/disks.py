"""Full disks, closed pipes, a small /dev/shm.

A disk is a tmpfs of some size at the output path (root alone can mount one). A training that does not fit stops with 3 and one line
(2 where nothing was trained), leaves no `.part` file and a checkpoint that can be read, and goes on once there is room. What
happens to standard output and standard error is nothing to a training: its status is its own, its log whole.
"""
import contextlib
import itertools
import os
import shutil
import subprocess

from ci.campaign import process
from ci.campaign.world import NETWORK, Skipped
from common import checkpoint
from common.cli import UserError
from test_all_scripts import FULL

SHORT, LONG = 4, 20
# How the script's streams are: a Bash command line around "$@".
STREAMS = {"head": '"$@" | head -n 1 >/dev/null; exit "${PIPESTATUS[0]}"', "stdout closed": 'exec "$@" >&-',
           "stdout full": 'exec "$@" >/dev/full',
           "stderr closed": 'exec "$@" 2>&-', "stderr full": 'exec "$@" 2>/dev/full', "both closed": 'exec "$@" >&- 2>&-',
           "both full": 'exec "$@" >/dev/full 2>&1', "stdin closed": 'exec "$@" <&-',
           "reader ends": '"$@" 2>&1 | (sleep 2; head -c 10 >/dev/null); exit "${PIPESTATUS[0]}"'}


def trials(seed, world):
    """Yield disks by their size as a share of what an undisturbed run leaves, streams, and sizes of /dev/shm in MiB."""
    for number in itertools.count():
        rng = world.rng("disks", seed, number)
        trial = {"model": sorted(NETWORK)[number // 2 % len(NETWORK)], "ranks": rng.choice([1, 1, 2])}
        if number % 2 == 0:
            trial["share"] = rng.choice([0, 0.1, 0.4, 0.6, 0.9, 1.2, 1.6, 2.2])
        elif number % 8 == 7:
            trial["shm"] = rng.choice([1, 16, 64])
        else:
            trial["streams"] = rng.choice(sorted(STREAMS))
        yield trial


def attempt(trial, place, world):
    """Run on the disk or with the streams of the trial; returns what is unclean."""
    words = world.words(trial["model"], FULL[trial["ranks"]], os.path.join(place, "out"), trial["ranks"])
    if "share" in trial:
        return _full(trial, words, place, world)
    return _shm(trial, words, place) if "shm" in trial else _streams(trial, words, place, world)


def _full(trial, words, place, world):
    model, ranks, out = trial["model"], trial["ranks"], words["output_path"]
    path = os.path.join(world.reference(model, ranks), "checkpoint.pth.tar")
    os.mkdir(out)
    with _disk(out, max(8, int(os.path.getsize(path) * trial["share"] / 1024))):
        done = process.run(process.command(model, FULL[ranks], words), place)
        if done.status == 0:
            return done.unclean([0]) or world.unlike_reference(model, ranks, out)
        trained = os.path.exists(os.path.join(out, "metrics.jsonl"))
        found = done.unclean([3] if trained else [2, 3], ["No space", "space", "full", "MiB", "MB"])
        found += ["leaves %s" % name for name in os.listdir(out) if name.endswith(".part")] + _unreadable(out)
        if found:
            return found
        subprocess.run(["mount", "-o", "remount,size=%dk" % (4 << 20), out], check=True)
        done = process.run(process.command(model, FULL[ranks], dict(words, resume="1")), place)
        return ["resumed: " + text for text in done.unclean([0]) or world.unlike_reference(model, ranks, out)]


@contextlib.contextmanager
def _disk(path, kib):
    """A file system of `kib` KiB at the folder `path`."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%dk" % kib, "campaign", path], stderr=subprocess.PIPE)
    if mounted.returncode:
        raise Skipped("no file system can be mounted here (%s)" % mounted.stderr.decode().strip().split("\n")[0])
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def _unreadable(out):
    found = []
    for name in ("checkpoint.pth.tar", "model_best.pth.tar"):
        with contextlib.suppress(FileNotFoundError):
            try:
                os.stat(os.path.join(out, name))
                checkpoint.load(os.path.join(out, name))
            except UserError as error:
                found.append(str(error))
    return found


def _streams(trial, words, place, world):
    model, ranks, out = trial["model"], trial["ranks"], words["output_path"]
    command = ["bash", "-c", STREAMS[trial["streams"]], "campaign"] + process.command(model, FULL[ranks], words)
    done = process.run(command, place)
    found = done.unclean([0])
    if not found and done.stderr:
        found = ["says on stderr: %s" % done.stderr[-300:]]
    with open(os.path.join(out, "train_0.log"), errors="replace") as log:
        text = log.read()
    if "Traceback" in text or len(text.splitlines()) < len(_log(world, model, ranks)) - 3:
        found.append("the log is not whole: %s" % text[-300:])
    if not os.path.exists(os.path.join(out, "report.json")):
        found.append("no report.json")
    return found or world.unlike_reference(model, ranks, out)


def _log(world, model, ranks):
    with open(os.path.join(world.reference(model, ranks), "train_0.log"), errors="replace") as log:
        return log.read().splitlines()


def _shm(trial, words, place):
    """A training with workers where /dev/shm has little room: it finds another way, or stops with 3."""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        raise Skipped("/dev/shm can be another one for root with unshare alone")
    size = {} if trial["model"] == "GENet" else {"image_size": "64" if trial["model"] == "HRNet" else "224"}
    words = dict(words, workers=str(2 * trial["ranks"]), batch_size="16", max_steps="2", train_epochs="1", **size)
    mount = 'mount -t tmpfs -o size=%dm campaign /dev/shm && exec "$@"' % trial["shm"]
    command = ["unshare", "-m", "bash", "-c", mount, "campaign"] + process.command(trial["model"], FULL[trial["ranks"]], words)
    done = process.run(command, place)
    return done.unclean([0, 3])

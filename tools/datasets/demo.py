"""Write two small image sets that a network can really learn: handwritten digits on varied backgrounds.

The digits are the 1797 scans of 8x8 pixels that ship inside scikit-learn (UCI "Optical Recognition of Handwritten
Digits"), so nothing is downloaded. Each is enlarged until it nearly fills a picture:

  DIR/imagenet/{train,val}/n0000000D/*.JPEG   ImageNet layout, long side 300 to 500 pixels, one class per digit D
  DIR/cifar-10-batches-py/                    CIFAR-10's Python layout: 32x32 pixels in pickled batches

A scan goes to train or to val, never to both, and to the same side in both sets. The seed fixes every pixel; the bytes
of the JPEG files also depend on the JPEG encoder. A set that is there already and was made with the same parameters
is kept.

Example: dataset.py demo --out /tmp/demo --what cifar10 --train 1000 --val 200
"""
import contextlib
import json
import os
import pickle
import shutil
import signal
import struct
import uuid

import numpy as np
from PIL import Image
from tqdm import tqdm

from GENet import cifar
from common import ranges
from common.cli import Terminated, UserError
from datasets import _pool
import verbs

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# Written last: where it is, the set is complete.
STAMP = ".demo_data.json"
FORMAT = 1                      # raise it when the pictures of a given seed change
CLASSES = 10
VAL_SHARE = 0.2                 # of the scans of each digit
JPEG_QUALITY = 90
TASK_CHUNK = 16                 # pictures that a process is given at a time
CIFAR_CHUNK = 500               # pictures drawn from one random stream
CIFAR = cifar.LAYOUTS["cifar10"]
DIRECTORIES = {"imagenet": "imagenet", "cifar10": CIFAR.folder}
DEFAULT_COUNTS = {"imagenet": (2000, 500), "cifar10": (10000, 2000)}
SPLITS = ("train", "val")
STREAMS = {name: number for number, name in enumerate(
    ("scans", "imagenet train", "imagenet val", "cifar10 train", "cifar10 val", "cifar10 order"))}
LABEL_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


# --- the scans --------------------------------------------------------------------------------------------------------

def stream(seed, name, number=0):
    """Return the random stream `number` of those called `name`: a pure function of the seed, whoever draws first."""
    return np.random.RandomState([seed, STREAMS[name], number])


def split_scans(seed):
    """Return {"train": scans, "val": scans}; scans[d] holds the scans of digit d, float32 (n, 8, 8) in [0, 1]."""
    from sklearn.datasets import load_digits
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    random = stream(seed, "scans")
    sides = {split: [] for split in SPLITS}
    for digit in range(CLASSES):
        scans = images[random.permutation(np.flatnonzero(digits.target == digit))]
        num_val = int(len(scans) * VAL_SHARE)
        sides["val"].append(scans[:num_val])
        sides["train"].append(scans[num_val:])
    return sides


def balanced(scans, indices):
    """Return (scans float32 (n, 8, 8), labels int (n,)) of pictures number `indices`.

    Picture i shows digit i mod 10; the scans of a digit take turns, so none is used twice before all were used once.
    """
    labels = np.asarray(indices) % CLASSES
    turns = np.asarray(indices) // CLASSES
    return np.stack([scans[d][t % len(scans[d])] for d, t in zip(labels, turns)]), labels


# --- the pictures -----------------------------------------------------------------------------------------------------
# Only +, -, *, / and comparisons on float32 arrays, and RandomState, whose streams are frozen: every numpy on every
# CPU then gives the same pixels. No sin or exp, no matrix product: their last bits differ from build to build.

def draw(scans, height, width, sharpness, random):
    """Draw each scan large on a background of its own.

    scans: float32 (n, 8, 8) in [0, 1]. sharpness: contrast of the stroke's edge, 1 is that of the enlarged scan.
    Returns uint8 (n, 3, height, width): red, green and blue planes.
    """
    n = len(scans)
    ink = draw_strokes(scans, height, width, sharpness, random)[:, None]
    # The pen is always the lighter one: with both ways round, the first epochs go into learning that alone.
    pen = draw_colours(n, 185, 240, random)
    paper = draw_colours(n, 20, 90, random)
    shade = 18 * draw_texture(n, height, width, random) + draw_grain(n, height, width, random)
    background = uniform(random, -40, 40, (n, 3, 1, 1)) * draw_ramp(n, height, width, random)[:, None]
    background += shade[:, None]
    background += paper
    picture = (pen - background) * ink + background
    return np.clip(picture + np.float32(0.5), 0, 255).astype(np.uint8)


def draw_strokes(scans, height, width, sharpness, random):
    """Enlarge scans to nearly the whole picture, shifted, stretched and slanted a little: float32 (n, H, W) in [0, 1]."""
    n = len(scans)
    short = min(height, width)
    size = short * uniform(random, 0.92, 1.08, (n, 1, 1))
    stretch = uniform(random, 1, min(1.45, max(height, width) / short), (n, 1, 1))
    box_height = size * (stretch if height > width else 1)
    box_width = size * (stretch if width > height else 1) * uniform(random, 1.05, 1.25, (n, 1, 1))
    rows = np.arange(height, dtype=np.float32)[:, None] - (height - 1) / 2 - short * uniform(random, -.05, .05, (n, 1, 1))
    columns = np.arange(width, dtype=np.float32) - (width - 1) / 2 - short * uniform(random, -.06, .06, (n, 1, 1))
    y = 8 * rows / box_height
    x = 8 * columns / box_width + uniform(random, -0.2, 0.2, (n, 1, 1)) * y
    ink = interpolate(np.pad(scans, ((0, 0), (1, 1), (1, 1)), "constant"), y + 4.5, x + 4.5)
    weight = uniform(random, 0.42, 0.55, (n, 1, 1))
    return np.clip((ink - weight) * sharpness + 0.5, 0, 1)


def interpolate(grids, y, x):
    """Cubic interpolation (Catmull-Rom) of grids (n, h, w) at rows y (n, H, 1) and columns x (n, H or 1, W).

    Places outside a grid take the value of its border. Returns float32 (n, H, W).
    """
    taps_y, taps_x = _taps(y, grids.shape[1]), _taps(x, grids.shape[2])
    grids = np.pad(grids, ((0, 0), (1, 1), (1, 1)), "edge")
    rows = sum(weight * np.take_along_axis(grids, tap, 1) for tap, weight in taps_y)
    shape = (len(grids), y.shape[1], x.shape[2])
    return sum(weight * np.take_along_axis(rows, np.broadcast_to(tap, shape), 2) for tap, weight in taps_x)


def _taps(position, size):
    """The four (index, weight) pairs of Catmull-Rom interpolation on a line of `size` values padded by one each side."""
    position = np.clip(position, 0, size - 1).astype(np.float32)
    base = np.minimum(position.astype(np.int64), size - 2)
    t = position - base.astype(np.float32)
    u = 1 - t
    tu = t * u / 2
    weights = (-tu * u, u + tu * (3 * u - 1), t + tu * (3 * t - 1), -tu * t)
    return [(base + k, weight) for k, weight in enumerate(weights)]


def draw_texture(n, height, width, random):
    """Stripes, plaid, blotches or nothing, one kind per picture: float32 (n, H, W) in about [-1, 1]."""
    y, x = _grid(height, width)
    kind = random.randint(0, 4, (n, 1, 1))
    fy, fx = uniform(random, -9, 9, (2, n, 1, 1))
    grids = uniform(random, -1, 1, (n, 6, 6))
    texture = np.zeros((n, height, width), np.float32)
    if np.isin(kind, (1, 2)).any():
        stripes = _triangle_wave(fy * y + fx * x)
        texture = np.where(kind == 1, stripes, texture)
        texture = np.where(kind == 2, stripes * _triangle_wave(fx * y - fy * x), texture)
    if (kind == 3).any():
        blotches = interpolate(grids, np.tile(4 * y, (n, 1, 1)), np.tile(4 * x, (n, 1, 1)))
        texture = np.where(kind == 3, blotches, texture)
    return texture


def _triangle_wave(phase):
    return np.abs(phase - np.floor(phase) - np.float32(0.5)) * 4 - 1


def draw_ramp(n, height, width, random):
    """A plane of random direction: float32 (n, H, W) in about [-1, 1]."""
    y, x = _grid(height, width)
    slope_y, slope_x = uniform(random, -1, 1, (2, n, 1, 1))
    return slope_y * (y - np.float32(0.5)) + slope_x * (x - np.float32(0.5))


def _grid(height, width):
    """Rows (H, 1) and columns (1, W) in units of the picture's short side."""
    short = np.float32(min(height, width))
    return np.arange(height, dtype=np.float32)[:, None] / short, np.arange(width, dtype=np.float32)[None] / short


def draw_grain(n, height, width, random):
    """Noise with an amplitude of up to 12 grey levels: float32 (n, H, W)."""
    amplitude = uniform(random, 0, 12, (n, 1, 1))
    return amplitude * uniform(random, -1, 1, (n, height, width))


def draw_colours(n, darkest, lightest, random):
    """Random RGB colours whose mean lies in [darkest, lightest]: float32 (n, 3, 1, 1)."""
    red, green, blue = uniform(random, -60, 60, (3, n))
    mean = uniform(random, darkest, lightest, n) - (red + green + blue) / 3
    return np.stack([mean + red, mean + green, mean + blue], 1)[:, :, None, None]


def uniform(random, low, high, shape):
    """Uniform random numbers in [low, high), float32."""
    return (low + (high - low) * random.random_sample(shape)).astype(np.float32)


# --- ImageNet's layout ------------------------------------------------------------------------------------------------

def write_imagenet(folder, counts, seed, workers):
    """Write folder/{train,val}/<class>/<picture>.JPEG; counts is (train, val)."""
    scans = split_scans(seed)
    tasks = []
    for split, count in zip(SPLITS, counts):
        for digit in range(CLASSES):
            os.makedirs(os.path.join(folder, split, class_name(digit)))
        pictured, labels = balanced(scans[split], range(count))
        tasks += [(picture_path(folder, split, i, labels[i]), split, i, seed, pictured[i]) for i in range(count)]
    _pool.results(write_pictures, [tasks[start:start + TASK_CHUNK] for start in range(0, len(tasks), TASK_CHUNK)], workers, "imagenet")


def class_name(digit):
    """A folder name in ImageNet's manner (those are WordNet numbers: n01440764)."""
    return "n%08d" % digit


def picture_path(folder, split, index, digit):
    """Return the path of picture number `index`, named in the manner of ImageNet's training and validation sets."""
    train_name = "%s_%d.JPEG" % (class_name(digit), index // CLASSES)
    val_name = "ILSVRC2012_val_%08d.JPEG" % (index + 1)
    return os.path.join(folder, split, class_name(digit), train_name if split == "train" else val_name)


def write_pictures(tasks):
    """Write some pictures."""
    for path, split, index, seed, scan in tasks:
        picture = draw_photo(scan, stream(seed, "imagenet " + split, index))
        Image.fromarray(picture).save(path, "JPEG", quality=JPEG_QUALITY)


def draw_photo(scan, random):
    """Draw one scan at one of the sizes that photographs have: uint8 (height, width, 3)."""
    long_side = random.randint(300, 501)
    short_side = int(long_side / (1 + random.random_sample() / 2))
    landscape = random.random_sample() < 0.7
    height, width = (short_side, long_side) if landscape else (long_side, short_side)
    planes = draw(scan[None], height, width, 5, random)[0]
    return np.ascontiguousarray(planes.transpose(1, 2, 0))


# --- CIFAR-10's layout ------------------------------------------------------------------------------------------------

def write_cifar10(folder, counts, seed, workers):
    """Write data_batch_1 to 5, test_batch and batches.meta as their authors' Python 2 did; counts is (train, val)."""
    scans = split_scans(seed)
    bar = tqdm(total=sum(counts), desc="cifar10", unit="picture", disable=None)
    for split, names, count in zip(SPLITS, (CIFAR.train, CIFAR.test), counts):
        data, labels = draw_cifar10(scans[split], split, count, seed, bar)
        title = "training" if split == "train" else "testing"
        parts = np.array_split(np.arange(count), len(names))
        for number, (name, part) in enumerate(zip(names, parts), 1):
            dump_as_python2(os.path.join(folder, name), {
                "batch_label": "%s batch %d of %d" % (title, number, len(parts)),
                "labels": [int(label) for label in labels[part]],
                "data": data[part],
                "filenames": ["%s_s_%06d.png" % (LABEL_NAMES[labels[i]], i) for i in part],
            })
    bar.close()
    dump_as_python2(os.path.join(folder, CIFAR.meta), {
        "num_cases_per_batch": -(-counts[0] // len(CIFAR.train)), "label_names": LABEL_NAMES, "num_vis": 3072})


def draw_cifar10(scans, split, count, seed, bar):
    """Draw `count` pictures in mixed order: uint8 (count, 3072), and their labels, int (count,)."""
    order = stream(seed, "cifar10 order", SPLITS.index(split)).permutation(count)
    chunks = []
    for number, start in enumerate(range(0, count, CIFAR_CHUNK)):
        pictured, _ = balanced(scans, order[start:start + CIFAR_CHUNK])
        chunks.append(draw(pictured, 32, 32, 2.5, stream(seed, "cifar10 " + split, number)).reshape(-1, 3072))
        bar.update(len(pictured))
    return np.concatenate(chunks), order % CLASSES


def dump_as_python2(path, content):
    """Pickle text as Python 2's `str`, so that readers get text with encoding="latin1" and bytes with "bytes"."""
    with open(path, "wb") as file:
        Python2Pickler(file, protocol=2).dump(content)


class Python2Pickler(pickle._Pickler):  # pylint: disable=protected-access
    """Protocol 2 as Python 2 wrote it. Python 3's own marks text as unicode, and names modules that numpy 1 lacks."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_str(self, text):
        data = text.encode("ascii") if isinstance(text, str) else text
        head = pickle.SHORT_BINSTRING + struct.pack("<B", len(data)) if len(data) < 256 else pickle.BINSTRING + struct.pack("<i", len(data))
        self.write(head + data)
        self.memoize(text)

    def save_global(self, value, name=None):
        module = value.__module__.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + ("%s\n%s\n" % (module, name or value.__name__)).encode())
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_str


# --- putting a set in its place ---------------------------------------------------------------------------------------

WRITERS = {"imagenet": write_imagenet, "cifar10": write_cifar10}


def make(kind, out, counts, seed, workers):
    """Make the set `kind` in folder `out`, unless it is there already.

    Raises UserError where something else is in its place, and OSError where it cannot be written.
    """
    target = os.path.join(out, DIRECTORIES[kind])
    parameters = {"kind": kind, "format": FORMAT, "train": counts[0], "val": counts[1], "seed": seed}
    if is_made(target, parameters):
        print("%s is there already, made with the same parameters: left as it is" % target)
        return
    with staging_folder(out, kind) as folder:
        WRITERS[kind](folder, counts, seed, workers)
        with open(os.path.join(folder, STAMP), "w") as stamp:
            json.dump(parameters, stamp)
        put_in_place(folder, target, parameters)
    print("%s: %d training and %d validation pictures of %d classes" % (target, counts[0], counts[1], CLASSES))


def is_made(target, parameters):
    """Return whether the set is at `target`; raise UserError where another set or something unknown is."""
    if not os.path.lexists(target) or (os.path.isdir(target) and not os.listdir(target)):
        return False
    try:
        with open(os.path.join(target, STAMP)) as stamp:
            found = json.load(stamp)
    except (OSError, ValueError):
        raise UserError("%s exists and was not made by this program; choose another --out or move it away" % target)
    if found != parameters:
        different = ", ".join("%s %s" % (name, found[name]) for name in sorted(found) if found[name] != parameters.get(name))
        raise UserError("%s was made with other parameters (%s); choose another --out or move it away" % (target, different))
    return True


@contextlib.contextmanager
def staging_folder(out, kind):
    """A new folder in `out` to write into; what is left in it is removed at the end, however it comes."""
    is_new = not os.path.isdir(out)
    os.makedirs(out, exist_ok=True)
    folder = os.path.join(out, ".%s.%s.partial" % (kind, uuid.uuid4().hex[:8]))
    try:
        os.mkdir(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if is_new and not os.listdir(out):
            os.rmdir(out)


def put_in_place(folder, target, parameters):
    """Rename `folder` to `target`; where another process was faster, its equal set is kept."""
    try:
        os.rename(folder, target)
    except OSError:
        if not is_made(target, parameters):
            raise


# --- the command ------------------------------------------------------------------------------------------------------

def run(arguments):
    """Make the sets; raise UserError where one cannot be written, Terminated at a SIGTERM."""
    signal.signal(signal.SIGTERM, _terminate)
    for kind in arguments.what:
        train, val = DEFAULT_COUNTS[kind]
        counts = (arguments.train or train, arguments.val or val)
        try:
            make(kind, arguments.out, counts, arguments.seed, arguments.workers)
        except OSError as error:
            raise UserError("cannot write to %s: %s" % (error.filename or arguments.out, error.strerror or error))


def _terminate(*_):
    raise Terminated


def add_flags(parser):
    """Add the verb's flags to its parser."""
    parser.add_argument("--out", metavar="DIR", default=os.path.join(ROOT, "demo_data"),
                        help="where to write the sets (default: %(default)s)")
    for side, (split, words) in enumerate(zip(SPLITS, ("training", "validation"))):
        default = ", ".join("%s %d" % (kind, counts[side]) for kind, counts in DEFAULT_COUNTS.items())
        parser.add_argument("--" + split, metavar="N", type=ranges.whole(CLASSES),
                            help="%s pictures of each set, at least one per class (default: %s)" % (words, default))
    parser.add_argument("--seed", metavar="S", type=ranges.seed, default=0,
                        help="of the split, the backgrounds and the order (default: %(default)s)")
    parser.add_argument("--what", metavar="SETS", type=verbs.some_of(DIRECTORIES), default="imagenet,cifar10",
                        help="the sets to make, separated by commas (default: %(default)s)")
    _pool.add_flag(parser, "draw")

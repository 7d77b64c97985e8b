"""What the loaders' processes do to a picture, for training and for evaluation.

A picture comes in as a PIL image in RGB, or what looks like one (common.jpeg.JpegPicture), and leaves as array (S, S, 3) with
values of 0 to 255, in BGR order: pycls' networks were trained on pictures as OpenCV reads them. It stays in bytes, unless
`in_float` asks for upstream's arithmetic, to the last digits. The device adds the colour jitter and normalises, with MEAN and STD,
in one.
"""
import math
import random

import cv2
import numpy as np

from common.data import IMAGENET_MEAN, IMAGENET_STD
from pycls.datasets.augment import augment

_BGR = (2, 1, 0)

# Of pixel values in [0, 1], in the order of the network's channels (blue, green, red).
MEAN = tuple(IMAGENET_MEAN[channel] for channel in _BGR)
STD = tuple(IMAGENET_STD[channel] for channel in _BGR)

# Principal components of the RGB values of ImageNet: rows are R, G, B, columns belong to the eigenvalues.
EIG_VALS = np.array([0.2175, 0.0188, 0.0045])
EIG_VECS = np.array([
    [-0.5675, 0.7192, 0.4009],
    [-0.5808, -0.0045, -0.8140],
    [-0.5836, -0.6948, 0.4203],
])

cv2.setNumThreads(0)  # the loaders' processes are as many as there are cores for them

_AREA = (0.08, 1.0)
_ASPECT = (3.0 / 4.0, 4.0 / 3.0)
_TRIES = 10

_RNG = np.random.RandomState()  # one, which each picture seeds: making one takes fifty times as long, 5 % of a picture


def train_transform(image, im_size, seed, augmentation=None, pca_std=0.1, in_float=False):
    """Return (a random crop of `image`, (im_size, im_size, 3) in BGR order; the colour jitter, float32 (3,), which the device adds
    to the pixels of 0 to 255): a pure function of its arguments.

    In order, as the draws are: crop, flip, AutoAugment or RandAugment (`augmentation` of `augment.parse_spec`), colour jitter.
    """
    rng, (width, height) = _RNG, image.size
    rng.seed(seed)
    box = random_box(height, width, rng)
    flip = rng.uniform() < 0.5
    if box is None:
        pixels = central_crop(image, im_size, im_size, in_float)
    else:
        y, x, height, width = box
        pixels = resize(image.crop((x, y, x + width, y + height)), (im_size, im_size), in_float)
    if flip:
        pixels = cv2.flip(pixels, 1)
    if augmentation is not None:
        if in_float:  # the way over [0, 1] and the truncation are upstream's: some integers come out one lower
            pixels = (pixels / np.float32(255) * np.float32(255)).astype(np.uint8)
        pixels = augment(pixels, augmentation, rng, random.Random(seed))
    shift = (255 * lighting(rng, pca_std)[::-1]).astype(np.float32)
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), shift


def eval_transform(image, test_size, im_size, in_float=False):
    """Return the centre of `image`, its short side first resized to test_size: (im_size, im_size, 3), BGR."""
    return cv2.cvtColor(central_crop(image, test_size, im_size, in_float), cv2.COLOR_RGB2BGR)


def random_box(height, width, rng):
    """Return (y, x, height, width) of a random part of the picture, or None when ten tries gave none that fits.

    Area uniform in [0.08, 1] of the picture, aspect ratio uniform in [3/4, 4/3] (not its logarithm), then swapped or
    not. The offsets' upper end is never drawn. All as upstream, in the order of its draws.
    """
    for _ in range(_TRIES):
        area = rng.uniform(*_AREA) * height * width
        aspect = rng.uniform(*_ASPECT)
        w, h = int(round(math.sqrt(area * aspect))), int(round(math.sqrt(area / aspect)))
        if rng.uniform() < 0.5:
            w, h = h, w
        if h <= height and w <= width:
            y = 0 if h == height else rng.randint(0, height - h)
            x = 0 if w == width else rng.randint(0, width - w)
            return y, x, h, w
    return None


def short_side_size(height, width, size):
    """Return (height, width) of the picture when its short side is resized to `size`.

    The long side is computed in double, in upstream's order, and truncated: one size in some thousands is a pixel
    shorter than exact arithmetic would have it.
    """
    if min(height, width) == size:
        return height, width
    if width < height:
        return int(math.floor((float(height) / width) * size)), size
    return size, int(math.floor((float(width) / height) * size))


def central_crop(image, short_side, crop, in_float=False):
    """Return the (crop, crop, 3) centre, RGB, of the picture with its short side resized."""
    height, width = short_side_size(image.size[1], image.size[0], short_side)
    top, left = int(math.ceil((height - crop) / 2)), int(math.ceil((width - crop) / 2))
    return np.ascontiguousarray(resize(image, (height, width), in_float)[top:top + crop, left:left + crop])


def resize(image, size, in_float=False):
    """Return `image` resized to `size` (height, width) as array, RGB: uint8, or with `in_float` float32 with values of 0 to 255.

    Bilinear with half-pixel centres, edges repeated, and no antialiasing. Bytes are less than one off the floats that upstream
    resizes, and take a fifth of the time.
    """
    pixels = np.asarray(image)
    return cv2.resize(pixels.astype(np.float32) if in_float else pixels, size[::-1], interpolation=cv2.INTER_LINEAR)


def lighting(rng, std):
    """Return what to add to R, G and B in [0, 1] (AlexNet's colour jitter). Draws three numbers even when std is 0."""
    return (EIG_VECS * rng.normal(0, std, 3) * EIG_VALS).sum(axis=1)

"""What the loaders' processes do to a picture, for training and for evaluation.

A picture comes in as uint8 (H, W, 3), RGB, and leaves as float32 (S, S, 3) with values of about 0 to 255, in BGR order: pycls'
networks were trained on pictures as OpenCV reads them. The device normalises it, with MEAN and STD.
"""
import math
import random

import numpy as np

from common.data import IMAGENET_MEAN, IMAGENET_STD
from pycls.datasets.augment import augment

_RGB, _BGR = (0, 1, 2), (2, 1, 0)

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

_AREA = (0.08, 1.0)
_ASPECT = (3.0 / 4.0, 4.0 / 3.0)
_TRIES = 10


def train_transform(image, im_size, seed, augmentation=None, pca_std=0.1):
    """Return a random crop of `image` as float32 (im_size, im_size, 3), BGR: a pure function of its arguments.

    In order, as the draws are: crop, flip, AutoAugment or RandAugment (`augmentation` of `augment.parse_spec`),
    colour jitter.
    """
    rng = np.random.RandomState(seed)
    box = random_box(image.shape[0], image.shape[1], rng)
    flip = rng.uniform() < 0.5
    order = _BGR if augmentation is None else _RGB
    if box is None:
        pixels = central_crop(image, im_size, im_size, flip, order)
    else:
        y, x, height, width = box
        pixels = resize(image[y:y + height, x:x + width], (im_size, im_size), (0, 0, im_size, im_size), flip, order)
    if augmentation is not None:
        # The way over [0, 1] and the truncation are upstream's: some integers come out one lower.
        pixels = (pixels / np.float32(255) * np.float32(255)).astype(np.uint8)
        pixels = augment(pixels, augmentation, rng, random.Random(seed))[:, :, ::-1].astype(np.float32)
    offset = (255 * lighting(rng, pca_std)[::-1]).astype(np.float32)
    flat = pixels.reshape(im_size, -1)
    flat += np.tile(offset, im_size)
    return flat.reshape(im_size, im_size, 3)


def eval_transform(image, test_size, im_size):
    """Return the centre of `image`, its short side first resized to test_size, as float32 (im_size, im_size, 3), BGR."""
    return central_crop(image, test_size, im_size)


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


def central_crop(image, short_side, crop, flip=False, order=_BGR):
    """Return the crop x crop centre, float32 (crop, crop, 3), of the picture with its short side resized."""
    height, width = short_side_size(image.shape[0], image.shape[1], short_side)
    top, left = int(math.ceil((height - crop) / 2)), int(math.ceil((width - crop) / 2))
    return resize(image, (height, width), (top, left, crop, crop), flip, order)


def resize(image, size, window, flip=False, order=_BGR):
    """Return a window (top, left, rows, columns) of `image` resized to `size` (height, width): float32, values 0 to 255.

    Bilinear with half-pixel centres, edges repeated, and no antialiasing: what OpenCV does. Only the window is computed.
    `flip` mirrors it, `order` arranges its channels. Rows and columns are blended one after the other on flat arrays, where
    numpy is fastest.
    """
    top, left, rows, columns = window
    y0, y1, y_weight = _taps(image.shape[0], size[0], top, rows)
    x0, x1, x_weight = _taps(image.shape[1], size[1], left, columns)
    if flip:
        x0, x1, x_weight = x0[::-1], x1[::-1], x_weight[::-1]
    lines = _blend(image.reshape(image.shape[0], -1), y0, y1, y_weight[:, None], 0)
    channels = np.array(order)
    pixels = _blend(lines, (3 * x0[:, None] + channels).ravel(), (3 * x1[:, None] + channels).ravel(),
                    np.repeat(x_weight, 3), 1)
    return pixels.reshape(rows, columns, 3)


def _taps(size_in, size_out, first, count):
    """Return, for `count` points from `first` on, the two neighbours in a line of `size_in` and the second's weight."""
    centres = (np.arange(first, first + count) + 0.5) * (float(size_in) / size_out) - 0.5
    floors = np.floor(centres)
    left = floors.astype(np.int64)
    return left.clip(0, size_in - 1), (left + 1).clip(0, size_in - 1), (centres - floors).astype(np.float32)


def _blend(values, first, second, weight, axis):
    blended = values.take(first, axis, mode="clip").astype(np.float32, copy=False)
    other = values.take(second, axis, mode="clip").astype(np.float32, copy=False)
    other -= blended
    other *= weight
    blended += other
    return blended


def lighting(rng, std):
    """Return what to add to R, G and B in [0, 1] (AlexNet's colour jitter). Draws three numbers even when std is 0."""
    return (EIG_VECS * rng.normal(0, std, 3) * EIG_VALS).sum(axis=1)

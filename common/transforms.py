"""Crops and resizing, as the networks of ImageNet want them: PIL images in, PIL images or pixels out."""
import math

import numpy as np
from PIL import Image

_AREA, _ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # parts of the picture's area; width to height


def random_resized_crop_box(width, height, rng):
    """Return a box (left, top, right, bottom) of Inception's crop: uniform in area, log-uniform in aspect ratio.

    As torchvision from 0.3 on, on every version; torchvision 0.2 draws the ratio uniformly.
    """
    area = width * height
    for _ in range(10):
        target_area = area * rng.uniform(*_AREA)
        aspect = math.exp(rng.uniform(*map(math.log, _ASPECT)))
        w = int(round(math.sqrt(target_area * aspect)))
        h = int(round(math.sqrt(target_area / aspect)))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.random() * (width - w + 1)), int(rng.random() * (height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, int(round(height * _ASPECT[1]))), min(height, int(round(width / _ASPECT[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def crop_and_resize(image, box, size):
    """Cut `box` out and resize it to (size, size), bilinear with Pillow's filter."""
    return image.crop(box).resize((size, size), Image.BILINEAR)


def resize_shorter(image, size):
    """Resize so that the shorter side is `size`; the longer one is truncated to an integer."""
    width, height = image.size
    if min(width, height) == size:
        return image
    wanted = (size, int(size * height / width)) if width < height else (int(size * width / height), size)
    return image.resize(wanted, Image.BILINEAR)


def center_crop(image, size):
    """Cut out the central (size, size); halves are rounded to even."""
    left, top = int(round((image.size[0] - size) / 2.0)), int(round((image.size[1] - size) / 2.0))
    return image.crop((left, top, left + size, top + size))


def train_transform(size):
    """Return f(PIL image, random.Random) -> uint8 (size, size, 3): random resized crop (8 to 100 % of the area), flip."""
    def transform(image, rng):
        box = random_resized_crop_box(image.size[0], image.size[1], rng)
        cropped = crop_and_resize(image, box, size)
        return np.asarray(cropped.transpose(Image.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else cropped)
    return transform


def eval_transform(size, resized):
    """Return f(PIL image, random.Random) -> uint8 (size, size, 3): shorter side to `resized`, centre crop."""
    def transform(image, rng):
        return np.asarray(center_crop(resize_shorter(image, resized), size))
    return transform

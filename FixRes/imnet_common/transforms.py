"""FixRes' pictures: from a decoded PIL image to the uint8 crop that the device turns into floats and normalises.

A step is called as step(image, rng) with PIL images in RGB and the sample's own random.Random, which steps without chance
ignore.
"""
import numpy as np
from PIL import Image, ImageEnhance

from common.transforms import crop_and_resize, random_resized_crop_box

EVAL_RATIO = 256 / 224  # how much larger than the crop the resized image is


def resized_size(size, width, height, largest=False, short_side=False):
    """Return (width, height) after a resize to `size`.

    Upstream's rule makes the *height* `size`, also in a portrait image, whose width then falls short of the crop: the crop gets
    black bars. `short_side` is the usual rule instead. `largest` makes the longer side `size`. The other side is cut to an
    integer, not rounded.
    """
    by_width = (largest and height < width) or (short_side and width < height)
    if by_width:
        return size, int(size * height / width)
    return int(size * width / height), size


def centered_offset(extent, size):
    """Return where the central `size` pixels of `extent` begin: half the rest, halves rounded to even.

    Where the image is too small the offset is negative, and a missing pixel without a partner is filled in at the far end:
    torchvision's rule from 0.9 on, taken on every version (0.2.2 rounds there as well).
    """
    if extent < size:
        return -((size - extent) // 2)
    return int(round((extent - size) / 2))


def _square(image, left, top, size):
    return image.crop((left, top, left + size, top + size))  # PIL fills what lies outside with black


class Resize:
    """Resize by `resized_size`, bilinear with antialiasing."""

    def __init__(self, size, largest=False, short_side=False):
        self.size, self.largest, self.short_side = size, largest, short_side

    def __call__(self, image, rng):
        target = resized_size(self.size, *image.size, largest=self.largest, short_side=self.short_side)
        return image.resize(target, Image.BILINEAR)


class CenterCrop:
    """The square of `size` pixels in the middle, with black where the image is too small."""

    def __init__(self, size):
        self.size = size

    def __call__(self, image, rng):
        width, height = image.size
        return _square(image, centered_offset(width, self.size), centered_offset(height, self.size), self.size)


class ShiftedCenterCrop:
    """The central crop, then shifted left or right, as far as the edge: upstream's second recipe for fine-tuning."""

    def __init__(self, size):
        self.size = size

    def corner(self, width, height, below):
        """Return (left, top). `below(n)` draws an integer from 0 to n - 1: how far, unless there is no room, and which way."""
        left, top = int(round((width - self.size) / 2)), int(round((height - self.size) / 2))
        shift = below(left + 1) if left > 0 else 0
        return left + (shift if below(2) == 0 else -shift), top

    def __call__(self, image, rng):
        left, top = self.corner(image.size[0], image.size[1], rng.randrange)
        return _square(image, left, top, self.size)


class RandomResizedCrop:
    """Inception's crop: a random part of 8 to 100 % of the area, resized to a square of `size` pixels."""

    def __init__(self, size):
        self.size = size

    def __call__(self, image, rng):
        return crop_and_resize(image, random_resized_crop_box(image.size[0], image.size[1], rng), self.size)


class RandomHorizontalFlip:
    """Mirror every other image."""

    def __call__(self, image, rng):
        return image.transpose(Image.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


class ColorJitter:
    """Brightness, contrast and saturation times factors from [1 - strength, 1 + strength], in random order."""

    def __init__(self, strength):
        self.strength = strength

    def __call__(self, image, rng):
        enhancers = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
        rng.shuffle(enhancers)
        image = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))  # of --decoder=fast
        for enhancer in enhancers:
            image = enhancer(image).enhance(rng.uniform(1 - self.strength, 1 + self.strength))
        return image


class Pipeline:
    """Steps one after the other: transform(PIL image, random.Random) gives a uint8 array (height, width, 3)."""

    def __init__(self, *steps):
        self.steps = steps

    def __call__(self, image, rng):
        for step in self.steps:
            image = step(image, rng)
        return np.asarray(image)


def train_pipeline(size):
    """Return the augmentation of training from scratch."""
    return Pipeline(RandomResizedCrop(size), RandomHorizontalFlip(), ColorJitter(0.3))


def eval_pipeline(size, short_side=False):
    """Return the resize and central crop of every evaluation. Fine-tuning uses it for its training images as well."""
    return Pipeline(Resize(int(EVAL_RATIO * size), short_side=short_side), CenterCrop(size))


def uncropped_pipeline(size):
    """Return the evaluation of whole images: the longer side becomes `size`. For batches of one shape only."""
    return Pipeline(Resize(size, largest=True))


def finetune_pipeline_v2(size, short_side=False):
    """Return upstream's second recipe for the training images of fine-tuning: `eval_pipeline` with mild augmentation."""
    return Pipeline(Resize(int(EVAL_RATIO * size), short_side=short_side), RandomHorizontalFlip(), ColorJitter(0.05),
                    ShiftedCenterCrop(size))

"""AutoAugment (https://arxiv.org/abs/1805.09501) and RandAugment (https://arxiv.org/abs/1909.13719) as pycls has them.

An operation takes a Pillow RGB picture and a value. A specification is the value of TRAIN.AUGMENT: a name, then fields
separated by `_`: N operations, M magnitude in [0, 1], P probability of each operation.
"""
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from common.cli import UserError

_FILL = (128, 128, 128)


def _affine(image, matrix):
    return image.transform(image.size, Image.AFFINE, matrix, Image.BILINEAR, fillcolor=_FILL)


def _posterize(image, bits):
    return ImageOps.posterize(image, max(1, bits))


def _solarize_add(image, value):
    table = [min(255, int(value) + i) if i < 128 else i for i in range(256)]
    return image.point(table * 3)


# Name: (function of a picture and a value, lowest value, highest value, whether half of the values are negated).
# An `_inc` operation grows stronger with the magnitude; its twin without `_inc` may grow weaker.
OPERATIONS = {
    "auto_contrast": (lambda im, v: ImageOps.autocontrast(im), 0, 1, False),
    "equalize": (lambda im, v: ImageOps.equalize(im), 0, 1, False),
    "invert": (lambda im, v: ImageOps.invert(im), 0, 1, False),
    "rotate": (lambda im, v: im.rotate(v, resample=Image.BILINEAR, fillcolor=_FILL), 0.0, 30.0, True),
    "shear_x": (lambda im, v: _affine(im, (1, v, 0, 0, 1, 0)), 0.0, 0.3, True),
    "shear_y": (lambda im, v: _affine(im, (1, 0, 0, v, 1, 0)), 0.0, 0.3, True),
    "trans_x": (lambda im, v: _affine(im, (1, 0, v * im.size[0], 0, 1, 0)), 0.0, 0.45, True),
    "trans_y": (lambda im, v: _affine(im, (1, 0, 0, 0, 1, v * im.size[1])), 0.0, 0.45, True),
    "posterize": (lambda im, v: _posterize(im, int(v)), 0, 4, False),
    "posterize_inc": (lambda im, v: _posterize(im, 4 - int(v)), 0, 4, False),
    "solarize": (lambda im, v: ImageOps.solarize(im, int(v)), 0, 256, False),
    "solarize_inc": (lambda im, v: ImageOps.solarize(im, 256 - v), 0, 256, False),
    "solarize_add": (_solarize_add, 0, 110, False),
    "color": (lambda im, v: ImageEnhance.Color(im).enhance(v), 0.1, 1.9, False),
    "contrast": (lambda im, v: ImageEnhance.Contrast(im).enhance(v), 0.1, 1.9, False),
    "brightness": (lambda im, v: ImageEnhance.Brightness(im).enhance(v), 0.1, 1.9, False),
    "sharpness": (lambda im, v: ImageEnhance.Sharpness(im).enhance(v), 0.1, 1.9, False),
    "color_inc": (lambda im, v: ImageEnhance.Color(im).enhance(1 + v), 0, 0.9, True),
    "contrast_inc": (lambda im, v: ImageEnhance.Contrast(im).enhance(1 + v), 0, 0.9, True),
    "brightness_inc": (lambda im, v: ImageEnhance.Brightness(im).enhance(1 + v), 0, 0.9, True),
    "sharpness_inc": (lambda im, v: ImageEnhance.Sharpness(im).enhance(1 + v), 0, 0.9, True),
}

RAND_OPERATIONS = [
    "auto_contrast", "equalize", "invert", "rotate", "posterize_inc", "solarize_inc", "solarize_add", "color_inc",
    "contrast_inc", "brightness_inc", "sharpness_inc", "shear_x", "shear_y", "trans_x", "trans_y",
]

# The ImageNet policies: two (operation, probability, magnitude) each.
AUTO_POLICIES = [
    [("equalize", 0.8, 0.1), ("shear_y", 0.8, 0.4)],
    [("color", 0.4, 0.9), ("equalize", 0.6, 0.3)],
    [("color", 0.4, 0.1), ("rotate", 0.6, 0.8)],
    [("solarize", 0.8, 0.3), ("equalize", 0.4, 0.7)],
    [("solarize", 0.4, 0.2), ("solarize", 0.6, 0.2)],
    [("color", 0.2, 0.0), ("equalize", 0.8, 0.8)],
    [("equalize", 0.4, 0.8), ("solarize_add", 0.8, 0.3)],
    [("shear_x", 0.2, 0.9), ("rotate", 0.6, 0.8)],
    [("color", 0.6, 0.1), ("equalize", 1.0, 0.2)],
    [("invert", 0.4, 0.9), ("rotate", 0.6, 0.0)],
    [("equalize", 1.0, 0.9), ("shear_y", 0.6, 0.3)],
    [("color", 0.4, 0.7), ("equalize", 0.6, 0.0)],
    [("posterize", 0.4, 0.6), ("auto_contrast", 0.4, 0.7)],
    [("solarize", 0.6, 0.8), ("color", 0.6, 0.9)],
    [("solarize", 0.2, 0.4), ("rotate", 0.8, 0.9)],
    [("rotate", 1.0, 0.7), ("trans_y", 0.8, 0.9)],
    [("shear_x", 0.0, 0.0), ("solarize", 0.8, 0.4)],
    [("shear_y", 0.8, 0.0), ("color", 0.6, 0.4)],
    [("color", 1.0, 0.0), ("rotate", 0.6, 0.2)],
    [("equalize", 0.8, 0.4), ("equalize", 0.0, 0.8)],
    [("equalize", 1.0, 0.4), ("auto_contrast", 0.6, 0.2)],
    [("shear_y", 0.4, 0.7), ("solarize_add", 0.6, 0.7)],
    [("posterize", 0.8, 0.2), ("solarize", 0.6, 1.0)],
    [("solarize", 0.6, 0.8), ("equalize", 0.6, 0.1)],
    [("color", 0.8, 0.6), ("rotate", 0.4, 0.5)],
]


def parse_spec(spec):
    """Return None for an empty specification, else (name, number of operations, magnitude, probability).

    Raises UserError for an unknown name or field, RandAugment without M, or AutoAugment with a field.
    """
    if not spec:
        return None
    name, fields = spec.split("_")[0], spec.split("_")[1:]
    try:
        values = {field[0]: float(field[1:]) for field in fields}
    except (IndexError, ValueError):
        values = {"?": 0.0}
    n, magnitude, p = values.get("N", 2.0), values.get("M", 0.0), values.get("P", 1.0)
    fits = {"AutoAugment": not fields, "RandAugment": "M" in values and set(values) <= set("NMP")}.get(name, False)
    if not (fits and n >= 1 and n == int(n) and 0 <= magnitude <= 1 and 0 <= p <= 1):
        raise UserError("TRAIN.AUGMENT %r: write AutoAugment, or RandAugment with M and if wanted N and P, such as "
                        "RandAugment_N2_M0.5" % spec)
    return name, int(n), magnitude, p


def augment(image, parsed, rng, py_rng):
    """Return the uint8 picture (H, W, 3), RGB, after the operations that `parsed` (of `parse_spec`) asks for.

    As upstream, `rng` (numpy RandomState) draws RandAugment's names, `py_rng` (random.Random) everything else.
    """
    name, n, magnitude, p = parsed
    if name == "AutoAugment":
        steps = py_rng.choice(AUTO_POLICIES)
    else:
        steps = [(operation, p, magnitude) for operation in rng.choice(RAND_OPERATIONS, n)]
    image = Image.fromarray(image)
    for operation, probability, strength in steps:
        image = apply_op(image, operation, probability, strength, py_rng)
    return np.asarray(image)


def apply_op(image, operation, probability, magnitude, py_rng):
    """Return the Pillow picture after one operation, which is skipped with probability 1 - `probability`."""
    if probability < 1 and py_rng.random() > probability:
        return image
    function, lowest, highest, signed = OPERATIONS[operation]
    value = magnitude * (highest - lowest) + lowest
    value = -value if signed and py_rng.random() > 0.5 else value
    return function(image, value)

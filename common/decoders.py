"""--decoder: what decodes and resizes pictures.

`exact` is Pillow, the same bits on every machine. `fast` is libjpeg-turbo by way of simplejpeg, with the same pixels before the
resize, and PyTorch's resize in bytes, which takes a third of Pillow's time, and is at most 2 of 255 off (0.03 on the average). What
is no plain baseline JPEG is decoded and resized as by `exact`.
"""
import functools
import inspect

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from common import jpeg
from common.cli import UserError

DECODERS = ("exact", "fast")

try:
    import simplejpeg
except (ImportError, ValueError):  # ValueError: it was built for another NumPy
    simplejpeg = None


def opener(name):
    """Return f(bytes of a file) -> picture in RGB of a decoder of DECODERS. Raises UserError where this machine does not have it."""
    if name == "exact":
        return jpeg.open_rgb
    if simplejpeg is None or "antialias" not in inspect.signature(functional.interpolate).parameters:
        raise UserError("--decoder=fast takes PyTorch 2.x and simplejpeg: pip install simplejpeg; --decoder=exact runs everywhere")
    return functools.partial(jpeg.open_rgb, kind=FastJpegPicture)


class FastJpegPicture(jpeg.JpegPicture):
    """A JpegPicture whose crops, and the whole, are resized fast."""

    def crop(self, box):
        """Return the Pixels in `box` (left, top, right, bottom), all within the picture. Raises jpeg.Unreadable."""
        data, _, (left, top) = jpeg.part(self._data, self.header, box)
        return Pixels(self._decoded(data)[box[1] - top:box[3] - top, box[0] - left:box[2] - left])

    def resize(self, size, resample=Image.BILINEAR):
        """Return the Pixels of the whole in another size (width, height). Raises jpeg.Unreadable."""
        return Pixels(self._decoded(self._data)).resize(size, resample)

    @property
    def __array_struct__(self):
        """What np.asarray asks for: the whole picture. Raises jpeg.Unreadable."""
        self._array = self._decoded(self._data)  # kept, for its memory is what NumPy takes
        return self._array.__array_struct__

    def _decoded(self, data):
        try:
            return simplejpeg.decode_jpeg(data, strict=False)  # not strict: of what damages the pixels, exact says nothing either
        except ValueError as error:
            raise jpeg.Unreadable(str(error))


class Pixels(object):
    """Looks like a PIL image in RGB of a uint8 array (height, width, 3), with a resize of its own; np.asarray copies nothing."""

    def __init__(self, array):
        self._array, self.size, self.__array_struct__ = array, array.shape[1::-1], array.__array_struct__

    def resize(self, size, resample=Image.BILINEAR):
        """Return the Pixels in another size (width, height), bilinear with antialiasing. No other `resample` is there."""
        assert resample == Image.BILINEAR
        return self._through(functional.interpolate, size[::-1], mode="bilinear", antialias=True)

    def transpose(self, method):
        """Return the mirrored Pixels: ten times as fast as NumPy's. No other `method` than FLIP_LEFT_RIGHT is there."""
        assert method == Image.FLIP_LEFT_RIGHT
        return self._through(torch.flip, (3,))

    def _through(self, operator, *args, **kwargs):
        pixels = torch.from_numpy(np.ascontiguousarray(self._array))[None].permute(0, 3, 1, 2)  # NHWC, as the result then is
        return Pixels(operator(pixels, *args, **kwargs)[0].permute(1, 2, 0).numpy())

    def __getattr__(self, name):
        return getattr(Image.fromarray(self._array), name)

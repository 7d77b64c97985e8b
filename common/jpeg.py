"""JPEG pictures of which no more is decoded than a crop needs: bit for bit the pixels that decoding the whole file gives.

A baseline JPEG is decoded from top to bottom, and that is most of what a training's input costs. With a smaller height in its
header the decoder ends early. Where colour has half the rows, a row of pixels is interpolated from the rows of colour above and
below it: the file is therefore cut so that the row below the crop is still there. Everything that is not a plain baseline JPEG
(progressive, arithmetic, 12 bits, CMYK, several scans, no end) is decoded by Pillow as a whole.
"""
import io
import struct
from collections import namedtuple

from PIL import Image

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)  # what Pillow raises

# Of a plain baseline JPEG: size in pixels, bands (1 or 3), rows of a minimum coded unit (MCU), whether there is an EXIF block,
# where the frame header is and where the entropy-coded data begin.
Header = namedtuple("Header", "width height bands mcu_rows has_exif frame scan")

_START, _END = b"\xff\xd8", b"\xff\xd9"
_FRAME, _SCAN, _APP1 = (0xC0, 0xC1), 0xDA, 0xE1  # baseline and extended sequential, both with Huffman codes
_TABLES = set(range(0xE0, 0xF0)) | {0xC4, 0xDB, 0xDD, 0xFE}  # APPn, DHT, DQT, DRI, COM
_LUMA = {0x11, 0x21, 0x12, 0x22, 0x41}  # horizontal and vertical sampling, of 4:4:4, 4:2:2, 4:4:0, 4:2:0, 4:1:1


class Unreadable(Exception):
    """A picture cannot be decoded. The message is Pillow's."""


def header(data):
    """Return the Header of the bytes of a plain baseline JPEG, None for everything else."""
    try:
        return _header(data) if data[:2] == _START else None
    except (IndexError, struct.error):  # the file ends in its header
        return None


def _header(data):
    at, has_exif, frame = 2, False, None
    while data[at] == 0xFF:
        marker, body = data[at + 1], at + 4
        if marker == _SCAN:
            return _checked(data, frame, has_exif, body) if frame else None
        if marker in _FRAME and frame is None:
            frame = at
        elif marker not in _TABLES:
            return None
        has_exif = has_exif or (marker == _APP1 and data[body:body + 4] == b"Exif")
        at += 2 + (data[at + 2] << 8) + data[at + 3]
    return None


def _checked(data, frame, has_exif, scan_header):
    precision, height, width, bands = struct.unpack_from(">BHHB", data, frame + 4)
    sampling = [data[frame + 11 + 3 * band] for band in range(bands)]
    if precision != 8 or not height or not width or bands not in (1, 3) or data[scan_header] != bands:
        return None
    if sampling[0] not in _LUMA or sampling[1:] not in ([], [0x11, 0x11]):
        return None
    scan = scan_header - 2 + (data[scan_header - 2] << 8) + data[scan_header - 1]
    if not data.endswith(_END) and data.find(_END, scan) < 0:
        return None
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        return None
    return Header(width, height, bands, 8 * (sampling[0] & 15), has_exif, frame, scan)


def cut(data, head, bottom):
    """Return (bytes, rows): the JPEG without the rows that the pixels above row `bottom` do not need."""
    rows = -(-(bottom + 1) // head.mcu_rows) * head.mcu_rows
    if rows >= head.height:
        return data, head.height
    shorter = bytearray(data)
    struct.pack_into(">H", shorter, head.frame + 5, rows)
    return shorter, rows


def open_rgb(data):
    """Return the picture of a file's bytes in RGB: a JpegPicture, or a PIL image. Raises Unreadable, at the latest when the picture
    is asked for pixels."""
    head = header(data)
    return whole(data) if head is None else JpegPicture(data, head)


def whole(data):
    """Return the PIL image in RGB of a file's bytes. Raises Unreadable."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")
    except UNREADABLE as error:
        raise Unreadable(str(error).split(" <")[0])  # without the address of what was opened


class JpegPicture(object):
    """Looks like a PIL image in RGB, and decodes as much as is needed: for a `crop` that much, for everything else all."""

    def __init__(self, data, head):
        self._data, self._whole, self.header = data, None, head
        self.size = self.width, self.height = head.width, head.height
        if not head.has_exif:  # it is looked into for that, and then nothing has to be decoded
            self.info = {}

    def crop(self, box):
        """Return the PIL image in `box` (left, top, right, bottom), all within the picture. Raises Unreadable."""
        data, rows = cut(self._data, self.header, box[3])
        mode = "RGB" if self.header.bands == 3 else "L"
        image = Image.new(mode, (self.width, rows), None)  # None: its memory need not be cleared
        try:
            image.frombytes(data, "jpeg", mode, "")
        except UNREADABLE:
            return self.whole().crop(box)
        image = image.crop(box)
        return image if mode == "RGB" else image.convert("RGB")

    def whole(self):
        """Return the PIL image of the whole picture. Raises Unreadable."""
        if self._whole is None:
            self._whole = whole(self._data)
        return self._whole

    def __getattr__(self, name):
        return getattr(self.whole(), name)

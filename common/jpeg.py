"""JPEG pictures of which no more is decoded than a crop needs: bit for bit the pixels that decoding the whole file gives.

A baseline JPEG is decoded from top to bottom, and that is most of what a training's input costs. With a smaller height in its
header the decoder ends early. Where colour has half the rows, a row of pixels is interpolated from the rows of colour above and
below it: the file is therefore cut so that the row below the crop is still there. Everything that is not a plain baseline JPEG
(progressive, arithmetic, 12 bits, CMYK, several scans, no end) is decoded by Pillow as a whole.

A file with restart markers is a grid of intervals that can be decoded alone. Where an APP11 segment of our own (INDEX) says
where they are, a file of those that the crop touches is put together, and neither what is above nor what is beside it is decoded.
"""
import contextlib
import io
import os
import struct
import warnings
from collections import namedtuple

from PIL import Image

from common import folders

warnings.filterwarnings("ignore", module="PIL")  # odd EXIF data and the like do no harm

# Of a plain baseline JPEG: size in pixels, bands (1 or 3), size of a minimum coded unit (MCU), whether there is an EXIF block, where
# the frame header is, where the entropy-coded data begin, and the first byte and the number of the index's entries (None: no index).
Header = namedtuple("Header", "width height bands mcu_width mcu_height has_exif frame scan index")

_START, END = b"\xff\xd8", b"\xff\xd9"
_FRAME, _SCAN, _APP1, APP11 = (0xC0, 0xC1), 0xDA, 0xE1, 0xEB  # baseline and extended sequential, both with Huffman codes
_TABLES = set(range(0xE0, 0xF0)) | {0xC4, 0xDB, 0xDD, 0xFE}  # APPn, DHT, DQT, DRI, COM
INDEX = b"RSTI\0"  # then, as little-endian uint32: MCUs of an interval, and where each interval begins in the scan, and the last ends
_RESTARTS = [bytes((0xFF, 0xD0 + number)) for number in range(8)]
_TIFF, _MACOS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), b"\0\5\x16"  # how such files begin
_POSTSCRIPT = (b"%!PS", b"\xc5\xd0\xd3\xc6")
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
    at, has_exif, frame, index = 2, False, None, None
    while data[at] == 0xFF:
        marker, body = data[at + 1], at + 4
        if marker == _SCAN:
            return _checked(data, frame, body, has_exif, index) if frame else None
        if marker in _FRAME and frame is None:
            frame = at
        elif marker not in _TABLES:
            return None
        has_exif = has_exif or (marker == _APP1 and data[body:body + 4] == b"Exif")
        length = (data[at + 2] << 8) + data[at + 3]
        if marker == APP11 and data[body:body + 5] == INDEX:
            index = (body + 5, (length - 7) // 4) if length >= 15 else None
        at += 2 + length
    return None


def _checked(data, frame, scan_header, has_exif, index):
    precision, height, width, bands = struct.unpack_from(">BHHB", data, frame + 4)
    sampling = [data[frame + 11 + 3 * band] for band in range(bands)]
    if precision != 8 or not height or not width or bands not in (1, 3) or data[scan_header] != bands:
        return None
    if sampling[0] not in _LUMA or sampling[1:] not in ([], [0x11, 0x11]):
        return None
    scan = scan_header - 2 + (data[scan_header - 2] << 8) + data[scan_header - 1]
    if not data.endswith(END) and data.find(END, scan) < 0:
        return None
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        return None
    unit = (8, 8) if bands == 1 else (8 * (sampling[0] >> 4), 8 * (sampling[0] & 15))
    return Header(width, height, bands, unit[0], unit[1], has_exif, frame, scan, index)


def part(data, head, box):
    """Return (bytes, (width, height), (left, top)): a JPEG of what the pixels in `box` (left, top, right, bottom) need, its size in
    pixels, and where in the picture it is."""
    return (head.index and _intervals(data, head, box)) or _rows(data, head, box[3])


def _rows(data, head, bottom):
    rows = -(-(bottom + 1) // head.mcu_height) * head.mcu_height
    if rows >= head.height:
        return data, (head.width, head.height), (0, 0)
    shorter = bytearray(data)
    struct.pack_into(">H", shorter, head.frame + 5, rows)
    return bytes(shorter), (head.width, rows), (0, 0)  # older Pillows take no bytearray


def _intervals(data, head, box):
    """As `part`, of the restart intervals that the box and a pixel around it touch; None where the index does not fit."""
    units, *starts = struct.unpack_from("<%dI" % head.index[1], data, head.index[0])
    if units == 0:
        return None
    across, in_row, down = grid(head, units)
    left, top = max(0, box[0] - 1) // across, max(0, box[1] - 1) // head.mcu_height
    right, bottom = min(in_row, -(-(box[2] + 1) // across)), min(down, -(-(box[3] + 1) // head.mcu_height))
    if len(starts) != in_row * down + 1 or head.scan + starts[-1] > len(data):
        return None
    pieces, count = [], 0
    for row in range(top * in_row, bottom * in_row, in_row):
        for number in range(row + left, row + right):
            pieces += data[head.scan + starts[number]:head.scan + starts[number + 1] - 2], _RESTARTS[count % 8]
            count += 1
    width = min(head.width, right * across) - left * across
    height = min(head.height, bottom * head.mcu_height) - top * head.mcu_height
    start = bytearray(data[:head.scan])
    struct.pack_into(">HH", start, head.frame + 5, height, width)
    return b"".join([start] + pieces[:-1] + [END]), (width, height), (left * across, top * head.mcu_height)


def grid(head, units):
    """Return the width in pixels of an interval of so many MCUs, how many are in a row of the picture, and how many rows there are."""
    across = units * head.mcu_width
    return across, -(-head.width // across), -(-head.height // head.mcu_height)


def whole(data):
    """Return the PIL image in RGB of a file's bytes. Raises Unreadable."""
    if data.startswith(_MACOS):
        raise Unreadable("macOS's notes on another file, no picture: remove the files named ._*")
    if data.startswith(_POSTSCRIPT):
        raise Unreadable("PostScript, which is a program, and is not run")
    try:
        with _quiet() if data.startswith(_TIFF) else contextlib.nullcontext():
            image = Image.open(io.BytesIO(data))
            image.load()
        return image if image.mode == "RGB" else image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises whatever it likes at damaged files
        raise Unreadable(folders.why(error))


@contextlib.contextmanager
def _quiet():
    """Without what libtiff writes to the process's stderr, whatever Pillow raises besides."""
    with open(os.devnull, "wb") as nowhere, os.fdopen(os.dup(2), "wb") as kept:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept.fileno(), 2)


class JpegPicture(object):
    """Looks like a PIL image in RGB, and decodes as much as is needed: for a `crop` that much, for everything else all."""

    def __init__(self, data, head):
        self._data, self._whole, self.header = data, None, head
        self.size = self.width, self.height = head.width, head.height
        if not head.has_exif:  # it is looked into for that, and then nothing has to be decoded
            self.info = {}

    def crop(self, box):
        """Return the PIL image in `box` (left, top, right, bottom), all within the picture. Raises Unreadable."""
        data, size, (left, top) = part(self._data, self.header, box)
        mode = "RGB" if self.header.bands == 3 else "L"
        image = Image.new(mode, size, None)  # None: its memory need not be cleared
        try:
            image.frombytes(data, "jpeg", mode, "")
        except Exception:
            return self.whole().crop(box)
        image = image.crop((box[0] - left, box[1] - top, box[2] - left, box[3] - top))
        return image if mode == "RGB" else image.convert("RGB")

    def whole(self):
        """Return the PIL image of the whole picture. Raises Unreadable."""
        if self._whole is None:
            self._whole = whole(self._data)
        return self._whole

    def __getattr__(self, name):
        return getattr(self.whole(), name)


def open_rgb(data, kind=JpegPicture):
    """Return the picture of a file's bytes in RGB: a `kind`, or a PIL image of what is no plain baseline JPEG. Raises Unreadable, at the
    latest when the picture is asked for pixels."""
    head = header(data)
    return whole(data) if head is None else kind(data, head)

"""Restart markers and their index for JPEG files that have none, without a loss: common/jpeg.py decodes less of such a file."""
import re
import struct
import subprocess

import numpy as np

from common import jpeg

_UNITS = (2, 3, 4, 5, 6)  # MCUs of a restart interval, the first that divides a row's and leaves few enough; else a whole row
_INTERVALS = 16000  # about as many as a segment of 64 KiB can list


def with_restart_markers(original):
    """Return the bytes of a JPEG with restart markers and their index, which decodes to the same pixels as a whole and in parts; the
    very `original` where that cannot be had."""
    head = jpeg.header(original)
    if head is None or head.index:
        return original
    _, in_row, down = jpeg.grid(head, 1)
    units = next((number for number in _UNITS if in_row % number == 0 and in_row * down <= number * _INTERVALS), in_row)
    done = subprocess.run(["jpegtran", "-copy", "all", "-restart", "%dB" % units], input=original, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL)
    content = with_index(done.stdout) if done.returncode == 0 else None
    return content if content is not None and _same_pixels(original, content) else original


def _same_pixels(original, content):
    try:
        wanted = jpeg.whole(original)
        if not np.array_equal(np.asarray(jpeg.whole(content)), np.asarray(wanted)):
            return False
        width, height = wanted.size
        boxes = [(width // 4, height // 4, -(-3 * width // 4), -(-3 * height // 4)), (0, height // 2, width, height)]
        boxes = [box for box in boxes if box[0] < box[2] and box[1] < box[3]]
        return all(np.array_equal(np.asarray(jpeg.open_rgb(content).crop(box)), np.asarray(wanted.crop(box))) for box in boxes)
    except jpeg.Unreadable:
        return False


def with_index(data):
    """Return the bytes of a JPEG with restart markers and a segment that says where its intervals are; None where the file is not a
    plain baseline one, has no such markers, or rows that end within an interval."""
    head, interval = jpeg.header(data), data.find(b"\xff\xdd\0\4")
    if head is None or not 0 < interval < head.scan:
        return None
    units, = struct.unpack_from(">H", data, interval + 4)
    scan = data[head.scan:data.index(jpeg.END, head.scan) + 2]
    starts = [0] + [match.end() for match in re.finditer(b"\xff[\xd0-\xd7\xd9]", scan)]
    index = jpeg.INDEX + struct.pack("<%dI" % (len(starts) + 1), units, *starts)
    if not units or -(-head.width // head.mcu_width) % units or head.index or len(index) > 0xFFFF - 2:
        return None
    _, in_row, down = jpeg.grid(head, units)
    if len(starts) != in_row * down + 1:
        return None
    return data[:head.frame] + struct.pack(">BBH", 0xFF, jpeg.APP11, len(index) + 2) + index + data[head.frame:]

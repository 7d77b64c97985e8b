"""common/jpeg.py: a crop of a partly decoded JPEG has the pixels of the whole picture, and no broken file passes as good."""
import io
import random

import numpy as np
import pytest
from PIL import Image

from common import jpeg
from conftest import load_script

restart = load_script("tools/datasets/_restart.py")

SAMPLINGS = {"4:4:4": 0x11, "4:2:2": 0x21, "4:2:0": 0x22, "4:4:0": 0x12, "4:1:1": 0x41, "grey": 0x11, "grey 2x2": 0x22}


def picture(width, height, rng):
    """Return a PIL image with large shapes and with noise."""
    coarse = Image.fromarray(rng.randint(0, 256, (5, 4, 3)).astype(np.uint8)).resize((width, height), Image.BICUBIC)
    return Image.fromarray(np.clip(np.asarray(coarse) + rng.normal(0, 25, (height, width, 3)), 0, 255).astype(np.uint8))


def encoded(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def frame_of(data):
    return data.index(b"\xff\xc0")


def jpeg_of(sampling, width, height, rng, **options):
    """Return the bytes of a JPEG of that sampling and size.

    Pillow writes three samplings. For two others the blocks of its units (two of luma for 4:2:2, four for 4:2:0) are arranged
    in another way by the header: a picture without sense, and a file without fault.
    """
    name = {"4:4:0": "4:2:2", "4:1:1": "4:2:0"}.get(sampling, sampling)
    size = {"4:4:0": (2 * width, -(-height // 2)), "4:1:1": (-(-width // 2), 2 * height)}.get(sampling, (width, height))
    image = picture(size[0], size[1], rng)
    if name.startswith("grey"):
        data = bytearray(encoded(image.convert("L"), **options))
    else:
        data = bytearray(encoded(image, subsampling={"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}[name], **options))
    frame = frame_of(data)
    data[frame + 5:frame + 9] = bytes((height >> 8, height & 255, width >> 8, width & 255))
    data[frame + 11] = SAMPLINGS[sampling]
    return bytes(data)


def boxes(width, height, unit, rng):
    """Yield crops; every other one ends where a row of units ends, where colour of the next row is needed."""
    for number in range(8):
        left, top = rng.randint(0, width), rng.randint(0, height)
        bottom = rng.randint(top + 1, height + 1)
        if number % 2 and top // unit * unit + unit <= height:
            bottom = top // unit * unit + unit
        yield left, top, rng.randint(left + 1, width + 1), bottom


@pytest.mark.parametrize("restart", [{}, {"restart_marker_rows": 1}, {"restart_marker_blocks": 3}], ids=["none", "rows", "blocks"])
@pytest.mark.parametrize("sampling", sorted(SAMPLINGS))
def test_crops_are_those_of_the_whole_picture(sampling, restart):
    """Bit for bit, for sizes that fill their last unit or do not, with restart intervals (Pillow from 10.2 on), and with bytes
    after the end; and most crops decode fewer rows than the picture has."""
    rng = np.random.RandomState(sorted(SAMPLINGS).index(sampling))
    fewer = crops = 0
    for width, height in [(64, 96), (1, 1), (17, 33), (33, 17), (15, 48), (100, 75), (31, 47), (8, 40)]:
        data = jpeg_of(sampling, width, height, rng, quality=int(rng.randint(50, 97)), **restart)
        data += b"trailing bytes \xff\x00" * int(rng.randint(2))
        whole = Image.open(io.BytesIO(data)).convert("RGB")
        for box in boxes(width, height, 8 * (SAMPLINGS[sampling] & 15), rng):
            image = jpeg.open_rgb(data)
            assert isinstance(image, jpeg.JpegPicture) and image.size == (width, height)
            assert np.array_equal(np.asarray(image.crop(box)), np.asarray(whole.crop(box))), (sampling, width, height, box)
            crops += 1
            fewer += jpeg.part(data, image.header, box)[1][1] < height
        assert np.array_equal(np.asarray(image), np.asarray(whole)) and image.resize((3, 3)).size == (3, 3)
    assert fewer > crops / 4


RESTARTS_ARE_WRITTEN = b"\xff\xdd" in encoded(Image.new("RGB", (32, 32)), restart_marker_rows=1)


@pytest.mark.skipif(not RESTARTS_ARE_WRITTEN, reason="Pillow before 10.2 writes no restart markers")
@pytest.mark.parametrize("sampling", sorted(SAMPLINGS))
def test_crops_of_indexed_intervals_are_those_of_the_whole_picture(sampling):
    """With an index of its restart intervals, a file gives the same pixels, and most crops leave out rows above or columns beside;
    the file stays a JPEG that everybody reads, with the same pixels."""
    rng = np.random.RandomState(100 + sorted(SAMPLINGS).index(sampling))
    unit = 8 if sampling.startswith("grey") else 8 * (SAMPLINGS[sampling] >> 4)
    smaller = crops = 0
    for width, height in [(64, 96), (1, 1), (17, 33), (96, 48), (100, 75), (31, 47), (8, 40)]:
        in_row = -(-width // unit)
        units = next(number for number in (2, 3, in_row) if in_row % number == 0)
        data = jpeg_of(sampling, width, height, rng, quality=90, restart_marker_blocks=units)
        indexed = restart.with_index(data + b"after the end")
        assert jpeg.header(indexed).index and restart.with_index(indexed) is None
        whole = Image.open(io.BytesIO(data)).convert("RGB")
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(indexed)).convert("RGB")), np.asarray(whole))
        for box in boxes(width, height, unit, rng):
            image = jpeg.open_rgb(indexed)
            assert np.array_equal(np.asarray(image.crop(box)), np.asarray(whole.crop(box))), (sampling, width, height, box)
            part, size, corner = jpeg.part(indexed, image.header, box)
            crops, smaller = crops + 1, smaller + (len(part) < len(indexed) and (size[0] < width or corner[1] > 0))
    assert smaller > crops / 3


@pytest.mark.skipif(not RESTARTS_ARE_WRITTEN, reason="Pillow before 10.2 writes no restart markers")
def test_what_gets_no_index():
    """No restart markers, intervals that cross the end of a row, no baseline: nothing is claimed of them."""
    image = picture(50, 40, np.random.RandomState(3))
    assert restart.with_index(encoded(image)) is None and restart.with_index(b"") is None
    assert restart.with_index(encoded(image, subsampling=0, restart_marker_blocks=4)) is None  # 7 units in a row
    assert restart.with_index(encoded(image, progressive=True, restart_marker_rows=1)) is None


@pytest.mark.skipif(not RESTARTS_ARE_WRITTEN, reason="Pillow before 10.2 writes no restart markers")
def test_an_index_that_does_not_fit_is_not_used():
    """A program that has rewritten a file and kept our segment does no harm where the count of intervals tells."""
    rng = np.random.RandomState(4)
    image = picture(64, 64, rng)
    indexed = restart.with_index(encoded(image, subsampling=0, restart_marker_blocks=4))
    taller = encoded(picture(64, 80, rng), subsampling=0)
    start, end = indexed.index(b"RSTI") - 4, frame_of(indexed)
    odd = taller[:frame_of(taller)] + indexed[start:end] + taller[frame_of(taller):]
    zeroed = indexed[:start + 9] + bytes(4) + indexed[start + 13:]  # defect: a division by the units of an interval
    for data in (odd, zeroed):
        assert np.array_equal(np.asarray(jpeg.open_rgb(data).crop((3, 20, 40, 33))),
                              np.asarray(Image.open(io.BytesIO(data)).crop((3, 20, 40, 33))))


def png():
    file = io.BytesIO()
    Image.new("RGB", (9, 9), (1, 2, 3)).save(file, "PNG")
    return file.getvalue()


def test_what_is_no_plain_baseline_jpeg_is_decoded_as_a_whole(monkeypatch):
    """Progressive, CMYK, odd sampling, huge, PNG: Pillow's way, with Pillow's pixels."""
    image = picture(40, 30, np.random.RandomState(0))
    odd = bytearray(encoded(image, subsampling=0))
    odd[frame_of(odd) + 14] = 0x12  # colour with more rows than luma
    for data in (encoded(image, progressive=True), encoded(image.convert("CMYK")), png()):
        assert jpeg.header(data) is None
        assert np.array_equal(np.asarray(jpeg.open_rgb(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert jpeg.header(bytes(odd)) is None and jpeg.header(encoded(image)) is not None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 30 - 1)
    assert jpeg.header(encoded(image)) is None


def test_truncated_files_are_unreadable():
    """Wherever a file ends too early, it is reported, also where the crop would not have needed what is missing."""
    data = encoded(picture(64, 64, np.random.RandomState(1)))
    for length in sorted(random.Random(0).sample(range(len(data)), 100)) + [0, 1, 2, 3, len(data) - 1, len(data) - 2]:
        with pytest.raises(jpeg.Unreadable):
            jpeg.open_rgb(data[:length]).crop((0, 0, 8, 8))


def test_damaged_files_give_the_pixels_of_the_whole_or_are_unreadable():
    """Bytes that are wrong in the middle: what a crop gives is what the decoded whole gives, or an error that it raises too."""
    rng, data = np.random.RandomState(2), encoded(picture(64, 64, np.random.RandomState(1)), subsampling=2)
    for _ in range(200):
        damaged = bytearray(data)
        damaged[rng.randint(2, len(data))] = rng.randint(256)
        box = (8, 8, 40, int(rng.randint(9, 65)))
        try:
            wanted = jpeg.whole(bytes(damaged)).crop(box)
        except jpeg.Unreadable:
            continue
        assert np.array_equal(np.asarray(jpeg.open_rgb(bytes(damaged)).crop(box)), np.asarray(wanted))


def test_an_exif_block_is_noticed():
    """EfficientNet-B3 turns pictures as their EXIF block says, and only those."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (16, 24))
    assert jpeg.header(encoded(image, exif=exif.tobytes())).has_exif and not jpeg.header(encoded(image)).has_exif

"""common/decoders.py: how far --decoder=fast is from exact, and what it takes."""
import io
import random
import runpy
import sys

import numpy as np
import pytest
from PIL import Image

from common import cli, data, decoders, jpeg, transforms
from conftest import load_script

pictures, restart = load_script("tools/benchmarks/_pictures.py"), load_script("tools/datasets/_restart.py")


def efficientnet_transforms():
    pytest.importorskip("cv2")
    from pycls.datasets import transforms as own
    return own


def has_fast():
    try:
        decoders.opener("fast")
    except cli.UserError:
        return False
    return True


needs_fast = pytest.mark.skipif(not has_fast(), reason="simplejpeg is not installed, or PyTorch has no resize in bytes")


@needs_fast
@pytest.mark.parametrize("transform", [transforms.train_transform(224), transforms.eval_transform(224, 256)], ids=["train", "eval"])
def test_fast_is_almost_exact(tmp_path, transform):
    """The golden bound of --decoder=fast, on pictures with a photograph's spectrum: at most 2 of 255, 0.05 on the average; the same
    draws, and the same with an index of restart intervals."""
    pictures.write_pictures(str(tmp_path), 48)
    root = str(tmp_path / "train")
    exact, fast = [data.ImageFolder(root, transform, 10, decoder=decoder) for decoder in decoders.DECODERS]
    means = []
    for index in range(48):
        difference = np.abs(exact[(0, index)][0].astype(int) - fast[(0, index)][0])
        assert difference.max() <= 2
        means.append(difference.mean())
    assert 0 < np.mean(means) < 0.05


@needs_fast
def test_before_the_resize_fast_has_the_same_pixels():
    """libjpeg-turbo decodes as Pillow's does: crops in other sizes of the picture, grey, and with restart markers."""
    rng = random.Random(0)
    image = Image.fromarray(pictures._photo((200, 150), np.random.RandomState(0)))
    for options in (dict(subsampling=0), dict(subsampling=1), dict(subsampling=2), dict(subsampling=2, restart_marker_blocks=1)):
        for mode in ("RGB", "L"):
            file = io.BytesIO()
            image.convert(mode).save(file, "JPEG", **options)
            content = restart.with_index(file.getvalue()) or file.getvalue()
            for _ in range(5):
                box = transforms.random_resized_crop_box(200, 150, rng)
                ours = decoders.opener("fast")(content).crop(box)
                assert np.array_equal(np.asarray(ours), np.asarray(jpeg.whole(content).crop(box))) and ours.mode == "RGB"


@needs_fast
def test_fast_leaves_odd_files_to_exact():
    """Progressive and broken files: Pillow's pixels, and its error."""
    file = io.BytesIO()
    Image.new("RGB", (9, 9), (1, 2, 3)).save(file, "JPEG", progressive=True)
    assert isinstance(decoders.opener("fast")(file.getvalue()), Image.Image)
    with pytest.raises(jpeg.Unreadable):
        decoders.opener("fast")(b"no picture")


@needs_fast
@pytest.mark.parametrize("transform", ["train", "eval"])
def test_efficientnet_has_the_same_pixels(tmp_path, transform):
    """OpenCV resizes what either decoder gives, so that its golden numbers are those of --decoder=fast too."""
    own = efficientnet_transforms()
    pictures.write_pictures(str(tmp_path), 12)

    def transformed(image, rng):
        return own.train_transform(image, 64, rng.getrandbits(32))[0] if transform == "train" else own.eval_transform(image, 73, 64)

    exact, fast = [data.ImageFolder(str(tmp_path / "train"), transformed, 10, decoder=decoder) for decoder in decoders.DECODERS]
    for index in range(12):
        assert np.array_equal(exact[(0, index)][0], fast[(0, index)][0])


def test_fast_says_what_it_takes(monkeypatch):
    """Without simplejpeg: a line that says how to get it, before anything is trained."""
    monkeypatch.setattr(decoders, "simplejpeg", None)
    with pytest.raises(cli.UserError, match="pip install simplejpeg"):
        decoders.opener("fast")
    assert decoders.opener("exact") is jpeg.open_rgb


def test_a_fast_decoder_of_another_numpy(tmp_path, monkeypatch):
    """Defect: a simplejpeg that does not fit NumPy raised its ValueError in every program, those with --decoder=exact too."""
    (tmp_path / "simplejpeg.py").write_text("raise ValueError('numpy.dtype size changed, may indicate binary incompatibility')")
    monkeypatch.delitem(sys.modules, "simplejpeg", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert runpy.run_path(decoders.__file__)["simplejpeg"] is None

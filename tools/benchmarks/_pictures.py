"""Pictures that cost what ImageNet's cost: as large in pixels and in bytes, with the spectrum of photographs."""
import os

import numpy as np
from PIL import Image

# (width, height), and how many of 24 have it: 500 x 375 on the average, as in ImageNet.
_SIZES = [((500, 375), 10), ((375, 500), 4), ((500, 333), 4), ((333, 500), 2), ((500, 500), 1), ((1024, 768), 1), ((400, 300), 1),
          ((640, 480), 1)]
_DECAY = 1.05  # of amplitude with frequency: photographs have about 1
CLASSES = 10


def write_pictures(folder, count):
    """Write `folder`/train/<class>/<number>.jpg: `count` JPEG files with 4:2:0, of 110 to 150 kB on the average, always the same."""
    sizes = [size for size, times in _SIZES for _ in range(times)]
    for number in range(count):
        below = os.path.join(folder, "train", "n%08d" % (number % CLASSES))
        os.makedirs(below, exist_ok=True)
        picture = Image.fromarray(_photo(sizes[number % len(sizes)], np.random.RandomState(number)))
        picture.save(os.path.join(below, "%05d.jpg" % number), quality=92, subsampling="4:2:0")


def _photo(size, rng):
    """Return uint8 (height, width, 3): noise with a falling spectrum, mostly the same in all colours, and a sensor's grain."""
    width, height = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    layers = []
    for _ in range(4):
        phases = rng.standard_normal(frequency.shape) + 1j * rng.standard_normal(frequency.shape)
        layer = np.fft.irfft2(phases / frequency ** _DECAY, s=(height, width))
        layers.append(layer / layer.std())
    colours = np.stack([44 * layers[0] + 19 * layer for layer in layers[1:]], axis=-1)
    grain = 7 * rng.standard_normal((height, width, 1))
    return np.clip(128 + colours + grain, 0, 255).astype(np.uint8)

import random

import numpy as np
from pycls.core.config import cfg
from pycls.datasets import transforms

_EIG_VALS = _EIG_VECS = None  # the port's lighting knows them


class ImageNet(object):
    def __init__(self, data_path, split):
        raise AssertionError("there is no data set")

    def _prepare_im(self, im):
        im = im[:, :, ::-1].astype(np.float32) / 255
        if self._split == "train":
            im = transforms.random_sized_crop(im, cfg.TRAIN.IM_SIZE)
            im = im[:, ::-1] if np.random.uniform() < 0.5 else im
            im = self._augmented(im) if cfg.TRAIN.AUGMENT else im
            im = transforms.lighting(im, cfg.TRAIN.PCA_STD, _EIG_VALS, _EIG_VECS)
        else:
            im = transforms.scale_and_center_crop(im, cfg.TEST.IM_SIZE, cfg.TRAIN.IM_SIZE)
        im = (im - np.float32(transforms.port.MEAN[::-1])) / np.float32(transforms.port.STD[::-1])
        return np.ascontiguousarray(im[:, :, ::-1].transpose([2, 0, 1]))

    def _augmented(self, im):
        from pycls.datasets import augment
        return augment.port.augment((im * 255).astype(np.uint8), augment.port.parse_spec(cfg.TRAIN.AUGMENT), np.random,
                                    random).astype(np.float32) / 255

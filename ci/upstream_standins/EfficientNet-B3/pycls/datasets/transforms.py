import cv2
import numpy as np
import pycls

port = pycls.port("datasets/transforms.py")


def random_sized_crop(im, size):
    y, x, h, w = port.random_box(im.shape[0], im.shape[1], np.random) or (0, 0) + im.shape[:2]
    return cv2.resize(im[y:y + h, x:x + w], (size, size), interpolation=cv2.INTER_LINEAR)


def scale_and_center_crop(im, scale_size, crop_size):
    height, width = port.short_side_size(im.shape[0], im.shape[1], scale_size)
    if (height, width) != im.shape[:2]:
        im = cv2.resize(im, (width, height), interpolation=cv2.INTER_LINEAR)
    y, x = -(-(height - crop_size) // 2), -(-(width - crop_size) // 2)
    return im[y:y + crop_size, x:x + crop_size]


def lighting(im, std, eig_val, eig_vec):
    return im + port.lighting(np.random, std).astype(im.dtype)

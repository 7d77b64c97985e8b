import random

import numpy as np
import pycls

port = pycls.port("datasets/augment.py")
augment, parse_spec = port.augment, port.parse_spec  # the port's other modules ask for them
OP_RANGES = {name: operation[1:4] for name, operation in port.OPERATIONS.items()}


def apply_op(im, op, prob, magnitude):
    return port.apply_op(im, op, prob, magnitude, random)


def make_augment(augment_str):
    return lambda im: port.augment(np.asarray(im), port.parse_spec(augment_str), np.random, random)

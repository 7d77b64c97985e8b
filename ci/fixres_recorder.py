"""Runs an entry script of FixRes and notes which rank read which image: `fixres_recorder.py FOLDER main_finetune OPTIONS`.

Every process writes FOLDER/rank-<rank>.txt, a line per image in the order of reading: split, draw, index, digest of the pixels that
the augmentation made. Ranks that are spawned import this file again, and so note theirs.
"""
import hashlib
import importlib
import os
import sys

import torch.distributed as dist

CI = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.dirname(CI), os.path.join(os.path.dirname(CI), "FixRes")]
from common import cli, data  # noqa: E402

read = data.ImageFolder.__getitem__


def noted(self, key):
    pixels, target, bad = read(self, key)
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    line = [os.path.basename(self.root), key[0], key[1], hashlib.md5(pixels.tobytes()).hexdigest()]
    with open(os.path.join(os.environ["FIXRES_RECORDS"], "rank-%d.txt" % rank), "a") as stream:
        stream.write(" ".join(str(word) for word in line) + "\n")
    return pixels, target, bad


data.ImageFolder.__getitem__ = noted

if __name__ == "__main__":
    os.environ["FIXRES_RECORDS"] = sys.argv.pop(1)
    cli.run(importlib.import_module(sys.argv.pop(1)).main)

#!/usr/bin/env python3
"""Take weights out to other programs and in from them, export ONNX, and name what is on a picture: see the verbs.

Example: weights.py export model_best.pth.tar --format=timm --out=hrnet_w18.safetensors
"""
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [path for path in (os.path.join(ROOT, "tools"), ROOT) if path not in sys.path]
import verbs  # noqa: E402

if __name__ == "__main__":
    verbs.main("weights", __doc__)

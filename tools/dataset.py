#!/usr/bin/env python3
"""Make, divide, check and pack data sets: see the verbs.

Example: dataset.py check /data/imagenet --classes 1000
"""
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [path for path in (os.path.join(ROOT, "tools"), ROOT) if path not in sys.path]
import verbs  # noqa: E402

if __name__ == "__main__":
    verbs.main("datasets", __doc__)

#!/usr/bin/env python3
"""Make, check and pack data sets: see the verbs.

Example: dataset.py check /data/imagenet --classes 1000
"""
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [path for path in (os.path.join(ROOT, "tools"), ROOT) if path not in sys.path]
from common import cli  # noqa: E402
import verbs  # noqa: E402

if __name__ == "__main__":
    cli.run(lambda: verbs.run("datasets", __doc__))

#!/usr/bin/env python3
"""Look at runs by what they have left in their output paths: see the verbs.

Example: runs.py page ResNet50/test/output/0 --out run.html
"""
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [path for path in (os.path.join(ROOT, "tools"), ROOT) if path not in sys.path]
import verbs  # noqa: E402

if __name__ == "__main__":
    verbs.main("runs", __doc__)

#!/usr/bin/env python3
"""Measure how fast something is, against something that is known: see the verbs.

Example: benchmark.py input --data demo_data/imagenet
"""
import os
import signal
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [path for path in (os.path.join(ROOT, "tools"), ROOT) if path not in sys.path]
from common import cli  # noqa: E402
import verbs  # noqa: E402


def terminate(*_):
    """End as after Ctrl-C: what lies in temporary folders goes."""
    raise cli.Terminated()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, terminate)
    cli.run(lambda: verbs.run("benchmarks", __doc__))

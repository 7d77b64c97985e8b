"""A campaign against the scripts of all models: bad input, kill -9, signals, deaths, full disks, faults of a device.

Run `python -m ci.campaign --help` in the repository's root. Each verb is a module with `trials(seed, world)`, a list of trials as
dictionaries that JSON can hold, and `attempt(trial, place, world)`, which makes one and returns what was not clean about it.
"""
import os
import sys

CI = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [CI, os.path.dirname(CI)]

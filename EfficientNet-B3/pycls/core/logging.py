"""Logging of rank 0: plain lines, and `json_stats:` lines that pycls' plotting reads."""
import json
import logging
import os
import sys

from common import outputs

_FORMAT = "[%(filename)s: %(lineno)3d]: %(message)s"
_TAG = "json_stats: "


def setup_logging(rank, dest, out_dir):
    """Send what rank 0 logs to stdout, or to out_dir/stdout.log when `dest` is file; other ranks log nothing."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.setLevel(logging.INFO)
    if not rank.is_main:
        root.addHandler(logging.NullHandler())
        return
    if dest == "file":
        os.makedirs(out_dir, exist_ok=True)
        path = os.path.join(out_dir, "stdout.log")
        outputs.note(path)
        handler = logging.FileHandler(path)
    else:
        handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter(_FORMAT))
    root.addHandler(handler)


def get_logger(name):
    """Return the logger of a module."""
    return logging.getLogger(name)


def stats_line(stats, kind):
    """Return the line for a dictionary of numbers and words: sorted keys, floats with 4 decimals, `_type` set to `kind`."""
    fields = sorted(dict(stats, _type=kind).items())
    return "%s{%s}" % (_TAG, ", ".join("%s: %s" % (json.dumps(key), _formatted(value)) for key, value in fields))


def config_line(cfg):
    """Return the line that holds the whole configuration, nested and not rounded."""
    return _TAG + json.dumps(dict(cfg, _type="cfg"), sort_keys=True)


def _formatted(value):
    return "%.4f" % value if isinstance(value, float) else json.dumps(value)

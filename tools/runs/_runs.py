"""What a run has left, read from its output path."""
import json
import os
from collections import namedtuple

from common import records
from common.cli import UserError

# A run: its short name among those that are shown together, its folder, its DLLogger records, the parameters and the summary among
# them ({} where it did not reach its end), and its report.json ({} where no script has run it).
Run = namedtuple("Run", "name folder records parameters summary report")


def metrics_of(path):
    """Return the record file of a run that is named by its output path or by that file."""
    return os.path.join(path, "metrics.jsonl") if os.path.isdir(path) else path


def names_of(paths):
    """Return a short name for each file: its path without what all have in common."""
    parts = [os.path.abspath(path).split(os.sep) for path in paths]
    if len(paths) == 1:
        return [os.sep.join(parts[0][-2:])]
    while len(parts[0]) > 1 and all(len(p) > 1 and p[0] == parts[0][0] for p in parts):
        parts = [p[1:] for p in parts]
    while len(parts[0]) > 1 and all(len(p) > 1 and p[-1] == parts[0][-1] for p in parts):
        parts = [p[:-1] for p in parts]
    return [os.sep.join(p) for p in parts]



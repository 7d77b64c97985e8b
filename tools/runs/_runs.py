"""What a run has left, read from its output path."""
import contextlib
import json
import os
from collections import namedtuple

from common import cli, outputs, records, report
from common.cli import UserError

# A run: its short name among those that are shown together, its folder, its DLLogger records, the parameters and the summary among
# them ({} where it did not reach its end), and its report.json ({} where no script has run it to its end).
Run = namedtuple("Run", "name folder records parameters summary report")

# The row of a model's README.
COLUMNS = ("NAME", "Acc@1", "FPS", "Epochs", "AMP_Type", "Torch_Version")


def read(paths):
    """Return the Runs that are named by their output paths or files in them. Raises UserError where one has left nothing."""
    folders = list(dict.fromkeys(os.path.dirname(path) or "." if os.path.isfile(path) else path for path in paths))
    return [_read(folder, name) for folder, name in zip(folders, names_of(folders))]


def _read(folder, name):
    metrics, written = os.path.join(folder, "metrics.jsonl"), os.path.join(folder, "report.json")
    try:
        with open(written, encoding="utf-8") as stream:
            found = json.load(stream)
        if not isinstance(found, dict) or not {"network", "kind", "ranks"} <= set(found.get("case") or {}):
            raise ValueError("it has no case")
    except FileNotFoundError:
        found = {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError("%s cannot be read: %s" % (written, getattr(error, "strerror", None) or error))
    if not os.path.isfile(metrics):
        if not found:
            raise UserError("%s is no output path of a run: it has neither metrics.jsonl nor report.json" % folder)
        return Run(name, folder, [], found.get("parameters") or {}, found.get("summary") or {}, found)
    parameters, summary = report.summary(metrics)
    return Run(name, folder, records.read(metrics), parameters, summary or {}, found)


def row(run):
    """Return the row of COLUMNS of a Run: numbers, text, and None for what was not measured."""
    epochs = [epoch for level, epoch in (place_of(record["step"], 1) for record in logged(run.records)) if level]
    values = (run.report.get("case", {}).get("name") or run.name, run.summary.get("val.top1"), run.summary.get("train.total_ips"),
              run.summary.get("epochs") or max(epochs or [0]) or None, run.parameters.get("opt_level_run"), run.parameters.get("torch"))
    return dict(zip(COLUMNS, values))


def reference(run):
    """Return what is published on the case of a Run (report.compared); None where there is nothing."""
    if not run.report:
        return None
    return report.compared(dict(run.report, parameters=run.parameters, summary=run.summary))


def published_row(found):
    """Return the published row of COLUMNS in what `reference` has returned; all None where none is of this many devices."""
    same = (found or {}).get("published") or {}
    values = (None, same.get("top1"), same.get("images_per_second"), same.get("epochs"), same.get("opt_level"), same.get("torch"))
    return dict(zip(COLUMNS, values))


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


# --- records ----------------------------------------------------------------------------------------------------------

def logged(found):
    """Return those of the records that say something of an iteration or an epoch."""
    return [record for record in found if record.get("type") == "LOG" and record.get("data") and place_of(record.get("step"), 1)]


def count_steps(logged):
    """Return the steps of an epoch, as far as the records of iterations show it: the last one and what lies between two."""
    iterations = sorted({record["step"][1] for record in logged if is_iteration(record["step"])})
    if not iterations:
        return 1
    interval = iterations[1] - iterations[0] if len(iterations) > 1 else 1
    return iterations[-1] + interval if iterations[0] == 0 else iterations[-1]


def place_of(step, steps_per_epoch):
    """Return (0, epochs) for a record of an iteration, (1, epochs) for the summary of an epoch, None for others."""
    if is_iteration(step):
        return 0, step[0] + step[1] / steps_per_epoch
    if step == ["before"]:  # FixRes: the evaluation before fine-tuning
        return 1, 0
    if isinstance(step, list) and len(step) == 1 and is_number(step[0]):
        return 1, step[0] + 1
    return None


def is_iteration(step):
    """Return whether a record's step is (epoch, iteration) or (epoch, iteration, validation iteration)."""
    return isinstance(step, list) and len(step) in (2, 3) and all(is_number(number) for number in step)


def is_number(value):
    """Return whether a recorded value can be drawn: not None, not NaN, not infinite, no text."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


# --- files ------------------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def new_file(path):
    """Give a stream of bytes that takes the place of the file `path` when it is complete, and is listed among the files of a run. Raises
    UserError where it cannot be written."""
    try:
        with cli.new_file(path + ".part") as stream:
            yield stream
        outputs.note_beside(path)
        os.replace(path + ".part", path)
    except OSError as error:
        raise UserError("cannot write %s: %s" % (path, error.strerror))
    finally:
        with contextlib.suppress(OSError):
            os.remove(path + ".part")

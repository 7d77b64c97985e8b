"""DLLogger records of a run: the `dllogger` package where it is installed, the same format otherwise.

One record a line: `DLLL ` and a JSON object. Steps: "PARAMETER" for the command line; (epoch, iteration); (epoch,) for the
summary of an epoch; () for that of the run, which is the last record of a run that went to its end.
"""
import datetime
import inspect
import json
import os
import time

_UNITS = {"val.top1": "%", "val.top5": "%", "train.total_ips": "img/s", "val.total_ips": "img/s"}


class Recorder(object):
    """Writes the records of rank 0 to `path`; does nothing on other ranks or with an empty path.

    `append` continues the file of an interrupted run. TensorBoard gets the same numbers when `tensorboard_dir` is given.
    """

    def __init__(self, path, rank, append=False, tensorboard_dir=None):
        self._backend = self._tensorboard = None
        if not (rank.is_main and path):
            return
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        if append:
            _end_last_line(path)
        self._backend = _logger(path, append)
        for metric, unit in _UNITS.items():
            self._backend.metadata(metric, {"unit": unit, "format": ":.2f"})
        if tensorboard_dir:
            from torch.utils.tensorboard import SummaryWriter
            self._tensorboard = SummaryWriter(tensorboard_dir)

    def parameters(self, values):
        """Record the command line: a dictionary; values that JSON does not know are recorded as text."""
        if self._backend:
            self._backend.log("PARAMETER", json.loads(json.dumps(values, default=str)), 0)
            self._backend.flush()

    def log(self, step, values, global_step=None):
        """Record `values` (name -> number, None for what was not measured) at `step`, a tuple as above.

        `global_step` is TensorBoard's horizontal axis; without it the last number of `step` is."""
        if self._backend:
            self._backend.log(step, values, 0)
            self._backend.flush()
        if self._tensorboard and step:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._tensorboard.add_scalar(name, value, step[-1] if global_step is None else global_step)
            self._tensorboard.flush()


class JsonLines(object):
    """The two methods of dllogger.Logger that are used here, and the file format of its JSONStreamBackend."""

    def __init__(self, path, append):
        self._started = time.time()
        self._stream = open(path, "a" if append else "w")

    def log(self, step, data, verbosity=1):
        self._write([("type", "LOG"), ("step", step), ("data", data)], clock=("timestamp", "datetime", "elapsedtime"))

    def metadata(self, metric, metadata):
        self._write([("type", "METADATA"), ("metric", metric), ("metadata", metadata)],
                    clock=("timestamp", "elapsedtime", "datetime"))

    def flush(self):
        self._stream.flush()

    def _write(self, fields, clock):
        now = time.time()
        times = {"timestamp": str(now), "elapsedtime": str(now - self._started),
                 "datetime": str(datetime.datetime.fromtimestamp(now, datetime.timezone.utc))}
        self._stream.write("DLLL %s\n" % json.dumps(dict([(name, times[name]) for name in clock] + fields)))


def _logger(path, append):
    try:
        import dllogger
    except ImportError:
        return JsonLines(path, append)
    options = {"append": append} if "append" in inspect.signature(dllogger.JSONStreamBackend.__init__).parameters else {}
    return dllogger.Logger([dllogger.JSONStreamBackend(dllogger.Verbosity.VERBOSE, path, **options)])


def _end_last_line(path):
    """Close the half line that a killed run has left, so that the next record stands on a line of its own."""
    if os.path.exists(path) and os.path.getsize(path) > 0:
        with open(path, "rb+") as stream:
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")


def read(path):
    """Return the records of a file as a list of dictionaries; half lines of a killed run are passed over."""
    records = []
    with open(path) as stream:
        for line in stream:
            if line.startswith("DLLL "):
                try:
                    records.append(json.loads(line[len("DLLL "):]))
                except ValueError:
                    continue
    return records

"""DLLogger records of a run: the `dllogger` package where it is installed, the same format otherwise.

One record a line: `DLLL ` and a JSON object. Steps: "PARAMETER" for the command line; (epoch, iteration); (epoch,) for the
summary of an epoch; () for that of the run, which is the last record of a run that went to its end.
"""
import atexit
import datetime
import glob
import inspect
import json
import os
import time

from common import cli, outputs

_UNITS = {"val.top1": "%", "val.top5": "%", "train.data_wait": "%", "train.total_ips": "img/s", "val.total_ips": "img/s"}


def start(path, rank, args, amp, progress=None, tensorboard_dir=None):
    """Return the Recorder of a run, which has noted its parameters. Everything that can be wrong has to be checked before.
    `path`: empty for no records. `progress`: that of a training; where it goes on with another one, so do the records. Raises UserError
    where another run is working in the folder of the records, a file there would be written over that no run has written, or predictions
    are asked for without records."""
    import torch  # not for run.py, which only reads records: every script would start a second later
    from common.predictions import Predictions
    goes_on, events, folder, restarts = progress is not None and progress.resumed, None, os.path.dirname(path or ""), 0
    asked = getattr(args, "predictions", False)
    if asked and not path:
        raise cli.UserError("--predictions writes beside the records: say where those go (see --help)")
    Predictions.path = os.path.join(folder, "predictions.npz") if asked else None
    if getattr(args, "tensorboard", False):
        tensorboard_dir = os.path.join(folder, "tensorboard")
    if rank.is_main and path:
        written = [path] + [Predictions.path] * bool(Predictions.path)
        held = outputs.hold(folder, goes_on)
        held.check(written + (progress.products if progress and not goes_on else []), goes_on)
        events = Events(tensorboard_dir, progress) if tensorboard_dir else None
        outputs.note(*written)
        restarts = _forget_since(path, progress.epoch, progress.step) if goes_on else 0
    recorder = Recorder(path, rank, goes_on, events)
    recorder.parameters(dict(vars(args), world_size=rank.world_size, device_type=rank.device.type, opt_level_run=amp.opt_level,
                             torch=torch.__version__, restarts=restarts, steps_in_epoch=getattr(progress, "steps_in_epoch", None),
                             **{name: progress and progress.constants.get(name) for name in ("train_images", "classes")}))
    return recorder


class Recorder(object):
    """Writes the records of rank 0 to `path`; does nothing on other ranks or with an empty path.

    A name means the same in every model: `train.loss` is that of the last batch, `train.loss_mean`, `train.top1` and `train.top5`
    are means over the images of the epoch so far, times are means of a step. `append` continues the file of an interrupted run.
    The Events `events` get the same numbers.
    """

    def __init__(self, path, rank, append=False, events=None):
        self._path, self._backend, self._events = path, None, events
        self._waited = self._took = 0.0
        if not (rank.is_main and path):
            return
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        self._backend = _logger(path, append)
        for metric, unit in _UNITS.items():
            self._backend.metadata(metric, {"unit": unit, "format": ":.2f"})

    def parameters(self, values):
        """Record the command line: a dictionary; values that JSON does not know are recorded as text."""
        if self._backend:
            self._write("PARAMETER", json.loads(json.dumps(values, default=str)))

    def _write(self, step, values):
        try:
            with outputs.writing(self._path):
                self._backend.log(step, values, 0)
                self._backend.flush()
        except cli.TrainingStopped:
            atexit.register(cli.leave_at_once)  # what is left in buffers could not be written either
            raise

    def step(self, progress, clock, rate):
        """Record the training step that has just been read (Progress.read), at the learning rate `rate`."""
        tally = progress.tally
        self.log((progress.epoch, progress.step),
                 {"train.loss": tally.loss.val, "train.loss_mean": tally.loss.avg, "train.top1": tally.top1.avg,
                  "train.top5": tally.top5.avg, "train.step_time": clock.step_time.val, "train.data_time": clock.data_time.val,
                  "lr": rate, **(clock.straggler() if self._backend else {})})

    def epoch(self, progress, clock, rate, evaluated=True):
        """Record the epoch that has just been trained and, unless it was not, evaluated."""
        values = {name: value for name, value in progress.results.items() if evaluated or not name.startswith("val.")}
        waited, took = clock.data_time.sum, clock.step_time.sum
        self._waited, self._took = self._waited + waited, self._took + took
        if self._backend and took:
            cli.print_line("waited for data %.1f %% of the time" % _percent(waited, took))
        self.log((progress.epoch,), dict(values, **{"train.total_ips": clock.images_per_second, "lr": rate,
                                                    "train.data_wait": _percent(waited, took)}))

    def summary(self, progress, clock, bad_images):
        """Record the end of a training."""
        values = dict(progress.results, epochs=progress.epoch, bad_images=bad_images, **clock.summary())
        self.log((), dict(values, **{"train.data_wait": _percent(self._waited, self._took)}))

    def evaluation(self, result, bad_images):
        """Record an evaluation (meters.Result) that is all of the run."""
        self.log((), {"val.top1": result.top1, "val.top5": result.top5, "val.loss": result.loss, "bad_images": bad_images})

    def log(self, step, values):
        """Record `values` (name -> number, None for what was not measured) at `step`, a tuple as above."""
        if self._backend:
            self._write(step, values)
        if not step:
            outputs.release()  # the last record of a run
        if self._events:
            self._events.write(step, values)


def _percent(part, whole):
    return 100 * part / whole if whole else None


class Events(object):
    """TensorBoard's events of the records of steps and epochs: the same names, over the steps of the run."""

    def __init__(self, folder, progress):
        """`progress`: has steps_in_epoch, and of a run that is `resumed` epoch and step: what the folder holds from there on counts no
        more. Raises UserError where there is no TensorBoard."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except (ImportError, AttributeError) as error:  # AttributeError: PyTorch 1.8 beside a setuptools without distutils.version
            raise cli.UserError("TensorBoard cannot be imported (%s): pip install tensorboard" % error)
        self._steps_in_epoch = progress.steps_in_epoch
        with outputs.writing(folder):
            self._writer = SummaryWriter(folder, purge_step=self._place((progress.epoch, progress.step)) if progress.resumed else None)
        outputs.note(*glob.glob(os.path.join(glob.escape(folder), "events.out.tfevents.*")))

    def _place(self, step):
        return step[0] * self._steps_in_epoch + (step[1] if len(step) > 1 else self._steps_in_epoch - 1)

    def write(self, step, values, when=None):
        """Write what Recorder.log records. `when`: seconds since 1970, now without it."""
        for name, value in values.items() if step else ():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, self._place(step), when)
        self._writer.flush()


class JsonLines(object):
    """The two methods of dllogger.Logger that are used here, and the file format of its JSONStreamBackend."""

    def __init__(self, path, append):
        self._started = time.time()
        self._stream = open(path, "a" if append else "w")

    def log(self, step, data, verbosity=1):
        """Write a record of a step."""
        self._write(type="LOG", step=step, data=data)

    def metadata(self, metric, metadata):
        """Write what a number is."""
        self._write(type="METADATA", metric=metric, metadata=metadata)

    def flush(self):
        """Hand what has been written to the operating system."""
        self._stream.flush()

    def _write(self, **fields):
        now = time.time()
        record = {"timestamp": str(now), "datetime": str(datetime.datetime.fromtimestamp(now, datetime.timezone.utc)),
                  "elapsedtime": str(now - self._started)}
        self._stream.write("DLLL %s\n" % json.dumps(dict(record, **fields)))


def _logger(path, append):
    try:
        import dllogger
    except ImportError:
        return JsonLines(path, append)
    options = {"append": append} if "append" in inspect.signature(dllogger.JSONStreamBackend.__init__).parameters else {}
    return dllogger.Logger([dllogger.JSONStreamBackend(dllogger.Verbosity.VERBOSE, path, **options)])


def _forget_since(path, epoch, step):
    """Take out what a run has recorded after the checkpoint that it goes on from, and the half line that it may have left: the
    steps are taken, and recorded, again. Returns how often it has been started so far."""
    if not os.path.exists(path):
        return 0
    with open(path, errors="replace") as stream:
        kept = [line for line in stream if line.endswith("\n") and _is_before(_parsed(line), epoch, step)]
    with outputs.writing(path), cli.new_file(path + ".part") as stream:
        stream.writelines(line.encode() for line in kept)
    os.replace(path + ".part", path)
    return sum(_parsed(line).get("step") == "PARAMETER" for line in kept)


def _is_before(record, epoch, step):
    if record is None or record.get("type") != "LOG" or not isinstance(record.get("step"), list):
        return record is not None
    if not all(isinstance(number, int) for number in record["step"]):
        return False
    return tuple(record["step"]) < ((epoch, step) if len(record["step"]) > 1 else (epoch,)) and record["step"] != []


def read(path):
    """Return the records of a file as a list of dictionaries; half lines of a killed run are passed over."""
    with open(path, errors="replace") as stream:
        return [record for record in map(_parsed, stream) if record is not None]


def _parsed(line):
    try:
        record = json.loads(line[len("DLLL "):]) if line.startswith("DLLL ") else None
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("data", {}), dict) else None

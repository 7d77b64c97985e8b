"""DLLogger's documented calls and the lines of its JSONStreamBackend: https://github.com/NVIDIA/dllogger."""
import atexit
import datetime
import json

from npu_stand_in import note


class Verbosity(object):
    OFF = -1
    DEFAULT = 0
    VERBOSE = 1


class JSONStreamBackend(object):
    def __init__(self, verbosity, filename, append=False):
        note("dllogger.JSONStreamBackend", append)
        self.verbosity = verbosity
        self._stream = open(filename, "a" if append else "w")
        self._start = datetime.datetime.now()
        atexit.register(self._stream.close)

    def write(self, kind, **fields):
        now = datetime.datetime.now()
        record = dict(timestamp=str(now.timestamp()), datetime=str(now), elapsedtime=str((now - self._start).total_seconds()), type=kind)
        self._stream.write("DLLL %s\n" % json.dumps(dict(record, **fields)))

    def flush(self):
        self._stream.flush()


class Logger(object):
    def __init__(self, backends):
        self.backends = backends

    def log(self, step, data, verbosity=1):
        for backend in self.backends:
            if backend.verbosity >= verbosity:
                backend.write("LOG", step=step, data=data)

    def metadata(self, metric, metadata):
        for backend in self.backends:
            backend.write("METADATA", metric=metric, metadata=metadata)

    def flush(self):
        for backend in self.backends:
            backend.flush()

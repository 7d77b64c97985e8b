"""Streams and events of torch.npu, over the clock of the simulated devices (_clock.py says what it does)."""

import torch

from torch_npu import _C


class Stream(torch.Stream):
    def __new__(cls, device=None, priority=0, **identity):
        if identity:  # of an existing stream
            return super().__new__(cls, **identity)
        return super().__new__(cls, torch.device("npu", torch.npu._get_device_index(device)), priority=priority)

    @property
    def npu_stream(self):
        """What names the stream in C: its id here, an address on the device."""
        return self.stream_id

    def wait_event(self, event):
        event.wait(self)

    def wait_stream(self, stream):
        self.wait_event(stream.record_event())

    def record_event(self, event=None):
        event = event or Event()
        event.record(self)
        return event


def _as_npu_stream(stream):
    return Stream(stream_id=stream.stream_id, device_index=stream.device_index, device_type=stream.device_type)


class Event:
    """The time at which a stream has done what was on it when the event was recorded.

    Not a torch.Event, whose methods refuse subclasses.
    """

    def __init__(self, enable_timing=False, blocking=False, interprocess=False):
        self._timing = enable_timing
        self._recorded = None  # nanoseconds

    def record(self, stream=None):
        stream = stream or torch.npu.current_stream()
        self._recorded = _C._sim_stream_time(stream.device_index, stream.stream_id)

    def wait(self, stream=None):
        stream = stream or torch.npu.current_stream()
        if self._recorded is not None:
            _C._sim_stream_waits(stream.device_index, stream.stream_id, self._recorded)

    def query(self):
        return self._recorded is None or self._recorded <= _C._sim_host_time()

    def synchronize(self):
        if self._recorded is not None:
            _C._sim_wait_until("event.synchronize", self._recorded)

    def elapsed_time(self, end_event):
        """Milliseconds of the device from this event to the other, for which the host waits, as on the device.

        Both must be recorded, and made with enable_timing=True; else RuntimeError.
        """
        if not (self._timing and end_event._timing):
            raise RuntimeError("elapsed_time needs events made with enable_timing=True")
        if self._recorded is None or end_event._recorded is None:
            raise RuntimeError("Both events must be recorded before calculating elapsed time.")
        _C._sim_wait_until("event.elapsed_time", max(self._recorded, end_event._recorded))
        return (end_event._recorded - self._recorded) * 1e-6

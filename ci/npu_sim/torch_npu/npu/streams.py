"""Streams and events. Work is done when the call that asks for it returns, so there is never anything to wait for."""

import time

import torch


class Stream(torch.Stream):
    def __new__(cls, device=None, priority=0, **identity):
        if identity:  # of an existing stream
            return super().__new__(cls, **identity)
        return super().__new__(cls, torch.device("npu", torch.npu._get_device_index(device)), priority=priority)

    def wait_event(self, event):
        pass

    def wait_stream(self, stream):
        pass

    def record_event(self, event=None):
        event = event or Event()
        event.record(self)
        return event


def _as_npu_stream(stream):
    return Stream(stream_id=stream.stream_id, device_index=stream.device_index, device_type=stream.device_type)


class Event:
    """The time at which it was recorded. Not a torch.Event, whose methods refuse subclasses."""

    def __init__(self, enable_timing=False, blocking=False, interprocess=False):
        self._timing = enable_timing
        self._recorded = None

    def record(self, stream=None):
        self._recorded = time.perf_counter()

    def wait(self, stream=None):
        pass

    def query(self):
        return True

    def synchronize(self):
        pass

    def elapsed_time(self, end_event):
        """Milliseconds from this event to the other. Both must be recorded, and made with enable_timing=True."""
        if not (self._timing and end_event._timing):
            raise RuntimeError("elapsed_time needs events made with enable_timing=True")
        if self._recorded is None or end_event._recorded is None:
            raise RuntimeError("Both events must be recorded before calculating elapsed time.")
        return (end_event._recorded - self._recorded) * 1e3

"""The virtual clock. What is asserted are its own figures; each check has a device of its own, so that none waits for another.

The launcher sets NPU_SIM_CLOCK=1 and a table with slow operators (OPERATOR) and slow copies (1 MB: COPY).
"""

import time

import pytest
import torch
from nets import Net, sgd
from torch_npu import _C, _clock

MS = 1000000
OPERATOR, COPY = 20 * MS, 200 * MS
MEGABYTE = 250000  # elements of float32


def ones(device, size=8):
    """Ones on an NPU, whose time is spent."""
    tensor = torch.ones(size, device=device)
    torch.npu.synchronize(device)
    return tensor


def steps(x, count):
    for _ in range(count):
        x = x + 1
    return x


def ahead(device):
    """How far an NPU's work reaches beyond the host's time."""
    return _clock.device_time(device) - _clock.host_time()


def test_launches_return_at_once():
    """The host is far ahead of the device until it reads a value; then it has slept until the device had it."""
    x, busy, waits = ones("npu:0"), _clock.busy_time(0), _clock.waits()
    x = steps(x, 10)
    assert _clock.busy_time(0) - busy == 10 * OPERATOR and ahead(0) > 5 * OPERATOR and _clock.waits() == waits
    assert x[0].item() == 11 and ahead(0) <= 0
    assert _clock.waits()[0] == waits[0] + 1 and _clock.waits()[1] - waits[1] > 5 * OPERATOR


def test_a_meter_shows_the_time_of_the_device():
    """What a meter that synchronizes measures, with any of the functions of `time`, is the device's time."""
    x = ones("npu:1")
    for clock in (time.perf_counter, time.time, time.monotonic):
        began, busy = clock(), _clock.busy_time(1)
        x = steps(x, 5)
        assert clock() - began < 5 * OPERATOR * 1e-9  # without a synchronize: launches only
        torch.npu.synchronize(1)
        assert 5 * OPERATOR * 0.99e-9 < clock() - began < 50 * OPERATOR * 1e-9 and _clock.busy_time(1) - busy == 5 * OPERATOR


def test_the_time_of_the_simulation_does_not_count():
    """While the host computes for the device, the script's clock stands still."""
    x, real = torch.ones(2048, 2048, device="npu:2"), time.clock_gettime
    began, real_began, frozen = time.perf_counter(), real(time.CLOCK_MONOTONIC), _C._sim_frozen_time()
    x = x @ x @ x
    frozen = (_C._sim_frozen_time() - frozen) * 1e-9
    assert frozen > 0 and time.perf_counter() - began < real(time.CLOCK_MONOTONIC) - real_began - frozen / 2


def test_a_hidden_read_in_a_loop_shows():
    """A loop that reads a value each step waits each step, and never gets ahead; one that does not read never waits."""
    x, waits = ones("npu:3"), _clock.waits()[0]
    for _ in range(4):
        x = steps(x, 1)
        if x.sum() > 1e9:  # the hidden read
            break
        assert ahead(3) <= 0
    assert _clock.waits()[0] - waits == 4
    for _ in range(4):
        x = steps(x, 1)
    assert _clock.waits()[0] - waits == 4 and ahead(3) > 2 * OPERATOR


def prefetched(device, side_stream):
    """The time that a step of compute and the copy of the next batch take, on one stream or on two."""
    x, batch = ones(device), torch.ones(MEGABYTE).pin_memory()
    began, stream = _clock.device_time(device.index), torch.npu.Stream(device) if side_stream else torch.npu.current_stream(device)
    with torch.npu.stream(stream):
        copied = batch.to(device, non_blocking=True)
    steps(x, COPY // OPERATOR)
    torch.npu.current_stream(device).wait_stream(stream)
    steps(copied, 1)
    return _clock.device_time(device.index) - began


def test_a_prefetch_overlaps():
    """Copy and compute take their sum on one stream, and the longer of the two on two streams."""
    with torch.npu.device(4):
        assert prefetched(torch.device("npu", 4), False) >= 2 * COPY
        assert COPY <= prefetched(torch.device("npu", 4), True) < 1.8 * COPY


@pytest.mark.parametrize("pinned, non_blocking, waiting", [(True, True, 0), (True, False, 1), (False, True, 1), (False, False, 1)])
def test_copies_to_the_device(pinned, non_blocking, waiting):
    """Only a non_blocking copy from pinned memory does not wait."""
    batch, waits = torch.ones(MEGABYTE), _clock.waits()[0]
    batch = batch.pin_memory() if pinned else batch
    batch.to("npu:5", non_blocking=non_blocking)
    assert _clock.waits()[0] - waits == waiting and (ahead(5) <= 0) == bool(waiting)
    if waiting == 0:
        torch.npu.synchronize(5)


def test_copies_to_the_host():
    """So it is in the other direction."""
    x, pinned, waits = ones("npu:5", MEGABYTE), torch.empty(MEGABYTE).pin_memory(), _clock.waits()[0]
    pinned.copy_(x, non_blocking=True)
    assert _clock.waits()[0] == waits and ahead(5) > 0
    x.cpu()
    assert _clock.waits()[0] == waits + 1 and ahead(5) <= 0


@pytest.mark.parametrize("read, waiting", [
    (lambda x: x.nonzero(), 1), (lambda x: x[x > 0], 1), (lambda x: torch.equal(x, x), 1), (lambda x: bool(x.all()), 1),
    (lambda x: torch.unique(x), 1), (lambda x: x.tolist(), 1),
    (lambda x: x[torch.zeros(3, dtype=torch.long, device=x.device)], 0), (lambda x: x.sum(), 0), (lambda x: x.numel(), 0)])
def test_what_depends_on_values_waits(read, waiting):
    """An operator whose result has a length, or is a number, that depends on values makes the host wait."""
    x, waits = torch.ones(8, device="npu:6"), _clock.waits()[0]
    read(x)
    assert _clock.waits()[0] - waits == waiting


def test_streams_and_events():
    """Events are points of the device's time; one that is not reached is not done, and a stream can wait for another's."""
    device = torch.device("npu", 7)
    with torch.npu.device(device):
        x, (start, end), side = ones(device), (torch.npu.Event(enable_timing=True) for _ in range(2)), torch.npu.Stream(device)
        start.record()
        steps(x, 5)
        end.record()
        assert not end.query() and not torch.npu.current_stream().query() and side.query()
        side.wait_event(end)
        with torch.npu.stream(side):
            steps(x, 1)
            after = side.record_event(torch.npu.Event(enable_timing=True))
        assert end.elapsed_time(after) == OPERATOR / MS and ahead(7) <= 0  # it waits for both
        assert 5 * OPERATOR / MS <= start.elapsed_time(end) < 50 * OPERATOR / MS and end.query()
        with torch.npu.stream(side):
            steps(x, 1)
        waits = _clock.waits()[0]
        for wait in (side.synchronize, after.synchronize, torch.npu.synchronize, torch.accelerator.synchronize):
            wait()
        assert _clock.waits()[0] - waits == 4 and ahead(7) <= 0


def test_two_devices_have_two_clocks():
    """What runs on one NPU takes the other no time, and a copy between two takes both to its end."""
    (a, b), busy = (ones("npu:8"), ones("npu:9")), _clock.busy_time(9)
    steps(a, 10)
    assert _clock.busy_time(9) == busy and ahead(8) > 5 * OPERATOR and ahead(9) <= 0
    b.copy_(a)
    assert _clock.device_time(9) == _clock.device_time(8)


def time_of(call):
    busy = _clock.busy_time(10)
    call()
    return _clock.busy_time(10) - busy


def test_size_counts():
    """Matrix products and convolutions take the time of their operations, others that of their bytes; views take none."""
    rate = _clock.read_table("")["matrix_gflops"] / 1000  # as the launcher sets it
    a, b, c = (torch.ones(*size, device="npu:10") for size in ((300, 200), (200, 500), (300, 500)))
    images, kernel = torch.ones(4, 3, 32, 32, device="npu:10"), torch.ones(16, 3, 3, 3, device="npu:10", requires_grad=True)
    product, convolution = 2 * 300 * 200 * 500 / rate, 2 * 4 * 16 * 32 * 32 * 27 / rate
    close = lambda flops: pytest.approx(OPERATOR + flops, abs=10)  # noqa: E731
    assert time_of(lambda: a @ b) == time_of(lambda: torch.addmm(c, a, b)) == close(product)
    assert time_of(lambda: torch.bmm(a[None], b[None])) == close(product)
    assert time_of(lambda: torch.conv2d(images, kernel, padding=1)) == close(convolution)
    loss = torch.conv2d(images, kernel, padding=1).sum()
    assert time_of(loss.backward) == pytest.approx(2 * OPERATOR + 2 * convolution, rel=0.5)  # and the gradient of the sum
    assert time_of(lambda: (a.t(), a.view(-1), a[1:], b.expand(2, 200, 500), a.detach())) == 0
    assert time_of(lambda: a.tanh()) == 7000 * MS  # the launcher has named it


def test_training_runs_ahead():
    """A training loop launches whole steps ahead of the device, and waits only where it reads the loss."""
    with torch.npu.device(11):
        torch.manual_seed(0)
        model, images, labels = Net().npu(), torch.randn(4, 3, 16, 16).npu(), torch.zeros(4, dtype=torch.long).npu()
        optimizer, waits = sgd(model.parameters()), _clock.waits()[0]
        for _ in range(2):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        assert _clock.waits()[0] == waits and ahead(11) > _clock.busy_time(11) / 2 > 10 * OPERATOR


@pytest.mark.parametrize("text, message", [
    ("speed=3", "'speed' is neither one of operator_us"), ("copy_us", "'copy_us' needs a positive"),
    ("copy_us=-1", "positive number"), ("copy_us=soon", "positive number"), ("copy_us=inf", "positive number")])
def test_mistakes_in_the_table(text, message):
    """An entry that is wrong is named."""
    with pytest.raises(ValueError, match=message):
        _clock.read_table(text)


def test_table_in_a_file(tmp_path):
    """A file has an entry in each line, and comments; what is not in it stays."""
    path = tmp_path / "table"
    path.write_text("# ours\ncopy_us = 3  # measured\n\naten::mm=7\n")
    assert _clock.read_table(str(path)) == dict(_clock.TABLE, **{"copy_us": 3.0, "aten::mm": 7.0})

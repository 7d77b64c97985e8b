"""torch.npu: devices, memory, streams, options and random numbers."""

import gc
import importlib
import os
import re

import pytest
import torch
import torch_npu
from nets import sgd, train
from torch_npu import _faults, _report, _settings
from torch_npu._settings import visible_devices


def test_devices():
    """The eight devices are there under the names that PyTorch and scripts use."""
    assert torch.npu.is_available() and torch.npu.device_count() == 8
    assert torch.device("npu", 1) == torch.device("npu:1")
    assert torch.accelerator.current_accelerator().type == "npu" and torch.accelerator.device_count() == 8
    torch.npu.set_device("npu:2")
    assert torch.npu.current_device() == 2 and torch.ones(1, device="npu").device.index == 2
    torch.npu.set_device(torch.device("npu", 0))
    with torch.npu.device(1):
        assert torch.ones(1, device="npu").device.index == 1
    assert torch.ones(1).npu().device.index == 0 and torch.ones(1, device="npu").is_npu
    assert torch.npu.get_device_properties(0).total_memory == 64 << 30 and torch.npu.get_device_name(0).startswith("Ascend910")


@pytest.mark.parametrize("use", [
    lambda: torch.zeros(2, device="npu:8"), lambda: torch.npu.set_device(8), lambda: torch.ones(2).to("npu:99"),
    lambda: torch.npu.synchronize("npu:9"), lambda: torch.npu.max_memory_allocated(8), lambda: torch.npu.get_device_name(8),
])
def test_index_out_of_range(use):
    """A device that does not exist is refused, with its number in the message."""
    with pytest.raises((RuntimeError, AssertionError), match="out of range: this process sees 8|Invalid device id: [89]"):
        use()


@pytest.mark.parametrize("text, expected", [
    (None, [0, 1, 2, 3]), ("", []), ("0", [0]), ("1,3", [1, 3]), ("3,1", []), ("1,1", []), ("2,9,3", []), ("2,9", [2]),
    ("1,x", [1]), ("1 ,2", [1]), ("0,,2", [0]), ("-1", []),
])
def test_visible_devices(text, expected):
    """ASCEND_RT_VISIBLE_DEVICES is read as torch_npu reads it."""
    assert visible_devices(text, 4) == expected


def test_set_device_of_a_backward():
    """Gradients of a device other than the current one are computed there."""
    weight = torch.ones(2, device="npu:3", requires_grad=True)
    (weight * 2).sum().backward()
    assert weight.grad.device.index == 3


def test_memory():
    """Bytes are counted by device and freed; the peak stays until it is reset; a device that is full says so."""
    torch.npu.reset_peak_memory_stats(4)
    block = torch.empty(1 << 20, device="npu:4")
    assert torch.npu.memory_allocated(4) == 4 << 20
    if hasattr(torch.accelerator, "memory_allocated"):  # PyTorch 2.9
        assert torch.accelerator.memory_allocated(4) == 4 << 20
    assert torch.npu.mem_get_info(4) == ((64 << 30) - (4 << 20), 64 << 30)
    del block
    assert torch.npu.memory_allocated(4) == 0 and torch.npu.max_memory_allocated(4) == 4 << 20
    with pytest.raises(torch.OutOfMemoryError, match="NPU out of memory"):
        torch.empty(65 << 30, dtype=torch.uint8, device="npu:4")


def test_no_leak():
    """Training steps leave no memory behind, and neither does a dropped model."""
    gc.collect()
    before, sizes = torch.npu.memory_allocated(), set()
    for steps in (2, 12):
        trained = train("npu", steps, sgd)
        sizes.add(torch.npu.memory_allocated())
    assert len(sizes) == 1 and sizes.pop() > before
    del trained
    gc.collect()
    assert torch.npu.memory_allocated() == before


def test_streams_and_events():
    """The stream and event calls of a training loop work."""
    stream = torch.npu.Stream()
    with torch.npu.stream(stream):
        assert torch.npu.current_stream() == stream
        torch.ones(3, device="npu").record_stream(stream)
    torch.npu.current_stream().wait_stream(stream)
    start, end = torch.npu.Event(enable_timing=True), torch.npu.Event(enable_timing=True)
    start.record()
    end.record()
    torch.npu.synchronize()
    assert start.elapsed_time(end) >= 0
    with pytest.raises(RuntimeError, match="enable_timing"):
        torch.npu.Event().elapsed_time(end)


def test_options():
    """Compiler options take the values that the device takes."""
    torch.npu.set_compile_mode(jit_compile=False)
    assert torch.npu.is_jit_compile_false()
    torch.npu.config.allow_internal_format = False
    assert not hasattr(torch.npu.config, "allow_internal_format")  # it can be set, not read
    torch.npu.conv.allow_hf32 = torch.npu.matmul.allow_hf32 = False
    torch.npu.set_option({"ACL_PRECISION_MODE": "must_keep_origin_dtype"})
    with pytest.raises(ValueError, match="ACL_PRECISION_MODE"):
        torch.npu.set_option({"ACL_PRECISION_MODE": "fp64"})


def test_what_is_not_simulated():
    """Names that the simulator lacks are absent to hasattr, and the error says why; transfer_to_npu is refused."""
    assert not hasattr(torch_npu, "npu_rms_norm")
    with pytest.raises(AttributeError, match="not simulated"):
        torch.npu.NPUGraph
    with pytest.raises(ImportError, match="not simulated by default.*NPU_SIM_TRANSFER=1"):
        importlib.import_module("torch_npu.contrib.transfer_to_npu")


@pytest.mark.parametrize("variables, saturates", [
    ({}, False), ({"NPU_SIM_OVERFLOW": "saturate"}, True), ({"INF_NAN_MODE_FORCE_DISABLE": "1"}, True),
    ({"NPU_SIM_OVERFLOW": "saturate", "INF_NAN_MODE_ENABLE": "0"}, True), ({"INF_NAN_MODE_ENABLE": "1"}, False)])
def test_modes_of_fp16(monkeypatch, variables, saturates):
    """The switches of the saturating mode: the simulator's, and the device's own."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert _settings.saturates() is saturates


@pytest.mark.parametrize("variable, value, read, message", [
    ("INF_NAN_MODE_ENABLE", "0", _settings.saturates, "please export INF_NAN_MODE_FORCE_DISABLE=1"),
    ("NPU_SIM_OVERFLOW", "wrap", _settings.saturates, "NPU_SIM_OVERFLOW must be inf_nan or saturate, not 'wrap'"),
    ("HCCL_EXEC_TIMEOUT", "soon", lambda: _settings.execution_timeout(None), "HCCL_EXEC_TIMEOUT must be a whole number"),
    ("", "fire@step=1", _faults.read, "'fire@step=1' is none of hang, oom, collective_timeout, overflow"),
    ("", "oom@rank=1", _faults.read, "'oom@rank=1' must be like oom@step=3 or oom@step=3,rank=1"),
    ("", "oom@step=x", _faults.read, "must be like"), ("", "oom", _faults.read, "must be like"),
    ("", "speed<=3", _report.read_limits, "'speed<=3' must be a figure"),
    ("", "steps=3", _report.read_limits, "must be a figure, <= or"),
    ("", "steps<=many", _report.read_limits, "and a number"), ("", "steps<=e", _report.read_limits, "and a number")])
def test_mistakes_in_settings(monkeypatch, variable, value, read, message):
    """A value that means nothing is named, with what is right."""
    with pytest.raises(ValueError, match=re.escape(message)):
        if variable:
            monkeypatch.setenv(variable, value)
            read()
        else:
            read(value)


def test_faults_that_are_asked_for():
    """Several faults, with and without a rank."""
    assert _faults.read("oom@step=5; hang@step=3,rank=1;") == [("oom", 5, None), ("hang", 3, 1)] and _faults.read("") == []


def test_overflow():
    """fp16 has infinities by default, and no flag."""
    utils, big = torch.npu.utils, torch.full((2,), 60000.0, dtype=torch.float16, device="npu")
    assert utils.is_support_inf_nan() and utils.npu_check_overflow(big + big) and not utils.npu_check_overflow(big)
    assert torch_npu.npu_get_float_status(torch_npu.npu_alloc_float_status(big)).tolist() == [0] * 8
    with pytest.raises(RuntimeError, match="Unsupported api when soc_version >= Ascend910B1, please use npu_check_overflow"):
        torch.npu.get_npu_overflow_flag()
    with pytest.warns(UserWarning, match="clear_npu_overflow_flag is useless"):
        torch.npu.clear_npu_overflow_flag()


def draws():
    ones = torch.ones(30, device="npu")
    return torch.cat([torch.randn(5, device="npu"), torch.rand(3, device="npu"), torch.bernoulli(ones / 2),
                      torch.nn.functional.dropout(ones, 0.5), torch.randperm(9, device="npu").float(),
                      torch.empty(4, device="npu").normal_(), torch.multinomial(ones, 2).float()])


@pytest.mark.parametrize("seed", [torch.manual_seed, torch.npu.manual_seed, torch.npu.manual_seed_all])
def test_seeds(seed):
    """Each way of seeding governs every draw on the device."""
    seed(7)
    first, second = draws(), draws()
    seed(7)
    assert torch.equal(first, draws()) and not torch.equal(first, second)


def test_random_state():
    """A saved state brings the same numbers back; NPU draws do not move the CPU's stream."""
    state, states = torch.npu.get_rng_state(), torch.npu.get_rng_state_all()
    first = draws()
    torch.npu.set_rng_state(state)
    assert torch.equal(first, draws()) and len(states) == 8
    torch.npu.set_rng_state_all(states)
    assert torch.equal(first, draws())
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    draws()
    assert torch.equal(expected, torch.randn(4))


def test_generators():
    """A generator belongs to the device it draws for."""
    generator = torch.Generator(device="npu")
    first = torch.randn(4, device="npu", generator=generator.manual_seed(5))
    assert torch.equal(first, torch.randn(4, device="npu", generator=generator.manual_seed(5)))
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(4, device="npu", generator=torch.Generator())


def test_operator_counts():
    """What ran on the device can be asked for, so that a test can tell a training there from one that was not."""
    count = torch_npu._C._sim_op_counts().get("aten::convolution", 0)
    train("npu", 1)
    assert torch_npu._C._sim_op_counts()["aten::convolution"] == count + 7


def test_environment():
    """The launcher has put this process into strict mode."""
    assert os.environ["NPU_SIM_STRICT"] == "error"

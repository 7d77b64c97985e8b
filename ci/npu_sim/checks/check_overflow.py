"""fp16 in the saturating mode of the first 910 (NPU_SIM_OVERFLOW=saturate), with RANK on two ranks."""

import datetime
import functools
import os

import pytest
import torch
import torch.distributed as dist
import torch_npu
from nets import sgd

RANK = int(os.environ["RANK"])
utils = torch.npu.utils
PytorchsScaler = functools.partial(torch.amp.GradScaler, "npu")


@pytest.fixture(scope="module", autouse=True)
def group():
    torch.npu.set_device(RANK)
    dist.init_process_group("hccl", init_method=os.environ["INIT_METHOD"], rank=RANK, world_size=int(os.environ["WORLD_SIZE"]),
                            timeout=datetime.timedelta(seconds=60))
    yield
    dist.destroy_process_group()


@pytest.fixture(autouse=True)
def clear_flag():
    utils.clear_npu_overflow_flag()


def half(value):
    return torch.full((2,), value, dtype=torch.float16, device="npu")


def test_results_saturate():
    """Beyond 65504 there is no infinity, and NaN is 0: also in place, by a cast, in lists, and in a matrix product."""
    x = half(60000.0)
    assert (x + x).tolist() == (x * x).tolist() == [65504, 65504] and (-x - x).tolist() == [-65504, -65504]
    assert (x.view(1, 2) @ x.view(2, 1)).item() == 65504 and torch.full((2,), 1e6, device="npu").half().tolist() == [65504, 65504]
    assert torch._foreach_mul([x, x], 2.0)[1].tolist() == [65504, 65504] and (half(0.0) / half(0.0)).tolist() == [0, 0]
    listed = [x.clone()]
    torch._foreach_mul_(listed, 2.0)
    assert x.mul_(2).tolist() == listed[0].tolist() == [65504, 65504]
    big = torch.full((2,), 3e38, device="npu")
    assert torch.isinf(big + big).all()  # float32 is not simulated so


def test_flag():
    """The flag says that something overflowed on this device since it was cleared, by each of the names that read it."""
    assert not utils.is_support_inf_nan() and not torch.npu.get_npu_overflow_flag() and not utils.npu_check_overflow(half(1.0))
    half(60000.0) + 6e4
    status = torch_npu.npu_alloc_float_status(half(1.0))
    assert torch.npu.get_npu_overflow_flag() and torch_npu.npu_get_float_status(status).tolist() == [1] + [0] * 7
    assert utils.npu_check_overflow(half(1.0)) and not utils.npu_check_overflow(half(1.0))  # which clears it
    half(60000.0) + 6e4
    torch_npu.npu_clear_float_status(status)
    assert not utils.get_npu_overflow_flag()


def training(scaler_class, value=60000.0 if RANK == 0 else 1e-4, evaluation=1.0):
    """One step of a weight whose gradient is `value` times the scale. Returns (did it step, the scale after it, its gradient)."""
    weight = torch.ones(2, device="npu", requires_grad=True)
    optimizer = sgd([weight])
    scaler = scaler_class(init_scale=2.0**14)
    half(60000.0) + evaluation  # before the step, without gradients
    loss = (weight.half() * half(value)).float().sum()
    scaler.scale(loss).backward()
    gradient = weight.grad.clone()
    scaler.step(optimizer)
    scaler.update()
    return weight[0].item() != 1, scaler.get_scale(), gradient


def test_gradients_do_not_show_it():
    """A check of the gradients for infinities finds nothing: that is why the flag must be asked."""
    _, _, gradient = training(torch.npu.amp.GradScaler)
    assert torch.isfinite(gradient).all()


def test_scaler_of_the_plug_in():
    """torch.npu.amp.GradScaler skips the step on both ranks, and halves the scale on both."""
    assert training(torch.npu.amp.GradScaler)[:2] == (False, 2.0**13)


def test_scaler_of_pytorch_misses_the_other_rank():
    """torch.amp.GradScaler asks the flag of its own device only: rank 1 steps where rank 0 does not, and they part."""
    assert training(PytorchsScaler)[:2] == ((False, 2.0**13) if RANK == 0 else (True, 2.0**14))


def test_scaler_of_pytorch_takes_an_earlier_overflow_for_its_own():
    """One overflow in an evaluation before the step: PyTorch's scaler skips a step that was good, the plug-in's does not."""
    assert training(PytorchsScaler, value=1e-4, evaluation=6e4)[0] is False
    utils.clear_npu_overflow_flag()
    assert training(torch.npu.amp.GradScaler, value=1e-4, evaluation=6e4)[0] is True

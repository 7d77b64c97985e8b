"""Operators: views and in-place writes, a wide sweep against the CPU, and what must be refused."""

import warnings

import pytest
import torch
import torch.nn.functional as F
import torch_npu  # noqa: F401  (registers torch.npu)
from torch import nn

NPU = "npu:0"


def test_views_share_memory():
    """Writes through views reach the tensor they view, and gradients flow through them."""
    x = torch.randn(4, 4, device=NPU, requires_grad=True)
    y = x * 2
    view = y[1:3, ::2]
    view.mul_(3)
    y.view(-1)[0].add_(1)
    y.t().contiguous().sum().backward()
    expected = torch.full((4, 4), 2.0)
    expected[1:3, ::2] = 6
    assert torch.equal(x.grad.cpu(), expected)
    parts = torch.zeros(6, device=NPU)
    parts.chunk(3)[1].add_(1)
    parts.split([2, 4])[1].mul_(2)
    assert parts.tolist() == [0, 0, 2, 2, 0, 0]


def test_outputs_are_resized():
    """An out= tensor that the kernel resizes gets its new memory and shape."""
    out = torch.empty(0, device=NPU)
    torch.add(torch.ones(3, device=NPU), 1, out=out)
    assert out.tolist() == [2, 2, 2]
    out = torch.ones(2, 2, device=NPU)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.cat([torch.ones(3, device=NPU), torch.zeros(1, device=NPU)], out=out)
    assert out.tolist() == [1, 1, 1, 0]


def test_hidden_writes():
    """Batch norm's running statistics, which its schema does not declare as written, are written."""
    bn = nn.BatchNorm2d(3).to(NPU)
    bn(torch.randn(4, 3, 5, 5, device=NPU) + 2)
    assert bn.running_mean.abs().min() > 0.1 and bn.num_batches_tracked.item() == 1


CASES = {
    "interpolate": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False),
    "max_pool": lambda x: F.max_pool2d(x, 2),
    "avg_pool": lambda x: F.avg_pool2d(x, 2),
    "pad": lambda x: F.pad(x, (1, 1, 1, 1), "reflect"),
    "group_norm": lambda x: F.group_norm(x, 2),
    "layer_norm": lambda x: F.layer_norm(x, (8, 8)),
    "grouped_conv": lambda x: F.conv2d(x, torch.ones(4, 1, 3, 3, device=x.device) / 9, padding=1, groups=4),
    "conv_transpose": lambda x: F.conv_transpose2d(x, torch.ones(4, 2, 2, 2, device=x.device)),
    "silu_sigmoid": lambda x: F.silu(x) * torch.sigmoid(x),
    "cross_entropy": lambda x: F.cross_entropy(x, torch.ones(2, 8, 8, dtype=torch.long, device=x.device), label_smoothing=0.1),
    "bce": lambda x: F.binary_cross_entropy_with_logits(x, torch.sigmoid(x)),
    "smooth_l1": lambda x: F.smooth_l1_loss(x, x * 2),
    "topk": lambda x: torch.topk(x.flatten(1), 5).values,
    "indexing": lambda x: x[torch.tensor([1, 0], device=x.device)][x[:, 0, 0, 0] > -9],
    "index_add": lambda x: x.index_add(0, torch.tensor([0, 0], device=x.device), x),
    "einsum": lambda x: torch.einsum("bchw,bdhw->bcd", x, x),
    "std_var": lambda x: torch.stack([x.std(), x.var()]),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "roll_flip": lambda x: x.roll(1, 0).flip(-1),
    "unfold": lambda x: F.unfold(x, 2),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "complex": lambda x: torch.fft.fft(x).abs(),
    "one_hot": lambda x: F.one_hot(x.argmax(1), 4).float() * x.mean(),
    "cumsum": lambda x: x.cumsum(1),
    "norm": lambda x: torch.linalg.vector_norm(x).unsqueeze(0),
}


@pytest.mark.parametrize("name", CASES)
def test_operator(name):
    """Values, gradients and strides are the CPU's; values may differ by rounding where PyTorch composes the operator."""
    results = []
    for device in ("cpu", NPU):
        torch.manual_seed(0)
        x = torch.randn(2, 4, 8, 8).to(device).requires_grad_(True)
        y = CASES[name](x)
        y.sum().backward()
        assert y.device == torch.device(device) and x.grad.device == torch.device(device)
        results.append((y.detach().cpu(), x.grad.cpu(), torch.tensor(y.stride())))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_recurrent():
    """LSTM and GRU, whose cells have no CPU kernel on this device type, match the CPU."""
    for kind in (nn.LSTM, nn.GRU):
        torch.manual_seed(0)
        layer, x = kind(3, 4, 2, batch_first=True), torch.randn(2, 5, 3)
        expected, _ = layer(x)
        got, _ = layer.to(NPU)(x.to(NPU))
        got.sum().backward()
        assert torch.allclose(expected, got.cpu(), atol=1e-6)


def test_values_leave_the_device():
    """Printing, tolist, item and truth values work; NumPy needs .cpu() first."""
    x = torch.arange(3.0, device=NPU)
    assert x.tolist() == [0, 1, 2] and x[2].item() == 2 and bool((x == x).all()) and "npu:0" in repr(x)
    with pytest.raises(TypeError, match="npu"):
        x.numpy()


x23, cpu23 = (lambda: torch.ones(2, 3, device=NPU)), (lambda: torch.ones(2, 3))
MIXED = {
    "add": lambda: x23() + cpu23(),
    "add_": lambda: cpu23().add_(x23()),
    "matmul": lambda: x23() @ torch.ones(3, 2),
    "linear": lambda: nn.Linear(3, 3).to(NPU)(cpu23()),
    "model_on_cpu": lambda: nn.Linear(3, 3)(x23()),
    "labels": lambda: F.cross_entropy(x23(), torch.tensor([0, 1])),
    "cat": lambda: torch.cat([x23(), cpu23()]),
    "stack": lambda: torch.stack([x23(), cpu23()]),
    "conv": lambda: F.conv2d(torch.ones(1, 1, 3, 3, device=NPU), torch.ones(1, 1, 2, 2)),
    "batch_norm": lambda: nn.BatchNorm2d(1)(torch.ones(1, 1, 3, 3, device=NPU)),
    "layer_norm": lambda: nn.LayerNorm(3)(x23()),
    "embedding": lambda: F.embedding(torch.tensor([0]), torch.ones(2, 2, device=NPU)),
    "where": lambda: torch.where(x23() > 0, x23(), cpu23()),
    "masked_fill": lambda: x23().masked_fill(cpu23().bool(), 0.0),
    "mse": lambda: F.mse_loss(x23(), cpu23()),
    "scatter": lambda: x23().scatter_(1, torch.zeros(2, 1, dtype=torch.long), 1.0),
    "gather": lambda: x23().gather(1, torch.zeros(2, 1, dtype=torch.long)),
    "index_select": lambda: x23().index_select(0, torch.tensor([0])),
    "out": lambda: torch.add(cpu23(), cpu23(), out=x23()),
    "foreach": lambda: torch._foreach_add_([x23(), x23()], [cpu23(), cpu23()]),
    "two_npus": lambda: x23() + torch.ones(2, 3, device="npu:1"),
    "mask": lambda: cpu23()[x23() > 0],
}


@pytest.mark.parametrize("name", MIXED)
def test_mixed_devices(name):
    """Tensors of two devices in one operator are an error that names the devices."""
    with pytest.raises(RuntimeError, match="same device|on the same device|device \\(cpu\\)"):
        MIXED[name]()


def test_allowed_mixing():
    """What PyTorch allows on any device stays allowed: CPU scalars, CPU indices, and copies."""
    x = x23()
    assert (x + torch.tensor(1.0)).is_npu and x[torch.tensor([0, 1])].is_npu
    x[0] = torch.zeros(3)
    x.copy_(cpu23() * 5)
    assert x.cpu().sum() == 30 and cpu23().copy_(x).sum() == 30


def test_optimizer_state_left_on_the_cpu():
    """A model that moves after the first step leaves its momentum behind: the next step fails."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    model.to(NPU)(torch.ones(1, 2, device=NPU)).sum().backward()
    with pytest.raises(RuntimeError, match="same device"):
        optimizer.step()


def test_double_becomes_float():
    """Casting to float64 on the device gives float32 and says so once, in torch_npu's words."""
    x = x23()
    assert x.double().dtype == torch.float32 and x.to(torch.float64).dtype == torch.float32
    assert x.cpu().double().dtype == torch.float64 and x.to("cpu", torch.float64).dtype == torch.float64


@pytest.mark.parametrize("use", [
    lambda x: x @ x, lambda x: F.conv2d(x.view(1, 1, 4, 4), x.view(1, 1, 4, 4)[..., :2, :2]), lambda x: F.linear(x, x)])
def test_double_on_the_matrix_unit(use):
    """float64 that was moved to the device is refused by convolution and matrix products."""
    with pytest.raises(RuntimeError, match="float64"):
        use(torch.ones(4, 4, dtype=torch.float64).to(NPU))


@pytest.mark.parametrize("use", [
    lambda: torch.ones(2).cuda(), lambda: nn.Linear(2, 2).cuda(), lambda: torch.zeros(2, device="cuda"),
    lambda: x23().cuda(), lambda: x23().to("cuda:0"), lambda: torch.cuda.synchronize(), lambda: torch.cuda.set_device(0)])
def test_cuda_is_refused(use):
    """CUDA calls fail."""
    with pytest.raises((AssertionError, RuntimeError, AttributeError), match="CUDA|_cuda_"):
        use()


@pytest.mark.parametrize("use", [
    lambda: torch.cuda.is_available(), lambda: torch.cuda.device_count(), lambda: torch.cuda.manual_seed(0),
    lambda: torch.cuda.manual_seed_all(0), lambda: torch.cuda.empty_cache(), lambda: torch.cuda.max_memory_allocated(),
    lambda: torch.cuda.memory_allocated(), lambda: torch.cuda.get_rng_state_all(), lambda: torch.cuda.device(0),
    lambda: torch.cuda.is_initialized()])
def test_silent_cuda_is_refused(use):
    """CUDA calls that would do nothing raise in strict mode, and name the place."""
    with pytest.raises(RuntimeError, match=r"torch\.cuda\..*strict; called at .*check_operators\.py:\d+"):
        use()


@pytest.mark.parametrize("use", [
    lambda: torch.autocast("cuda"), lambda: torch.cuda.amp.autocast(), lambda: torch.amp.autocast(device_type="cuda"),
    lambda: torch.amp.GradScaler(), lambda: torch.amp.GradScaler("cuda"), lambda: torch.cuda.amp.GradScaler()])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_cuda_amp_is_refused(use):
    """CUDA's autocast and GradScaler, which would train in fp32 without a word, raise in strict mode."""
    with pytest.raises(RuntimeError, match=r"has no effect on an NPU.*check_operators\.py:\d+"):
        use()


def test_disabled_cuda_amp_passes():
    """Portable code may hold a disabled one."""
    torch.amp.GradScaler("cuda", enabled=False)
    with torch.autocast("cuda", enabled=False):
        pass


def test_cpu_autocast_is_refused():
    """autocast("cpu") around an NPU operator has no effect: strict mode says so."""
    with torch.autocast("cpu"), pytest.raises(RuntimeError, match="autocast is enabled for 'cpu'"):
        nn.Linear(3, 3).to(NPU)(x23())


def test_sparse_is_refused():
    """Sparse tensors are not simulated, and say so rather than give a wrong answer."""
    with pytest.raises((NotImplementedError, RuntimeError)):
        nn.Embedding(5, 3, sparse=True).to(NPU)(torch.tensor([1], device=NPU)).sum().backward()

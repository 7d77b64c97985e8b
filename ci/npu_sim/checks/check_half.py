"""fp16 and bf16: computed in float32 where the CPU's own kernels are slow, rounded once, and otherwise as on any device."""

import pytest
import torch
import torch.nn.functional as F
import torch_npu  # noqa: F401  (registers torch.npu)
from torch import nn

NPU = "npu:0"
HALVES = pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])


def image(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, W, G, A, B = image(2, 4, 8, 8), image(8, 4, 3, 3, seed=1), image(2, 8, 8, 8, seed=2), image(5, 300), image(300, 6, seed=1)
POSITIVE, PROBABLE, BATCH = X.abs() + 0.1, torch.sigmoid(X) * 0.9 + 0.05, image(3, 5, 5)
conv_gradients = torch.ops.aten.convolution_backward.default
OPERATORS = {  # the operator and its tensors
    "convolution": (lambda x, w: F.conv2d(x, w, padding=1), X, W),
    "convolution with a bias": (lambda x, w, b: F.conv2d(x, w, b, 2), X, W, W[:, 0, 0, 0]),
    "grouped convolution": (lambda x, w: F.conv2d(x, w, groups=2), X, W[:, :2]),
    "transposed convolution": (lambda x, w: F.conv_transpose2d(x, w), X, W.transpose(0, 1)),
    "channels_last": (lambda x, w: F.conv2d(x.cpu().contiguous(memory_format=torch.channels_last).to(x.device), w), X, W),
    "gradients of a convolution": (
        lambda g, x, w: conv_gradients(g, x, w, [0], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False])[:2], G, X, W),
    "mm": (torch.mm, A, B),
    "mm of a transposed tensor": (lambda a: a.t() @ a, A),
    "mm of an expanded tensor": (lambda a, b: a[:1].expand(4, -1) @ b, A, B),
    "addmm": (torch.addmm, B[0], A, B),
    "linear": (F.linear, A, A[:3], A[0, :3]),
    "bmm": (torch.bmm, BATCH, BATCH),
    "baddbmm": (lambda x: torch.baddbmm(x, x, x, beta=0.5, alpha=2), BATCH),
    "mv": (torch.mv, A, B[:, 0]),
    "dot": (torch.dot, A[0], A[1]),
    "vector_norm": (torch.linalg.vector_norm, X),
    "var_mean": (lambda x: torch.var_mean(x, (0, 2, 3)), X),
    "std": (torch.std, X),
    "tanh": (torch.tanh, X),
    "pow": (lambda x: x.pow(1.7), POSITIVE),
    "square": (torch.square, X),
    "log": (torch.log, POSITIVE),
    "gelu": (F.gelu, X),
    "binary_cross_entropy": (F.binary_cross_entropy, PROBABLE, PROBABLE.flip(0)),
    "foreach pow": (lambda x, a: torch._foreach_pow([x, a], 2.0), X, A),
}


def results(operator, tensors):
    found = operator(*tensors)
    return [found] if isinstance(found, torch.Tensor) else list(found)


@HALVES
@pytest.mark.parametrize("name", OPERATORS)
def test_one_rounding(name, half):
    """Results are float32's, rounded once, to the bit, and contiguous."""
    operator, *tensors = OPERATORS[name]
    tensors = [t.to(half) for t in tensors]
    got = results(operator, [t.to(NPU) for t in tensors])
    expected = results(operator, [t.float() for t in tensors])
    for ours, exact in zip(got, expected):
        assert ours.is_npu and ours.dtype == half and ours.is_contiguous()
        assert torch.equal(ours.cpu(), exact.to(half))


def test_overflow():
    """A result beyond the largest half becomes infinite, of its sign; half way to the next value is beyond. Sums that pass
    it on the way do not."""
    row = torch.tensor([[256.0, 1.0, 1.0]], device=NPU, dtype=torch.float16)
    for last, expected in ((-32, 65504), (-17, 65504), (-16, float("inf")), (0, float("inf"))):
        column = torch.tensor([[256.0], [float(last)], [0.0]], device=NPU, dtype=torch.float16)
        assert (row @ column).item() == expected and (-row @ column).item() == -expected
    assert F.conv2d(row.view(1, 3, 1, 1), row.view(1, 3, 1, 1)).isinf().all() and row.pow(2)[0, 0].isinf()
    ones = torch.ones(3, dtype=torch.float16, device=NPU)
    assert torch.dot(ones * 60000, ones * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float16, device=NPU)) == 60000
    assert torch.full((2,), 3e38, dtype=torch.bfloat16, device=NPU).pow(2).isinf().all()


def test_in_place_on_a_view():
    """In-place forms write the view's elements and no others, and return the tensor itself."""
    cube = lambda t: torch._foreach_pow_([t], 3.0)  # noqa: E731
    for change in (torch.Tensor.tanh_, torch.Tensor.square_, cube, lambda t: t.addmm_(t, t.t() @ t)):
        expected = image(6, 6).half()
        base = expected.to(NPU)
        view = base[1:4, 0:6:2]
        change(view)
        expected[1:4, 0:6:2] = view.cpu()
        assert torch.equal(base.cpu(), expected) and not torch.equal(base.cpu(), image(6, 6).half())
    t = torch.ones(2, dtype=torch.float16, device=NPU)
    assert t.tanh_() is t


def test_out():
    """out= writes where it is told: into a view, into an input, or into a tensor that it resizes."""
    a = image(3, 3).half().to(NPU)
    expected = (a.float() @ a.float()).half()
    base = torch.zeros(3, 6, dtype=torch.float16, device=NPU)
    torch.mm(a, a, out=base[:, ::2])
    assert torch.equal(base[:, ::2], expected) and base[:, 1::2].abs().sum() == 0
    small = torch.empty(0, dtype=torch.float16, device=NPU)
    assert torch.mm(a, a, out=small) is small and torch.equal(small, expected)
    norm = torch.empty(0, dtype=torch.float16, device=NPU)
    torch.std(a, 1, out=norm)
    assert torch.equal(norm, a.float().std(1).half())
    torch.tanh(a, out=a)
    assert a.abs().max() < 1


@pytest.mark.parametrize("use", [
    lambda t: torch.mm(t, t, out=t[:1].expand(3, 3)), lambda t: torch.tanh(t.view(-1)[:4], out=t.view(-1)[1:5]),
    lambda t: t.new_zeros(1, 3).expand(3, 3).square_()])
def test_overlaps_are_refused(use):
    """Writing where elements share memory, or over a part of an input, is refused as on the CPU."""
    for device in ("cpu", NPU):
        with pytest.raises(RuntimeError, match="unsupported operation"):
            use(torch.ones(3, 3, dtype=torch.float16, device=device))


@pytest.mark.parametrize("use", [
    lambda h, f: h @ f, lambda h, f: torch.bmm(h[None], f[None]), lambda h, f: torch.addmm(f, h, h), lambda h, f: F.linear(h, f),
    lambda h, f: torch.dot(h[0], f[0]), lambda h, f: F.conv2d(h.view(1, 1, 3, 3), f.view(1, 1, 3, 3)),
    lambda h, f: F.conv2d(h.view(1, 1, 3, 3), h.view(1, 1, 3, 3), f[0, :1]), lambda h, f: torch.mm(h, h, out=f),
    lambda h, f: h @ h.int(), lambda h, f: h @ h.bfloat16()])
def test_mixed_dtypes(use):
    """A half tensor beside one of another dtype is refused with the words of the CPU."""
    messages = []
    for device in ("cpu", NPU):
        with pytest.raises(RuntimeError) as error:
            use(torch.ones(3, 3, dtype=torch.float16, device=device), torch.ones(3, 3, device=device))
        messages.append(str(error.value).replace("PrivateUse1", "CPU").replace("npu", "cpu"))
    assert messages[0] == messages[1]


def test_a_dtype_for_the_result():
    """A float32 result of half tensors is not rounded on the way."""
    x = torch.full((1000,), 300.0, dtype=torch.float16, device=NPU)
    assert torch.linalg.vector_norm(x, dtype=torch.float32).item() == pytest.approx(300 * 1000 ** 0.5, rel=1e-6)


@HALVES
def test_hidden_writes_in_half(half):
    """Batch norm in half writes its running statistics, whichever dtype they have."""
    for statistics in (torch.float32, half):
        bn, same = (nn.BatchNorm2d(4).to(statistics) for _ in range(2))
        bn.to(NPU)(X.to(half).to(NPU) + 2)
        same(X.to(half) + 2)
        assert torch.equal(bn.running_mean.cpu(), same.running_mean) and bn.running_var.dtype == statistics
        assert same.running_mean.abs().min() > 0.1

"""Names of the real package beyond devices and tensors: what they do here, and what is said of those that are not there."""

import importlib
import json

import pytest
import torch
import torch.nn.functional as F
import torch_npu
from nets import Net, largest_difference, train
from torch import nn

NPU = "npu:0"


@pytest.mark.parametrize("use, message", [
    (lambda: torch.npu.NPUGraph, "torch_npu 2.13.0 has it, but it is not simulated"),
    (lambda: torch_npu.npu_rms_norm, "torch_npu 2.13.0 has it, but it is not simulated"),
    (lambda: torch_npu.optim.NpuFusedAdamP, "torch_npu 2.13.0 has it, but it is not simulated"),
    (lambda: torch_npu.profiler.dynamic_profile, "torch_npu 2.13.0 has it, but it is not simulated"),
    (lambda: torch_npu.distributed.reinit_process_group, "torch_npu 2.13.0 has it, but it is not simulated"),
    (lambda: torch.npu.set_devise, "2.13.0 has no such name, either; did you mean 'set_device'?"),
    (lambda: torch_npu.cudnn_version, "2.13.0 has no such name, either")])
def test_missing_names(use, message):
    """A name of the real package says that it is not simulated, any other that there is no such name."""
    with pytest.raises(AttributeError) as error:
        use()
    assert message in str(error.value)


@pytest.mark.parametrize("statement, message", [
    ("import torch_npu.dynamo", "has it, but it is not simulated"), ("from torch_npu import npu_rms_norm", "has it, but"),
    ("from torch.npu import set_devise", "did you mean 'set_device'"), ("import torch_npu.nothing", "has no such name, either")])
def test_missing_imports(statement, message):
    """Imports say the same, as ImportError: a script may have another way."""
    with pytest.raises(ImportError) as error:
        exec(statement)
    assert message in str(error.value)
    with pytest.raises(ImportError):
        importlib.import_module("no_such_module")


@pytest.mark.parametrize("name, dtype", [("Float", torch.float32), ("Half", torch.float16), ("BFloat16", torch.bfloat16),
                                         ("Long", torch.int64), ("Int", torch.int32), ("Bool", torch.bool), ("Byte", torch.uint8)])
def test_tensor_types(name, dtype):
    """torch.npu.FloatTensor and kin make tensors, and are types to isinstance and tensor.type()."""
    kind = getattr(torch.npu, name + "Tensor")
    x = kind([1, 0])
    assert x.tolist() == [1, 0] and x.dtype == dtype and x.is_npu and kind(2, 3).shape == (2, 3) and kind().shape == (0,)
    assert isinstance(x, kind) and not isinstance(x.cpu(), kind) and not isinstance(x.to(torch.int16), kind)
    assert x.type() == "torch.npu.%sTensor" % name and torch.ones(2, device=NPU).type(kind).dtype == dtype


def test_formats():
    """Private formats can be asked for by name or number, and change nothing; what is no format is refused."""
    x = torch.randn(1, 16, 4, 4, device=NPU)
    assert torch_npu.get_npu_format(x) == torch_npu.Format.NCHW == 0 and str(torch_npu.get_npu_format(x[0])) == "ND"
    for acl_format in (29, torch_npu.Format.FRACTAL_NZ, x[0]):
        assert torch.equal(torch_npu.npu_format_cast(x, acl_format), x)
    with pytest.raises(ValueError, match="1234"):
        torch_npu.npu_format_cast(x, 1234)
    with pytest.raises(RuntimeError, match="Expected NPU tensor"):
        torch_npu.get_npu_format(x.cpu())


def layout(t, name):
    """(B, N, S, D) in another layout."""
    b, n, s, d = t.shape
    return {"BNSD": t, "BSND": t.transpose(1, 2), "BSH": t.transpose(1, 2).reshape(b, s, n * d),
            "SBH": t.permute(2, 0, 1, 3).reshape(s, b, n * d)}[name]


@pytest.mark.parametrize("name", ["BNSD", "BSND", "BSH", "SBH"])
@pytest.mark.parametrize("mask", [None, "full", "causal", "lower right"])
def test_fusion_attention(name, mask):
    """npu_fusion_attention is PyTorch's attention in each layout: values and gradients, with masks and grouped heads."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    hidden, options = None, {}
    if mask == "full":
        hidden = torch.rand(5, 7) > 0.7
        options = {"atten_mask": hidden.to(NPU)}
    elif mask:
        hidden = torch.ones(5, 7).triu(1 if mask == "causal" else 3).bool()
        options = {"atten_mask": torch.ones(2048, 2048, device=NPU).triu(1).bool(), "sparse_mode": 2 if mask == "causal" else 3}
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    expected = F.scaled_dot_product_attention(*leaves, attn_mask=None if hidden is None else ~hidden, scale=0.3, enable_gqa=True)
    expected.square().sum().backward()
    mine = [t.to(NPU).requires_grad_() for t in (q, k, v)]
    out, top, total, *rest = torch_npu.npu_fusion_attention(*(layout(t, name) for t in mine), 4, name, scale=0.3, **options)
    out.square().sum().backward()
    torch.testing.assert_close(out.detach().cpu(), layout(expected.detach(), name), rtol=1e-4, atol=1e-5)
    for a, b in zip(mine, leaves):
        torch.testing.assert_close(a.grad.cpu(), b.grad, rtol=1e-4, atol=1e-4)
    assert top.shape == total.shape == (2, 4, 5, 8) and rest[0].numel() == 0 and rest[1:] == [0, 0, 0]


def test_fusion_attention_in_half():
    """The result has the dtype of the query; dropout drops; what is not simulated is refused."""
    q = torch.randn(1, 2, 64, 8, device=NPU, dtype=torch.bfloat16)
    plain, dropped = (torch_npu.npu_fusion_attention(q, q, q, 2, "BNSD", keep_prob=keep)[0] for keep in (1.0, 0.5))
    assert plain.dtype == torch.bfloat16 and not torch.equal(plain, dropped)
    for options in ({"input_layout": "TND"}, {"sparse_mode": 4}, {"prefix": [1]}):
        with pytest.raises(NotImplementedError, match="npu_fusion_attention: simulated are"):
            torch_npu.npu_fusion_attention(q, q, q, 2, **dict({"input_layout": "BNSD"}, **options))


OPTIMIZERS = {
    "SGD": (torch_npu.optim.NpuFusedSGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2, "nesterov": True}),
    "Adam": (torch_npu.optim.NpuFusedAdam, torch.optim.Adam, {"lr": 1e-2, "weight_decay": 1e-2, "amsgrad": True}),
    "AdamW": (torch_npu.optim.NpuFusedAdamW, torch.optim.AdamW, {"lr": 1e-2}),
    "Adadelta": (torch_npu.optim.NpuFusedAdadelta, torch.optim.Adadelta, {"lr": 0.5, "weight_decay": 1e-2}),
    "RMSprop": (torch_npu.optim.NpuFusedRMSprop, torch.optim.RMSprop, {"lr": 1e-2, "momentum": 0.9, "centered": True}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fused_optimizers(name):
    """The fused optimizers take the steps of PyTorch's, over zeroed gradients, and restore their state."""
    fused, plain, options = OPTIMIZERS[name]
    one, optimizer, _ = train(NPU, make_optimizer=lambda p: fused(p, **options))
    other, reference, _ = train("cpu", make_optimizer=lambda p: plain(p, **options))
    assert largest_difference(one, other) < 1e-5
    twin = fused(Net().to(NPU).parameters(), **dict(options, lr=5.0))
    twin.load_state_dict(optimizer.state_dict())
    assert twin.param_groups[0]["lr"] == options["lr"] and len(twin.state) == len(reference.state)


def test_tensorflow_rmsprop():
    """One step of NpuFusedRMSpropTF, and the second, by hand."""
    p = nn.Parameter(torch.tensor([1.0], device=NPU))
    optimizer = torch_npu.optim.NpuFusedRMSpropTF([p], lr=0.1, alpha=0.9, eps=0.5, momentum=0.5)
    expected, average, momentum = 1.0, 1.0, 0.0
    for _ in range(2):
        optimizer.zero_grad()
        (3 * p).sum().backward()
        optimizer.step()
        average += 0.1 * (9.0 - average)
        momentum = 0.5 * momentum + 0.1 * 3 / (average + 0.5) ** 0.5
        expected -= momentum
        assert p.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"adam": True}, {"use_global_grad_norm": True}], ids=str)
def test_lamb(options):
    """The first step of NpuFusedLamb: as long as the weight times the rate, or Adam's without bias correction."""
    p = nn.Parameter(torch.tensor([3.0, 4.0], device=NPU))
    optimizer = torch_npu.optim.NpuFusedLamb([p], lr=0.1, **options)
    (p * torch.tensor([3.0, 4.0], device=NPU)).sum().backward()
    optimizer.step()
    moved = torch.tensor([3.0, 4.0]) - p.detach().cpu()
    expected = 0.1 * 0.1 / 0.001 ** 0.5 * torch.ones(2)  # the gradient over its size, for each weight
    if "adam" not in options:
        expected = expected / expected.norm() * 0.1 * 5
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-6)


def test_rules_of_fused_optimizers():
    """What the device's fused optimizers refuse, or would do wrong without a word: gradients set to None, other dtypes."""
    model = nn.Linear(2, 2).to(NPU)
    optimizer = torch_npu.optim.NpuFusedSGD(model.parameters(), lr=0.1)
    x = torch.ones(1, 2, device=NPU)
    model(x).sum().backward()
    assert optimizer.clip_grad_norm_fused_(1e-3) > 1 and model.weight.grad.norm() < 1.1e-3
    optimizer.step()
    with pytest.raises(ValueError, match="set_to_none is not supported"):
        optimizer.zero_grad(set_to_none=True)
    optimizer.zero_grad()
    model(x).sum().backward()
    optimizer.step()
    model.zero_grad()
    model(x).sum().backward()
    with pytest.raises(RuntimeError, match=r"model\.zero_grad\(\) sets them to None"):
        optimizer.step()
    half = nn.Linear(2, 2).to(NPU, torch.bfloat16)
    half(x.bfloat16()).sum().backward()
    with pytest.raises(TypeError, match="either float32 or float16"):
        torch_npu.optim.NpuFusedAdam(half.parameters()).step()
    with pytest.raises(ValueError, match="lr"):
        torch_npu.optim.NpuFusedSGD(model.parameters())


def test_profiler(tmp_path):
    """The profiler records the operators of the active steps, and leaves its traces where the real one does."""
    config = torch_npu.profiler._ExperimentalConfig(profiler_level=torch_npu.profiler.ProfilerLevel.Level1)
    with torch_npu.profiler.profile(
            activities=list(torch_npu.profiler.ProfilerActivity), experimental_config=config,
            schedule=torch_npu.profiler.schedule(wait=1, warmup=1, active=2, repeat=1), record_shapes=True,
            on_trace_ready=torch_npu.profiler.tensorboard_trace_handler(str(tmp_path), worker_name="me")) as prof:
        for _ in range(6):
            torch.ones(4, 4, device=NPU).mm(torch.ones(4, 4, device=NPU))
            prof.step()
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("me_") and folder.name.endswith("_ascend_pt")
    with open(folder / "ASCEND_PROFILER_OUTPUT" / "trace_view.json") as handle:
        names = [event.get("name") for event in json.load(handle)["traceEvents"]]
    assert names.count("aten::mm") == 2 and not hasattr(prof, "key_averages")
    with torch_npu.profiler.profile() as plain:
        torch.ones(2, device=NPU) + 1
    plain.export_chrome_trace(str(tmp_path / "trace.json"))
    assert "aten::add" in (tmp_path / "trace.json").read_text()
    with pytest.raises(TypeError, match="own ProfilerActivity"):
        torch_npu.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    with pytest.raises(ValueError, match="no level 7"):
        torch_npu.profiler._ExperimentalConfig(profiler_level=7)


def test_memory_stats():
    """The allocator's figures by pool: blocks and bytes, now, at most, ever taken and given back; and failures."""
    device = 6
    small, large = torch.empty(100, dtype=torch.uint8, device="npu:6"), torch.empty(1 << 20, dtype=torch.uint8, device="npu:6")
    torch.empty(50, dtype=torch.uint8, device="npu:6")
    stats = torch.npu.memory_stats(device)
    assert [stats["allocated_bytes.small_pool." + key] for key in ("current", "peak", "allocated", "freed")] == [100, 150, 150, 50]
    assert [stats["allocation.all." + key] for key in ("current", "peak", "allocated", "freed")] == [2, 3, 3, 1]
    assert stats["reserved_bytes.large_pool.current"] == stats["active_bytes.large_pool.peak"] == 1 << 20
    assert stats["inactive_split.all.current"] == stats["oversize_allocations.freed"] == stats["num_alloc_retries"] == 0
    assert list(stats) == sorted(stats) and torch.npu.memory_stats_as_nested_dict(device)["segment"]["all"]["current"] == 2
    del small
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(1 << 40, dtype=torch.uint8, device="npu:6")
    torch.npu.reset_peak_memory_stats(device)
    torch.npu.reset_accumulated_memory_stats(device)
    stats = torch.npu.memory_stats(device)
    assert (stats["num_ooms"], stats["allocation.all.peak"], stats["allocation.all.allocated"]) == (1, 1, 0) and large.numel()
    assert torch.npu.max_memory_cached(device) == torch.npu.memory_cached(device) == 1 << 20


def test_small_names():
    """Streams have a handle, nothing is ever captured, groups take options, peers can reach each other."""
    assert isinstance(torch.npu.current_stream().npu_stream, int) and torch.npu.Stream().npu_stream != torch.npu.Stream().npu_stream
    assert torch.npu.is_current_stream_capturing() is False
    assert torch.npu.can_device_access_peer(0, 1) and not torch.npu.can_device_access_peer(1, 1)
    options = torch_npu._C._distributed_c10d.ProcessGroupHCCL.Options()
    options.hccl_config = {"hccl_buffer_size": 300}
    assert options.is_high_priority_stream is False and options.backend == "hccl"


def test_compile():
    """torch.compile is refused in one clear line; backends that compile nothing work."""
    model, x = nn.Linear(2, 2).to(NPU), torch.ones(1, 2, device=NPU)
    with pytest.raises(Exception, match="torch.compile with the backend 'inductor' is not simulated for NPUs"):
        torch.compile(model)(x)
    assert torch.equal(torch.compile(model, backend="aot_eager")(x), model(x))

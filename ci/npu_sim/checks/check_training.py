"""Training on one device: parity with the CPU, optimizers, mixed precision, modules and checkpoints."""

import copy
import io
import os
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
import torch_npu  # noqa: F401  (registers torch.npu)
from nets import Net, largest_difference, sgd, train
from torch import nn

NPU = "npu:0"


def test_parity():
    """fp32 training is bit-identical to the CPU's, batch statistics included."""
    assert largest_difference(train("cpu")[0], train(NPU)[0]) == 0


@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}, {"fused": True}])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_optimizers(optimizer, options):
    """The for-loop, foreach and fused forms of an optimizer match the CPU's."""
    cpu, npu = (train(device, make_optimizer=lambda p: optimizer(p, 1e-3, **options))[0] for device in ("cpu", NPU))
    assert largest_difference(cpu, npu) <= 1e-6


def test_rmsprop():
    """RMSprop with momentum, EfficientNet's optimizer, matches the CPU's."""
    cpu, npu = (train(d, make_optimizer=lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.9))[0] for d in ("cpu", NPU))
    assert largest_difference(cpu, npu) <= 1e-6


def test_evaluation():
    """Evaluation works without gradients and in inference mode."""
    model, x = train(NPU, 1)[0].eval(), torch.randn(2, 3, 16, 16, device=NPU)
    with torch.no_grad():
        a = model(x)
    with torch.inference_mode():
        b = model(x)
        b[0].mul_(1.0)
    assert torch.equal(a, b) and not a.requires_grad


def test_dropout_is_reproducible():
    """The same seed trains the same model, dropout included."""
    assert largest_difference(train(NPU, dropout=0.5)[0], train(NPU, dropout=0.5)[0]) == 0


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_autocast_dtypes(half):
    """Matrix products and convolutions run in half precision, softmax and losses in float32."""
    layer, x = nn.Linear(4, 4).to(NPU), torch.randn(2, 4, device=NPU)
    with torch.autocast("npu", dtype=half):
        y = layer(x)
        assert y.dtype == half and torch.npu.is_autocast_enabled()
        assert F.conv2d(x.view(1, 2, 2, 2), torch.ones(1, 2, 1, 1, device=NPU)).dtype == half
        assert F.softmax(y, -1).dtype == F.cross_entropy(y, torch.tensor([0, 1], device=NPU)).dtype == torch.float32
        with torch.autocast("npu", enabled=False):
            assert layer(x).dtype == torch.float32
    with torch.npu.amp.autocast():
        assert layer(x).dtype == torch.float16


@pytest.mark.parametrize("scaler", [torch.npu.amp.GradScaler, lambda **k: torch.amp.GradScaler("npu", **k)])
def test_mixed_precision_training(scaler):
    """fp16 autocast with either GradScaler trains to about the float32 weights, and its state can be restored."""
    grad_scaler = scaler(init_scale=1024.0)
    model, _, loss = train(NPU, amp=torch.float16, scaler=grad_scaler)
    reference, _, reference_loss = train(NPU)
    assert loss == pytest.approx(reference_loss, rel=1e-2) and 0 < largest_difference(model, reference) < 0.05
    restored = scaler(init_scale=2.0)
    restored.load_state_dict(grad_scaler.state_dict())
    assert restored.get_scale() == grad_scaler.get_scale()


def scaled_step(scaler, factor):
    parameter = nn.Parameter(torch.ones(3, device=NPU))
    optimizer = torch.optim.SGD([parameter], 0.1)
    scaler.scale((parameter * factor).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    return parameter


@pytest.mark.parametrize("scaler", [torch.npu.amp.GradScaler, lambda **k: torch.amp.GradScaler("npu", **k)])
def test_overflow_skips_the_step(scaler):
    """An infinite gradient leaves the weights alone and halves the scale."""
    grad_scaler = scaler(init_scale=1024.0)
    assert torch.equal(scaled_step(grad_scaler, float("inf")).cpu(), torch.ones(3)) and grad_scaler.get_scale() == 512


def test_static_loss_scale():
    """dynamic=False keeps the scale and takes every step."""
    scaler = torch.npu.amp.GradScaler(init_scale=8.0, growth_interval=1, dynamic=False)
    assert scaled_step(scaler, 2.0).tolist() == pytest.approx([0.8] * 3) and scaler.get_scale() == 8
    assert scaled_step(scaler, float("inf")).isinf().all() and scaler.state_dict()["dynamic"] is False


def test_npu_scaler_refuses_a_cpu_loss():
    """A loss that was computed on the CPU is refused."""
    with pytest.raises(ValueError, match="should be npu"):
        torch.npu.amp.GradScaler().scale(torch.ones(1))


def test_moving_a_module():
    """Parameters keep their identity when a module moves: optimizers built before and tied weights stay valid."""
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    weight, both = a.weight, nn.Sequential(a, b)
    both.to(NPU)
    assert a.weight is weight and b.weight is weight and weight.is_npu
    assert both.half().npu(1)[0].weight.device.index == 1 and not both.cpu()[0].weight.is_npu
    with torch.device("npu"):
        assert nn.Linear(2, 2).weight.is_npu


def test_copies_of_a_model():
    """Deep copies and moving averages stay on the device."""
    model = train(NPU, 1)[0]
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    twin = copy.deepcopy(model)
    assert largest_difference(model, twin) == 0 and next(twin.parameters()).is_npu and next(average.parameters()).is_npu
    next(twin.parameters()).data.add_(1)
    assert largest_difference(model, twin) >= 1


def test_activation_checkpointing():
    """torch.utils.checkpoint replays dropout with the device's generator."""
    layer, x = nn.Linear(3, 3).to(NPU), torch.randn(2, 3, device=NPU, requires_grad=True)
    for reentrant in (False, True):
        torch.utils.checkpoint.checkpoint(lambda t: F.dropout(layer(t), 0.5), x, use_reentrant=reentrant).sum().backward()
    assert x.grad.abs().sum() > 0


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return lambda **options: torch.load(io.BytesIO(buffer.getvalue()), **options)


def test_save_and_load():
    """Checkpoints load on the device, on another one and on the CPU, views and optimizer state included."""
    model, optimizer, _ = train("npu:1", 2)
    load = saved({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "view": torch.arange(6, device="npu:1")[2:4]})
    assert load(weights_only=True)["view"].device == torch.device("npu:1")
    assert load(map_location={"npu:1": "npu:2"})["view"].device == torch.device("npu:2")
    on_cpu = load(map_location="cpu", weights_only=True)
    assert on_cpu["view"].tolist() == [2, 3] and on_cpu["view"].device.type == "cpu"
    other = Net().to(NPU)
    other.load_state_dict(on_cpu["model"])
    assert largest_difference(model, other) == 0
    resumed = sgd(other.parameters())
    resumed.load_state_dict(load(map_location=torch.device(NPU))["optimizer"])
    assert next(iter(resumed.state.values()))["momentum_buffer"].device == torch.device(NPU)


def test_load_on_a_missing_device():
    """map_location to a device that does not exist, or to cuda, is refused."""
    load = saved(torch.ones(2))
    with pytest.raises(RuntimeError):
        load(map_location="npu:9")
    with pytest.raises(RuntimeError, match="CUDA"):
        load(map_location="cuda")


def test_checkpoint_without_the_plugin(tmp_path):
    """A file saved from the device loads on the CPU where there is no torch_npu."""
    path = tmp_path / "weights.pth"
    torch.save(train(NPU, 1)[0].state_dict(), path)
    code = "import sys, torch; print(torch.load(sys.argv[1], map_location='cpu')['head.1.bias'].device)"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code, path], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "cpu", done.stderr


def test_pickle():
    """Tensors and modules survive pickle, as objects that are gathered over ranks must."""
    layer = nn.Linear(2, 2).to("npu:1")
    twin = pickle.loads(pickle.dumps(layer))
    assert twin.weight.device == torch.device("npu:1") and torch.equal(twin.weight, layer.weight)

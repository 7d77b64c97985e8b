"""The stand-in for the vendor's apex (NPU_SIM_APEX=1): its levels train, scale, skip, add up, and resume."""

import apex
import pytest
import torch
from apex import amp
from nets import Net, largest_difference, sgd, train
from torch import nn

NPU = "npu:0"


@pytest.fixture(autouse=True)
def off():
    """The functions that O1 changes for good are as before, for the next check."""
    yield
    amp._patch_functions(False)


def amp_train(steps=4, make_optimizer=sgd, parts=1, **options):
    """nets.train() with apex.amp; returns (model, optimizer, last loss)."""
    torch.manual_seed(0)
    model = Net().to(NPU)
    images, labels = torch.randn(4, 3, 16, 16).to(NPU), torch.randint(0, 10, (4,)).to(NPU)
    optimizer, criterion = make_optimizer(model.parameters()), nn.CrossEntropyLoss(label_smoothing=0.1)
    model, optimizer = amp.initialize(model, optimizer, **options)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(parts):
            loss = criterion(model(images), labels) / parts
            with amp.scale_loss(loss, optimizer) as scaled:
                scaled.backward()
        optimizer.step()
        scheduler.step()
    return model, optimizer, loss.item() * parts


@pytest.mark.parametrize("level, scale, tolerance", [("O0", None, 0), ("O0", 1024, 0), ("O1", None, 0.05), ("O1", 128.0, 0.05),
                                                     ("O2", 128, 0.05), ("O2", "dynamic", 0.05), ("O3", None, 0.05)])
def test_levels(level, scale, tolerance):
    """Each level trains to about the fp32 weights, O0 to exactly them; checkpoints are in fp32."""
    model, optimizer, loss = amp_train(opt_level=level, loss_scale=scale)
    reference, _, expected = train(NPU)
    assert largest_difference(model, reference) <= tolerance and loss == pytest.approx(expected, rel=0.02)
    dtypes = {value.dtype for value in model.state_dict().values() if value.is_floating_point()}
    assert dtypes == {torch.float32} and (largest_difference(model, reference) > 0) == (level != "O0")


def test_what_is_in_half():
    """O1 computes in half precision with fp32 weights, losses in fp32; O2 has half weights, fp32 BatchNorm and masters."""
    model, _, _ = amp_train(1, opt_level="O1")
    x = torch.randn(2, 3, 16, 16, device=NPU)
    assert model(x).dtype == torch.float16 and model.stem[0].weight.dtype == torch.float32
    assert nn.functional.cross_entropy(model(x), torch.zeros(2, dtype=torch.int32, device=NPU)).dtype == torch.float32
    model, optimizer, _ = amp_train(1, opt_level="O2", loss_scale=128)
    assert model.stem[0].weight.dtype == torch.float16 and model.stem[1].weight.dtype == torch.float32
    assert {p.dtype for p in amp.master_params(optimizer)} == {torch.float32} and model(x).dtype == torch.float32
    master = next(iter(amp.master_params(optimizer)))
    assert torch.equal(master.half(), model.stem[0].weight) and not torch.equal(master, model.stem[0].weight.float())


@pytest.mark.parametrize("level", ["O0", "O1", "O2"])
def test_gradients_add_up(level):
    """Two halves of a loss give the gradients of the whole."""
    whole, halves = (dict(amp_train(2, parts=n, opt_level=level, loss_scale=64)[0].named_parameters()) for n in (1, 2))
    assert max((whole[name] - halves[name]).abs().max().item() for name in whole) < (1e-6 if level == "O0" else 5e-3)


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_overflow(level, capsys):
    """An infinite gradient skips one step and halves a dynamic scale; a static one takes the step."""
    model = nn.Linear(2, 2).to(NPU)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model, optimizer = amp.initialize(model, optimizer, opt_level=level, dynamic_init_scale=256.0, scale_window=2)
    before, x, scales = model.weight.detach().clone(), torch.ones(1, 2, device=NPU), []
    for factor in (float("inf"), 1.0, 1.0):
        optimizer.zero_grad()
        with amp.scale_loss((model(x).float() * factor).sum(), optimizer) as scaled:
            scaled.backward()
        optimizer.step()
        scales.append((amp.state_dict()["loss_scaler0"]["loss_scale"], torch.equal(model.weight, before)))
    assert scales == [(128.0, True), (128.0, False), (256.0, False)]
    assert "Gradient overflow.  Skipping step, loss scaler 0 reducing loss scale to 128.0" in capsys.readouterr().out
    amp.load_state_dict({"loss_scaler0": {"loss_scale": 4.0, "unskipped": 1}})
    assert amp.state_dict() == {"loss_scaler0": {"loss_scale": 4.0, "unskipped": 1}}


@pytest.mark.parametrize("level", ["O0", "O2"])
@pytest.mark.parametrize("fused, plain", [("NpuFusedSGD", "SGD"), ("NpuFusedAdam", "Adam"), ("NpuFusedAdamW", "AdamW")])
def test_fused_optimizers(fused, plain, level):
    """The fused optimizers train under amp, with combined gradients, as PyTorch's do."""
    both = [amp_train(make_optimizer=lambda p: maker(p, lr=1e-2), opt_level=level, loss_scale=128, **options)[0]
            for maker, options in ((getattr(apex.optimizers, fused), {"combine_grad": True}), (getattr(torch.optim, plain), {}))]
    assert largest_difference(*both) <= 1e-6


def test_delayed_unscaling():
    """Gradients stay scaled until the last part of an update."""
    model = nn.Linear(2, 2).to(NPU)
    model, optimizer = amp.initialize(model, torch.optim.SGD(model.parameters(), 0.1), opt_level="O0", loss_scale=8)
    seen = []
    for delay in (True, False):
        with amp.scale_loss(model(torch.ones(1, 2, device=NPU)).sum(), optimizer, delay_unscale=delay) as scaled:
            scaled.backward()
        seen.append(model.bias.grad.tolist())
    assert seen == [[8, 8], [2, 2]]


def test_disabled_and_wrong():
    """enabled=False changes nothing; a level that there is not, and what the stand-in lacks, are named."""
    model = amp.initialize(nn.Linear(2, 2).to(NPU), enabled=False, opt_level="O2")
    loss = model(torch.ones(1, 2, device=NPU)).sum()
    with amp.scale_loss(loss, None) as scaled:
        assert scaled is loss
    models, optimizers = amp.initialize([model], [sgd(model.parameters())], opt_level="O0")
    assert models == [model] and len(optimizers) == 1
    with pytest.raises(RuntimeError, match="Unexpected optimization level O4"):
        amp.initialize(model, opt_level="O4")
    for use in (lambda: apex.parallel, lambda: apex.optimizers.NpuFusedAdamP):
        with pytest.raises(AttributeError, match="stand-in"):
            use()

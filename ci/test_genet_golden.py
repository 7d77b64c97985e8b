"""GENet against the numbers of upstream's own code (ci/golden/GENet.json), and the rules of its network."""
import itertools
import json
import os

import pytest
import torch
import torch.nn.functional as F

from fill import fill_state_dict, make_input, make_target
from models import WideResNet

with open(os.path.join(os.path.dirname(__file__), "golden", "GENet.json")) as stream:
    GOLDEN = json.load(stream)
VARIANTS = GOLDEN["variants"]
ALL_OPTIONS = [dict(extent=extent, extra_params=extra_params, mlp=mlp)
               for extent, extra_params, mlp in itertools.product((0, 2, 4, 8), (False, True), (False, True))]
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=[variant["arch"] for variant in VARIANTS])
every_option = pytest.mark.parametrize("options", ALL_OPTIONS, ids=["e%(extent)d-params%(extra_params)d-mlp%(mlp)d" % o
                                                                    for o in ALL_OPTIONS])


def build(variant, **changes):
    options = {key: value for key, value in variant["options"].items() if key != "dataset"}
    return WideResNet(num_classes=variant["num_classes"], **dict(options, **changes))


def filled(model):
    model.load_state_dict(fill_state_dict(model.state_dict()))
    return model


def l2(tensors):
    return sum(float(tensor.detach().double().pow(2).sum()) for tensor in tensors) ** 0.5


# --- golden numbers ---------------------------------------------------------------------------------------------------

@each_variant
def test_keys_shapes_and_types(variant):
    """Upstream's checkpoints load without renaming: every key, its place, its shape and its type."""
    ours = [[key, list(tensor.shape), str(tensor.dtype).replace("torch.", "")]
            for key, tensor in build(variant).state_dict().items()]
    assert ours == variant["state_dict"]
    assert sum(parameter.numel() for parameter in build(variant).parameters()) == variant["num_parameters"]


@each_variant
def test_multiply_accumulates(variant):
    """The network computes as much as upstream's: no convolution at a wrong resolution."""
    model = build(variant).eval()
    counted = []

    def count(module, _, output):
        area = output[0, 0].numel() if output.dim() == 4 else 1
        counted.append(module.weight.numel() * area)

    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(make_input(1, 32, 32))
    assert sum(counted) == variant["flops"]


@each_variant
def test_eval_logits(variant):
    """The forward pass in evaluation, in float32 and strictly in float64, stage by stage."""
    model = filled(build(variant)).eval()
    norms = {}
    for name in variant["eval_stage_l2"]:
        getattr(model, name).register_forward_hook(lambda _, inputs, output, name=name: norms.update({name: l2([output])}))
    images = make_input(**{key: variant["eval_input"][key] for key in ("batch", "height", "width", "seed")})
    with torch.no_grad():
        logits = model(images)
        assert norms == pytest.approx(variant["eval_stage_l2"], rel=1e-4)
        exact = model.double()(images.double())
    expected = torch.tensor(variant["eval_logits"])
    assert torch.allclose(logits, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    assert torch.allclose(exact, torch.tensor(variant["eval_logits_float64"], dtype=torch.float64), rtol=1e-8, atol=1e-10)


def train(model, variant, steps, dtype):
    """Run golden training steps; return the losses. The optimizer is the one that the golden file states."""
    optimizer = torch.optim.SGD(model.parameters(), **{key: value for key, value in GOLDEN["optimizer"].items() if key != "name"})
    recipe = variant["train_input"]
    losses = []
    for step in range(steps):
        images = make_input(recipe["batch"], recipe["height"], recipe["width"], seed=recipe["input_seed_base"] + step)
        target = make_target(recipe["batch"], variant["num_classes"], seed=recipe["target_seed_base"] + step)
        loss = F.cross_entropy(model(images.to(dtype)), target)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


@each_variant
def test_train_losses_float64(variant):
    """Forward, backward and update in training, strictly: the first losses of the float64 trace."""
    losses = train(filled(build(variant)).double().train(), variant, 3, torch.float64)
    assert losses == pytest.approx(variant["train_losses_float64"][:3], rel=1e-8)


@pytest.mark.slow
@each_variant
def test_whole_train_trace_float64(variant):
    """The whole float64 trace, and the parameters and running statistics after it."""
    model = filled(build(variant)).double().train()
    losses = train(model, variant, variant["train_input"]["steps"], torch.float64)
    assert losses == pytest.approx(variant["train_losses_float64"], rel=1e-8)
    assert after_training(model) == pytest.approx(variant["train_after_float64"], rel=1e-8)


@each_variant
def test_train_losses_float32(variant):
    """Training in float32 drifts from the float64 trace no further than upstream's own does."""
    model = filled(build(variant)).train()
    losses = train(model, variant, variant["train_input"]["steps"], torch.float32)
    tolerances = [1e-4, 1e-3, 5e-3, 3e-2, 3e-2]
    drift = variant["train_float32_vs_float64"]
    for ours, expected, tolerance, own in zip(losses, variant["train_losses"], tolerances, drift):
        assert ours == pytest.approx(expected, rel=max(tolerance, 5 * own))
    assert after_training(model) == pytest.approx(variant["train_after"], rel=1e-2)


def after_training(model):
    buffers = dict(model.named_buffers())
    return {
        "parameters_l2": l2(model.parameters()),
        "running_mean_l2": l2([buffer for name, buffer in buffers.items() if name.endswith("running_mean")]),
        "running_var_l2": l2([buffer for name, buffer in buffers.items() if name.endswith("running_var")]),
    }


@each_variant
def test_initialisation(variant):
    """Every tensor is initialised by upstream's rule (trap: groups are not divided out of the depthwise standard deviation)."""
    torch.manual_seed(0)
    state = build(variant).state_dict()
    assert set(state) == set(variant["init"])
    for key, (kind, value) in variant["init"].items():
        tensor = state[key].double()
        if kind == "constant":
            assert (tensor == value).all(), key
        elif kind == "uniform":
            assert tensor.abs().max() <= value and tensor.abs().max() > 0.9 * value, key
        else:
            error = 5 * value / (2 * tensor.numel()) ** 0.5  # 5 standard errors
            assert abs(float(tensor.std()) - value) < error and abs(float(tensor.mean())) < 2 * error, key


def test_seeded_initialisation():
    """For a seed, the very numbers that upstream draws: the layers are made and re-initialised in its order."""
    wanted = GOLDEN["seeded_init"]
    torch.manual_seed(wanted["seed"])
    state = build(dict(wanted, num_classes=10)).state_dict()
    for key, numbers in wanted["tensors"].items():
        assert state[key].flatten()[:4].tolist() == pytest.approx(numbers["first4"], rel=1e-6), key
        assert l2([state[key]]) == pytest.approx(numbers["l2"], rel=1e-5), key


# --- the rules of the sheet, for all variants -------------------------------------------------------------------------

def expected_count(depth, width, classes, extent, extra_params, mlp):
    """Number of parameters by the formula 9io + 9oo + 2i + 2o per block, plus shortcut, gather and MLP."""
    total = 432 + 128 * width + (64 * width + 1) * classes
    for stage, side in enumerate((32, 16, 8)):
        o = 16 * width * 2 ** stage
        for block in range((depth - 4) // 6):
            i = o if block else (o // 2 if stage else 16)
            total += 9 * i * o + 9 * o * o + 2 * i + 2 * o + (i * o if i != o else 0)
            units, kernel = {0: (1, side), 2: (1, 3), 4: (2, 3), 8: (3, 3)}[extent]
            total += units * (o * kernel * kernel + 2 * o) if extra_params else 0
            total += 2 * o * (o // 16) if mlp else 0
    return total


@every_option
@pytest.mark.parametrize("depth, width, classes", [(10, 1, 10), (16, 2, 100), (22, 1, 10)])
def test_every_variant_has_its_parameters(options, depth, width, classes):
    """Each of the 16 variants, also deeper, of width 1 and for 100 classes, has the parameters that belong to it."""
    model = WideResNet(depth, width, classes, **options)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected_count(depth, width, classes, **options)


@every_option
def test_every_variant_has_upstreams_keys(options):
    """Keys and their order in a block: shortcut, gather (numbered only for extents 4 and 8), then MLP."""
    keys = [key for key in WideResNet(10, 2, **options).state_dict() if key.startswith("block2.layer.0.")]
    keys = [key[len("block2.layer.0."):] for key in keys]
    bn = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    expected = ["bn1." + name for name in bn] + ["conv1.weight"] + ["bn2." + name for name in bn]
    expected += ["conv2.weight", "convShortcut.weight"]
    numbers = {0: [""], 2: [""], 4: ["0.", "1."], 8: ["0.", "1.", "2."]}[options["extent"]] if options["extra_params"] else []
    for number in numbers:
        expected += ["downop.%sdwconv.weight" % number] + ["downop.%sbn.%s" % (number, name) for name in bn]
    expected += ["mlp.0.weight", "mlp.2.weight"] if options["mlp"] else []
    assert keys == expected


@every_option
def test_every_variant_gathers_to_its_resolution(options):
    """The gathered maps of stages 1, 2 and 3 have the sides of the sheet's table."""
    model = WideResNet(10, 1, **options).eval()
    sides = []
    for stage in (model.block1, model.block2, model.block3):
        stage.layer[0].mlp.register_forward_hook(lambda _, inputs, output: sides.append(tuple(output.shape[-2:])))
    with torch.no_grad():
        model(make_input(1, 32, 32))
    extent = options["extent"]
    assert sides == [(side // extent, side // extent) if extent else (1, 1) for side in (32, 16, 8)]


@every_option
def test_every_variant_trains(options):
    """Forward and backward run in training mode, give one row per image and a gradient to every parameter."""
    model = filled(WideResNet(10, 1, **options)).train()
    logits = model(make_input(2, 32, 32))
    assert logits.shape == (2, 10)
    F.cross_entropy(logits, make_target(2, 10)).backward()
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def reference_block(block, x, gather):
    """The block's forward as the sheet writes it, step by step, with the upsampling before the sigmoid."""
    activated = F.relu(block.bn1(x))
    h = block.conv2(F.relu(block.bn2(block.conv1(activated))))
    context = F.interpolate(block.mlp(gather(h)), h.shape[-1], mode="nearest")
    return context.sigmoid() * h, activated


def test_identity_shortcut_passes_the_raw_input():
    """Trap: where channels do not change the raw input is added; width 1 makes the very first block such a block."""
    model = filled(WideResNet(16, 1)).eval()
    assert all(stage.layer[1].convShortcut is None for stage in (model.block1, model.block2, model.block3))
    block = model.block1.layer[0]
    assert block.convShortcut is None and model.block2.layer[0].convShortcut is not None
    x = make_input(2, 32, 32, channels=16)
    with torch.no_grad():
        branch, _ = reference_block(block, x, lambda h: F.adaptive_avg_pool2d(h, 1))
        assert torch.allclose(block(x), branch + x, atol=1e-6)


def test_shortcut_convolution_reads_the_activated_input():
    """Trap: where channels change the shortcut is a convolution of ReLU(bn1(x)), not of x."""
    block = filled(WideResNet(10, 2)).eval().block2.layer[0]
    x = make_input(2, 32, 32, channels=32)
    with torch.no_grad():
        branch, activated = reference_block(block, x, lambda h: F.adaptive_avg_pool2d(h, 1))
        assert torch.allclose(block(x), branch + block.convShortcut(activated), atol=1e-5)


def test_upsampling_repeats_and_the_last_gather_unit_has_no_relu():
    """Traps: nearest-neighbour upsampling, ReLU after all gather units but the last."""
    block = filled(WideResNet(10, 1, extent=4, extra_params=True, mlp=True)).eval().block1.layer[0]
    x = make_input(2, 32, 32, channels=16)

    def gather(h):
        first, last = block.downop
        return last.bn(last.dwconv(F.relu(first.bn(first.dwconv(h)))))

    with torch.no_grad():
        branch, _ = reference_block(block, x, gather)
        assert torch.allclose(block(x), branch + x, atol=1e-5)
        assert (block.downop(x) < 0).any()


def test_local_gather_averages_tiles_that_do_not_overlap():
    """The parameter-free gather of extent e is the mean over e x e tiles, as upstream's adaptive average pooling."""
    for extent in (2, 4, 8):
        block = WideResNet(10, 1, extent=extent).block2.layer[0]
        maps = make_input(2, 16, 16, channels=32)
        assert torch.allclose(block.downop(maps), F.adaptive_avg_pool2d(maps, 16 // extent), atol=1e-6)


def test_constructor_defaults_are_the_scripts_network():
    """Trap: by default the parameter-free network, as from the command line, not upstream's constructor default."""
    assert list(WideResNet().state_dict()) == [key for key, _, _ in VARIANTS[0]["state_dict"]]
    assert VARIANTS[0]["options"] == {"depth": 16, "width": 8, "extent": 0, "extra_params": False, "mlp": False,
                                      "dataset": "cifar10"}


def test_dropout_only_in_training():
    """The drop rate acts in training mode only."""
    model = filled(WideResNet(10, 1, drop_rate=0.5))
    images = make_input(2, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), filled(WideResNet(10, 1)).eval()(images))
        assert not torch.equal(model.train()(images), model(images))


@pytest.mark.parametrize("side", (28, 31, 33, 64))
def test_other_image_sizes_are_refused(side):
    """Trap: never a wrong number of rows, never a part of the image only; other sizes than 32 are an error."""
    with pytest.raises(ValueError, match="32x32"):
        WideResNet(10, 1)(make_input(1, side, side))


@pytest.mark.parametrize("options, complaint", [
    (dict(depth=4), "depth must be"), (dict(depth=-2), "depth must be"), (dict(depth=17), "depth must be"),
    (dict(width=0), "width must be"), (dict(extent=3), "extent must be"), (dict(extent=16), "extent must be"),
    (dict(extent=16, extra_params=True), "extent must be")])
def test_impossible_networks_are_refused(options, complaint):
    """Depth 4 (upstream builds a net that fails), other depths, width 0 and unknown extents are clear errors."""
    with pytest.raises(ValueError, match=complaint):
        WideResNet(**options)

"""HRNet against numbers computed with upstream's own code (ci/golden/HRNet.json)."""
import json
import os
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
from PIL import Image

from common import data, meters
from fill import fill_state_dict, make_image, make_input, make_target
from lib.config import new_config, update_config
from lib.core.data import eval_transform
from lib.core.optimizer import get_optimizer, learning_rate
from lib.models import build_model

CI = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(CI, "golden", "HRNet.json")) as stream:
    GOLDEN = json.load(stream)
VARIANTS = {variant["arch"]: variant for variant in GOLDEN["variants"]}
both = pytest.mark.parametrize("arch", sorted(VARIANTS))


def experiment(arch):
    """Return the path of the experiment file of a network."""
    return os.path.join(CI, "..", "HRNet", "experiments", "cls_hrnet_%s_sgd_lr5e-2_wd1e-4_bs32_x100.yaml" % arch)


def merged(arch, modelDir="", logDir="", dataDir="", testModel=""):
    """Return the frozen config of a network."""
    config = new_config()
    update_config(config, SimpleNamespace(cfg=experiment(arch), modelDir=modelDir, logDir=logDir, dataDir=dataDir,
                                          testModel=testModel, opts=[]))
    return config


def flat(node, prefix=""):
    """Return {dotted key: value} of a config tree."""
    result = {}
    for key, value in node.items():
        result.update(flat(value, prefix + key + ".") if hasattr(value, "items") else {prefix + key: value})
    return result


def typed(node):
    """Return {dotted key: [type name, value]}, tuples as lists, as the golden file writes them."""
    return {key: [type(value).__name__, list(value) if isinstance(value, tuple) else value]
            for key, value in flat(node).items()}


def filled(arch):
    """Return the network of `arch` with the golden file's weights."""
    model = build_model(merged(arch))
    model.load_state_dict(fill_state_dict(model.state_dict()))
    return model


def picture(spec):
    return make_input(spec["batch"], spec["height"], spec["width"], seed=spec["seed"])


def l2(tensors):
    return sum(float(tensor.detach().double().pow(2).sum()) for tensor in tensors) ** 0.5


def assert_logits(logits, expected, tolerance):
    """Compare with a recorded row: every value within `tolerance(row's norm)`, the argmax exactly."""
    assert list(logits.shape) == expected["shape"]
    for row, first, norm, argmax in zip(logits, expected["first"], expected["row_l2"], expected["argmax"]):
        assert row[:len(first)].tolist() == pytest.approx(first, rel=0, abs=tolerance(norm))
        assert l2([row]) == pytest.approx(norm, rel=1e-3)
        assert int(row.argmax()) == argmax


# ---- configuration tree --------------------------------------------------------------------------------------------------

def test_config_defaults():
    """A person's YAML merges as it does upstream: every key of the tree, its type and its default."""
    ours = typed(new_config())
    assert ours.pop("TRAIN.RMSPROP_ALPHA") == ["float", 0.99]  # the two that upstream reads and its tree lacks
    assert ours.pop("TRAIN.RMSPROP_CENTERED") == ["bool", False]
    expected = {key: [kind, value] for key, kind, value in GOLDEN["config_defaults"] if kind != "node"}
    assert ours == expected


@both
def test_config_merged(arch):
    """The experiment files mean what upstream's mean."""
    ours = typed(merged(arch))
    assert {key: ours[key] for key, _, _ in GOLDEN["config_merged"][arch]} == {
        key: [kind, value] for key, kind, value in GOLDEN["config_merged"][arch]}


def test_config_directory_flags():
    """--modelDir, --logDir, --dataDir and --testModel replace what the file says."""
    ours = typed(merged("w18", modelDir="M", logDir="L", dataDir="D", testModel="T"))
    for key, kind, value in GOLDEN["config_merged"]["w18 with --modelDir M --logDir L --dataDir D --testModel T"]:
        assert ours[key] == [kind, value]


# ---- network -------------------------------------------------------------------------------------------------------------

@both
def test_state_dict(arch):
    """Upstream's weights load: names, order, shapes and types of every entry."""
    model = build_model(merged(arch))
    ours = [[key, list(tensor.shape), str(tensor.dtype).replace("torch.", "")] for key, tensor in model.state_dict().items()]
    assert ours == VARIANTS[arch]["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == VARIANTS[arch]["num_parameters"]
    assert len(list(model.parameters())) == VARIANTS[arch]["num_parameter_tensors"]


@both
def test_eval_logits_and_intermediate(arch):
    """The forward pass at 224: each exchange unit, transition and head module, then the logits."""
    model, spec = filled(arch).eval(), VARIANTS[arch]
    seen = {}

    def record(name):
        # Taken inside the hook: a later in-place ReLU may overwrite the tensor.
        def hook(module, inputs, output):
            outputs = output if isinstance(output, list) else [output]
            seen[name] = [(list(tensor.shape), l2([tensor])) for tensor in outputs]
        return hook

    for name, module in model.named_modules():
        if name in spec["intermediate"]:
            module.register_forward_hook(record(name))
    with torch.no_grad():
        logits = model(picture(spec["eval_input"]))
    assert sorted(seen) == sorted(spec["intermediate"])
    for name, parts in spec["intermediate"].items():
        for (shape, norm), part in zip(seen[name], parts):
            assert shape == part["shape"], name
            assert norm == pytest.approx(part["l2"], rel=1e-3), name
    assert_logits(logits, spec["eval_logits"], tolerance=lambda norm: 1e-3 * norm)


@both
def test_eval_other_sizes(arch):
    """Small and non-square pictures go through the same network."""
    model = filled(arch).eval()
    for entry in VARIANTS[arch]["eval_more"]:
        with torch.no_grad():
            logits = model(picture(entry["eval_input"]))
        assert_logits(logits, entry["eval_logits"], tolerance=lambda norm: 1e-3 * norm)


@both
def test_eval_calibrated(arch):
    """Logits of order 1, in which every bias shows, and the running statistics behind them."""
    model, spec = filled(arch), VARIANTS[arch]["eval_calibrated"]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(picture(spec["calibration_input"]))
        logits = model.eval()(picture(spec["eval_input"]))
    assert_logits(logits, spec["eval_logits"], tolerance=lambda norm: 2e-3)
    assert l2(float_buffers(model)) == pytest.approx(spec["running_stats_l2"], rel=1e-4)


def float_buffers(model):
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


def test_initialisation():
    """Convolutions are drawn from N(0, 2 / (c_out k^2)); BatchNorm starts at 1 and 0; biases and classifier are PyTorch's."""
    torch.manual_seed(1)
    state = build_model(merged("w18_small_v1")).state_dict()
    for expected in GOLDEN["init"]["tensors"]:
        tensor = state[expected["key"]]
        assert list(tensor.shape) == expected["shape"]
        largest, std = float(tensor.abs().max()), float(tensor.std())
        assert std == pytest.approx(expected["drawn_std"], rel=0.06), expected["key"]
        if "normal_std" in expected:
            assert std == pytest.approx(expected["normal_std"], rel=0.05)
            assert largest > 2.5 * expected["normal_std"]
        else:
            assert largest == pytest.approx(expected["drawn_max_abs"], rel=0.03), expected["key"]


# ---- training ------------------------------------------------------------------------------------------------------------

def train_steps(arch, rate, dtype):
    """Run the golden five steps; return (losses, gradient norms by name of the first step, model)."""
    spec = VARIANTS[arch]["train_input"]
    model = filled(arch).to(dtype).train()
    optimizer = get_optimizer(merged(arch), model, rate)
    losses, norms = [], {}
    for step in range(spec["steps"]):
        images = make_input(spec["batch"], spec["height"], spec["width"], seed=100 + step).to(dtype)
        loss = nn.CrossEntropyLoss()(model(images), make_target(spec["batch"], spec["classes"], seed=200 + step))
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            norms = {name: l2([parameter.grad]) for name, parameter in model.named_parameters()}
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, model


@both
def test_train_float64(arch):
    """Five training steps in float64: losses, gradients, parameters and BatchNorm statistics, to six digits."""
    spec = VARIANTS[arch]
    losses, norms, model = train_steps(arch, spec["train_optimizer"]["lr"], torch.float64)
    assert losses == pytest.approx(spec["train_losses"], rel=1e-6)
    for name, norm in spec["train_first_step_grad_l2"].items():
        assert norms[name] == pytest.approx(norm, rel=1e-6), name
    assert sum(norm ** 2 for norm in norms.values()) ** 0.5 == pytest.approx(spec["train_first_step_grad_l2_all"], rel=1e-6)
    assert l2(model.parameters()) == pytest.approx(spec["train_final_param_l2"], rel=1e-6)
    assert l2(float_buffers(model)) == pytest.approx(spec["train_final_buffer_l2"], rel=1e-6)
    assert int(model.bn1.num_batches_tracked) == spec["train_final_num_batches_tracked"]


@pytest.mark.parametrize("arch", [pytest.param("w18", marks=pytest.mark.slow), "w18_small_v1"])
def test_train_float32(arch):
    """The same steps in float32 at a rate so small that rounding does not grow."""
    spec = VARIANTS[arch]["train_float32_small_lr"]
    losses, norms, model = train_steps(arch, spec["optimizer"]["lr"], torch.float32)
    assert losses == pytest.approx(spec["losses"], rel=1e-2)
    assert sum(norm ** 2 for norm in norms.values()) ** 0.5 == pytest.approx(spec["first_step_grad_l2_all"], rel=1e-2)
    assert l2(model.parameters()) == pytest.approx(spec["final_param_l2"], rel=1e-2)
    assert l2(float_buffers(model)) == pytest.approx(spec["final_buffer_l2"], rel=1e-2)


def test_optimizer_is_one_group():
    """SGD with upstream's hyper-parameters, over a single group: BatchNorm and biases are decayed too."""
    model = filled("w18_small_v1")
    group, = get_optimizer(merged("w18_small_v1"), model, 0.05).param_groups
    expected = VARIANTS["w18_small_v1"]["train_optimizer"]
    assert len(group["params"]) == len(list(model.parameters()))
    for key in ("lr", "momentum", "dampening", "weight_decay", "nesterov"):
        assert group[key] == expected[key]


@pytest.mark.parametrize("recipe, base", [("1p", 0.1), ("8p", 0.1 * 8), ("upstream_4gpu", 0.05)])
def test_learning_rate(recipe, base):
    """The rate falls at epochs 30, 60 and 90, not one epoch early as where the scheduler's order is upstream's."""
    config = merged("w18")
    for epoch, rate in GOLDEN["lr_schedule"][recipe]:
        assert learning_rate(config, base, epoch) == pytest.approx(rate, rel=1e-12), epoch


# ---- data and accuracy ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("spec", GOLDEN["transforms"], ids=lambda spec: "%(width)dx%(height)d" % spec["image"])
def test_eval_transform(spec):
    """The evaluation crop, byte for byte, and its normalised values."""
    image = Image.fromarray(make_image(**spec["image"]))
    crop = eval_transform(spec["image_size"])(image, None)
    assert crop.reshape(-1)[spec["crop_uint8_hwc_flat_index"]].tolist() == spec["crop_uint8_values"]
    assert int(crop.astype(int).sum()) == spec["crop_uint8_sum"]
    batch = torch.from_numpy(crop.copy()).permute(2, 0, 1)[None]
    (images, _), = data.DeviceBatches([(batch, torch.zeros(1, dtype=torch.int64), [])], torch.device("cpu"))
    assert list(images[0].shape) == spec["shape"]
    assert images[0].reshape(-1)[spec["flat_index"]].tolist() == pytest.approx(spec["values"], abs=1e-5)
    assert images[0].mean(dim=(1, 2)).tolist() == pytest.approx(spec["channel_mean"], abs=1e-5)
    assert float(images.std()) == pytest.approx(spec["std"], abs=1e-4)


@pytest.mark.parametrize("size, shorter", [(224, 256), (256, 292), (320, 365)])
def test_eval_resize_is_rounded_down(size, shorter):
    """The shorter side is size / 0.875 rounded down: a picture of that size is cropped and not resized."""
    image = Image.fromarray(make_image(shorter, shorter, seed=5))
    left = int(round((shorter - size) / 2.0))
    assert (eval_transform(size)(image, None) == make_image(shorter, shorter, seed=5)[left:left + size, left:left + size]).all()


@pytest.mark.parametrize("spec", GOLDEN["accuracy"], ids=lambda spec: "%d classes" % spec["classes"])
def test_accuracy(spec):
    """Loss and accuracies of batches, and averages in which a smaller last batch weighs what it should."""
    tally = meters.Tally("the batches")
    offset = {10: 1.0, 1000: 2.5}[spec["classes"]]
    for number, batch in enumerate(spec["batches"]):
        seed = {10: 500, 1000: 600}[spec["classes"]] + number
        target = make_target(batch["batch"], spec["classes"], seed=batch["target_seed"])
        logits = make_input(batch["batch"], 1, spec["classes"], seed=seed, channels=1).reshape(batch["batch"], -1)
        logits[torch.arange(len(target)), target] += offset
        tally.add(nn.CrossEntropyLoss()(logits, target), logits, target)
        tally.fetch()
        for name, meter in (("loss", tally.loss), ("accuracy1", tally.top1), ("accuracy5", tally.top5)):
            assert meter.val == pytest.approx(batch[name], rel=1e-5)
    for name, meter in (("loss", tally.loss), ("accuracy1", tally.top1), ("accuracy5", tally.top5)):
        assert meter.avg == pytest.approx(spec["average_" + name], rel=1e-5)

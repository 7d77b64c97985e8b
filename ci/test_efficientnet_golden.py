"""EfficientNet-B3 against numbers computed with upstream's own code (ci/golden/EfficientNet-B3.json)."""
import json
import os
import random

import numpy as np
import pytest
import torch
from PIL import Image
from yacs.config import CfgNode

from common import data, meters
from common.optimizer import set_rate
from fill import fill_state_dict, make_image, make_input, make_target
from pycls.core import config, losses, net, optimizer
from pycls.core.config import cfg
from pycls.datasets import augment, transforms
from pycls.models.blocks import activation, drop_connect
from pycls.models.effnet import EffNet

CI = os.path.dirname(os.path.abspath(__file__))
CONFIGS = os.path.join(CI, "..", "EfficientNet-B3", "configs", "dds_baselines", "effnet")
with open(os.path.join(CI, "golden", "EfficientNet-B3.json")) as stream:
    GOLDEN = json.load(stream)
VARIANTS = {variant["arch"].split(" (")[0]: variant for variant in GOLDEN["variants"]}
COMPONENTS = GOLDEN["components"]
each_variant = pytest.mark.parametrize("arch", sorted(VARIANTS))
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def default_config():
    """Every test starts from the defaults of the global configuration, and leaves them behind."""
    config.reset_cfg()
    yield
    config.reset_cfg()


def configure(keys):
    """Set {dotted key: value} in the global configuration."""
    config.reset_cfg()
    for key, value in keys.items():
        if key not in config.IGNORED_KEYS:
            config.cfg.merge_from_list([key, value])


def filled_model(arch, dtype=torch.float32):
    configure(VARIANTS[arch]["config_keys"])
    model = EffNet()
    model.load_state_dict(fill_state_dict(model.state_dict()))
    return model.to(dtype)


def picture(spec, dtype=torch.float32):
    return make_input(spec["batch"], spec["height"], spec["width"], seed=spec["seed"]).to(dtype)


def assert_logits(rows, expected, tolerance):
    """Compare with recorded rows; the tolerance is relative to a row's root mean square."""
    for row, wanted in zip(rows.detach().double(), expected):
        rms = wanted["l2"] / len(row) ** 0.5
        assert row[:16].tolist() == pytest.approx(wanted["logits"], rel=0, abs=tolerance * rms)
        assert float(row.norm()) == pytest.approx(wanted["l2"], rel=tolerance)


def calibrate(model, inputs):
    """Make the running statistics those of one batch, as the golden file's note says; return the logits of that pass."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        logits = model.train()(inputs)
    model.eval()
    return logits


# ---- configuration ---------------------------------------------------------------------------------------------------------

def flat(node, prefix=""):
    result = {}
    for key, value in node.items():
        result.update(flat(value, prefix + key + ".") if isinstance(value, dict) else {prefix + key: value})
    return result


def test_config_defaults():
    """Every key of upstream's tree is here with its default, or is one of those that are taken and ignored."""
    ours = flat(cfg)
    for key, value in GOLDEN["config_defaults"].items():
        if key in config.IGNORED_KEYS:
            assert key not in ours
            continue
        assert ours[key] == value and type(ours[key]) is type(value), key
    added = {"OPTIM.EMA_UPDATE_PERIOD", "OPTIM.EMA_ALPHA", "TRAIN.PRETRAINED", "TRAIN.OPT_LEVEL", "TRAIN.LOSS_SCALE",
             "TRAIN.ACCUMULATE", "TRAIN.MAX_STEPS", "TRAIN.SAVE_STEPS", "TRAIN.KEEP_CHECKPOINTS", "TEST.MAX_STEPS",
             "DATA_LOADER.RESIZE_IN_FLOAT"}
    assert set(ours) - set(GOLDEN["config_defaults"]) == added


def test_ignored_keys_of_other_families_are_taken():
    """A config.yaml written by upstream, with all its families, loads; what has no meaning here changes nothing."""
    tree = CfgNode()
    for key, value in GOLDEN["config_defaults"].items():
        node = tree
        for name in key.split(".")[:-1]:
            node = node.setdefault(name, CfgNode())
        node[key.split(".")[-1]] = value
    before = cfg.dump()
    cfg.merge_from_other_cfg(tree)
    assert cfg.dump() == before
    cfg.merge_from_list(["RESNET.NUM_GROUPS", "2", "DIST_BACKEND", "hccl", "TRAIN.EVAL_PERIOD", "1"])
    assert cfg.dump() == before


@pytest.mark.parametrize("name", ["EN-B3_dds_8gpu", "EN-B0_dds_8gpu"])
def test_config_files_are_upstreams(name):
    """The recipe of a published configuration file is upstream's, key by key."""
    config.load_cfg(os.path.join(CONFIGS, name + ".yaml"))
    ours, upstream = flat(cfg), dict(GOLDEN["config_defaults"], **VARIANTS[name[:5]]["config_keys"])
    for key, value in upstream.items():
        if key not in config.IGNORED_KEYS:
            assert ours[key] == value, key


# ---- networks --------------------------------------------------------------------------------------------------------------

@each_variant
def test_state_dict_layout(arch):
    """Upstream's checkpoints load without renaming: same keys, shapes and types in the same order."""
    golden = VARIANTS[arch]
    model = filled_model(arch)
    ours = [[key, list(value.shape), str(value.dtype).replace("torch.", "")] for key, value in model.state_dict().items()]
    assert ours == golden["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == golden["num_parameters"]


@pytest.mark.parametrize("name, flops, params, acts", [
    ("B0", 385825092, 5288548, 6748036), ("B1", 686817992, 7794184, 10884328), ("B2", 993578282, 9109994, 13832834),
    ("B3", 1827162472, 12233232, 23831296), ("B4", 4393801064, 19341616, 49489032), ("B5", 10266426072, 30389784, 98857400),
])
def test_complexity_is_the_published_one(name, flops, params, acts):
    """The configuration files B0 to B5 build the published networks (counted at the training size, as pycls counts)."""
    config.load_cfg(os.path.join(CONFIGS, "EN-%s_dds_8gpu.yaml" % name))
    assert net.complexity(EffNet(), cfg.TRAIN.IM_SIZE) == {"flops": flops, "params": params, "acts": acts}


@each_variant
def test_calibrated_logits(arch):
    """The whole network in float32, training and evaluation mode."""
    golden = VARIANTS[arch]["calibrated"]
    model = filled_model(arch)
    tolerance = 2e-3 if "10 classes" in arch else 1e-3
    assert_logits(calibrate(model, picture(golden["calibration_input"])), golden["train_mode_logits"], tolerance)
    with torch.no_grad():
        assert_logits(model(picture(golden["eval_input"])), golden["eval_logits"], tolerance)


@pytest.mark.parametrize("arch", [arch for arch in sorted(VARIANTS) if arch != "EN-B3"]
                         + [pytest.param("EN-B3", marks=pytest.mark.slow)])
def test_eval_logits_in_double(arch):
    """The strict proof of the forward pass, any rounding aside."""
    golden = VARIANTS[arch]
    with torch.no_grad():
        logits = filled_model(arch, torch.float64).eval()(picture(golden["eval_input"], torch.float64))
    assert_logits(logits, golden["eval_logits_float64"], 1e-6)


RUNS = [(arch, run["recipe"]) for arch in sorted(VARIANTS) for run in VARIANTS[arch].get("train_losses", {}).get("runs", [])]
QUICK = {("EN-B3", "NPU 8p, batch 512")}


@pytest.mark.parametrize("arch, recipe", [
    run if "tiny" in run[0] or run in QUICK else pytest.param(*run, marks=pytest.mark.slow) for run in RUNS])
def test_training_in_double(arch, recipe):
    """Five steps of each recipe: loss, gradients, weight decay on every tensor, Nesterov, BN statistics."""
    golden = VARIANTS[arch]["train_losses"]
    run = [run for run in golden["runs"] if run["recipe"] == recipe][0]
    model = filled_model(arch, torch.float64).train()
    sgd = optimizer.construct_optimizer(model)
    set_rate(sgd, run["lr"])
    found = [train_step(model, sgd, golden, t) for t in range(golden["steps"])]
    expected = run["train_losses_float64"]
    assert found == pytest.approx(expected["losses"], rel=1e-6)
    assert l2(model.parameters()) == pytest.approx(expected["param_l2"], rel=1e-6)
    statistics = [value for key, value in model.state_dict().items() if "running" in key]
    assert l2(statistics) == pytest.approx(expected["running_stats_l2"], rel=1e-6)


def train_step(model, sgd, golden, t):
    inputs = make_input(golden["batch"], golden["height"], golden["width"], seed=100 + t).double()
    labels = make_target(golden["batch"], golden["classes"], seed=200 + t)
    targets = losses.smooth_one_hot(labels, golden["classes"], cfg.TRAIN.LABEL_SMOOTHING, torch.float64)
    loss = losses.SoftCrossEntropyLoss()(model(inputs), targets)
    sgd.zero_grad()
    loss.backward()
    sgd.step()
    return float(loss.detach())


def l2(tensors):
    return sum(float(tensor.detach().double().pow(2).sum()) for tensor in tensors) ** 0.5


@pytest.mark.parametrize("golden", COMPONENTS["init_reference"], ids=lambda golden: golden["config"])
def test_initialisation(golden):
    """Training from scratch starts where upstream's does, number for number at the same seed."""
    configure(VARIANTS["EN-tiny" if golden["config"] == "custom" else golden["config"]]["config_keys"])
    torch.manual_seed(golden["torch_seed"])
    state = EffNet().state_dict()
    for tensor in golden["tensors"]:
        values = state[tensor["key"]].double().flatten()
        assert values[:len(tensor["first"])].tolist() == pytest.approx(tensor["first"], rel=1e-5, abs=1e-7)
        assert float(values.sum()) == pytest.approx(tensor["sum"], rel=1e-4, abs=1e-5)
        assert float(values.norm()) == pytest.approx(tensor["l2"], rel=1e-5)


@pytest.mark.parametrize("golden", COMPONENTS["activation"], ids=lambda golden: golden["name"])
def test_activation(golden):
    """relu, silu and swish mean what upstream means."""
    cfg.MODEL.ACTIVATION_FUN = golden["name"]
    assert activation()(torch.tensor(golden["x"])).tolist() == pytest.approx(golden["y"], rel=1e-5)


def test_silu_without_torchs_own(monkeypatch):
    """PyTorch below 1.7 has no nn.SiLU; the written-out one gives the same numbers."""
    golden = COMPONENTS["activation"][1]
    monkeypatch.delattr(torch.nn, "SiLU", raising=False)
    cfg.MODEL.ACTIVATION_FUN = "silu"
    assert activation()(torch.tensor(golden["x"])).tolist() == pytest.approx(golden["y"], rel=1e-5)


@pytest.mark.parametrize("golden", COMPONENTS["drop_connect"], ids=lambda golden: str(golden["ratio"]))
def test_drop_connect(golden, monkeypatch):
    """Whole samples are dropped, and the kept ones scaled, given upstream's draw."""
    name, rest = golden["input"].split("(", 1)
    batch, height, width = [int(number) for number in rest.split(",")[:3]]
    inputs = make_input(batch, height, width, seed=int(rest.split("seed=")[1].split(",")[0]))
    mask = torch.tensor(golden["mask_observed"], dtype=torch.float32).view(-1, 1, 1, 1)
    monkeypatch.setattr(torch.Tensor, "bernoulli_", lambda tensor, p: tensor.copy_(mask))
    output = drop_connect(inputs, golden["ratio"])
    assert output.flatten(1).numpy() == pytest.approx(np.array(golden["output"]), rel=1e-6, abs=1e-7)


def test_drop_connect_draws_one_number_a_sample():
    """The share of dropped samples is the ratio, and the mean of what is kept stays."""
    torch.manual_seed(0)
    output = drop_connect(torch.ones(4000, 2, 3, 3), 0.2)
    assert ((output == 0).flatten(1).all(1) | (output == 1.25).flatten(1).all(1)).all()
    assert float((output.flatten(1)[:, 0] == 0).float().mean()) == pytest.approx(0.2, abs=0.03)


# ---- optimisation ----------------------------------------------------------------------------------------------------------

SCHEDULES = COMPONENTS["lr_policies"] + [schedule for variant in GOLDEN["variants"] for schedule in variant.get("lr_schedule", [])]


@pytest.mark.parametrize("golden", SCHEDULES, ids=lambda golden: golden["recipe"])
def test_learning_rate(golden):
    """The rate of an epoch under every policy, warm-up included."""
    configure(golden["keys"])
    for epoch, rate in golden["points"]:
        assert optimizer.get_epoch_lr(epoch) == pytest.approx(rate, rel=1e-9)


@pytest.mark.parametrize("name, schedule", [
    ("EN-B3_dds_1npu_full", "NPU 1p full"), ("EN-B3_dds_8npu_full", "NPU 8p full"),
    ("EN-B3_dds_1npu_perf", "NPU 1p performance"), ("EN-B3_dds_8npu_perf", "NPU 8p performance"),
    ("EN-B3_dds_8gpu", "upstream EN-B3"), ("EN-B0_dds_8gpu", None)])
def test_learning_rate_of_a_config_file(name, schedule):
    """Each file's schedule is the recorded one, and its rate fits its total batch (0.2 for 128)."""
    config.load_cfg(os.path.join(CONFIGS, name + ".yaml"))
    recorded = {golden["recipe"]: golden for golden in SCHEDULES}.get(schedule)
    for epoch, rate in recorded["points"] if recorded else []:
        assert optimizer.get_epoch_lr(epoch) == pytest.approx(rate, rel=1e-9)
    assert cfg.OPTIM.BASE_LR == pytest.approx(0.2 * cfg.TRAIN.BATCH_SIZE / 128)
    assert cfg.OPTIM.WARMUP_EPOCHS == 0 and cfg.TRAIN.LABEL_SMOOTHING == 0 and not cfg.BN.USE_CUSTOM_WEIGHT_DECAY


@pytest.mark.parametrize("golden", COMPONENTS["optimizer_groups"], ids=lambda golden: golden["config"])
@pytest.mark.parametrize("custom", [False, True])
def test_optimizer_groups(golden, custom):
    """Weight decay reaches every tensor, or all but the BN tensors, and SGD's settings are the recipe's."""
    configure(dict(VARIANTS[golden["config"]]["config_keys"], **{"BN.USE_CUSTOM_WEIGHT_DECAY": custom}))
    groups = optimizer.construct_optimizer(EffNet()).param_groups
    found = [dict({key: group[key] for key in ("weight_decay", "momentum", "nesterov", "dampening")},
                  tensors=len(group["params"]), elements=sum(p.numel() for p in group["params"])) for group in groups]
    assert found == golden["with BN.USE_CUSTOM_WEIGHT_DECAY True" if custom else "default"]


@pytest.mark.parametrize("golden", COMPONENTS["loss"], ids=lambda golden: "%(classes)d, %(label_smoothing)s" % golden)
def test_loss(golden):
    """Targets, loss and its gradient, with and without label smoothing."""
    seed = int(golden["logits"].split("seed=")[1].split(",")[0])
    logits = 3 * make_input(golden["batch"], 1, golden["classes"], seed=seed, channels=1)
    logits = logits.view(golden["batch"], -1).requires_grad_()
    targets = losses.smooth_one_hot(torch.tensor(golden["labels"]), golden["classes"], golden["label_smoothing"])
    loss = losses.SoftCrossEntropyLoss()(logits, targets)
    loss.backward()
    assert targets[0, :10].tolist() == pytest.approx(golden["target_row_0"][:10], rel=1e-6)
    assert float(loss.detach()) == pytest.approx(golden["loss"], rel=1e-5)
    assert logits.grad[0, :10].tolist() == pytest.approx(golden["grad_row_0"][:10], rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("golden", COMPONENTS["mixup"], ids=lambda golden: str(golden["alpha"]))
def test_mixup(golden):
    """One weight for a batch from Beta(alpha, alpha); inputs and soft targets are mixed with it."""
    weight, partners = losses.draw_mixup(golden["batch"], golden["alpha"], np.random.RandomState(golden["numpy_seed"]))
    assert weight == pytest.approx(golden["lambda"], rel=1e-12)
    assert sorted(partners.tolist()) == list(range(golden["batch"]))
    partners = torch.tensor(golden["permutation"])  # upstream draws it from torch, whose stream is not ours
    inputs = make_input(golden["batch"], 2, 2, seed=golden["numpy_seed"])
    targets = losses.smooth_one_hot(torch.tensor(golden["labels_in"]), golden["classes"], golden["label_smoothing"])
    mixed = losses.mixup(targets, weight, partners)
    assert losses.mixup(inputs, weight, partners)[0].flatten().tolist() == pytest.approx(golden["mixed_sample_0"], rel=1e-5)
    assert mixed[0].tolist() == pytest.approx(golden["mixed_target_0"], rel=1e-5, abs=1e-7)
    assert mixed.argmax(1).tolist() == golden["hard_labels_out"]


@pytest.mark.parametrize("golden", COMPONENTS["topk_errors"], ids=lambda golden: str(len(golden["labels"])))
def test_topk_errors(golden):
    """Top-1 and top-5 errors of a batch."""
    batch, _, classes, seed = [int(word.split("=")[-1]) for word in golden["logits"][len("make_input("):].split(",")[:4]]
    logits = make_input(batch, 1, classes, seed=seed, channels=1).view(batch, classes)
    tally = meters.Tally("a batch")
    tally.add(torch.tensor(0.0), logits, torch.tensor(golden["labels"]))
    tally.fetch()
    assert [100.0 - tally.top1.avg, 100.0 - tally.top5.avg] == pytest.approx([golden["top1_err"], golden["top5_err"]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_precise_bn(dtype):
    """After the pass the statistics are means over the batches, and momentum and mode are as before."""
    golden = COMPONENTS["precise_bn"]
    configure(golden["config_keys"])
    model = EffNet()
    model.load_state_dict(fill_state_dict(model.state_dict()))
    model = model.to(getattr(torch, dtype)).train()
    inputs = [make_input(golden["batch"], golden["height"], golden["width"], seed=300 + i).to(getattr(torch, dtype))
              for i in range(golden["batches_offered"])]
    count = net.precise_bn_batches(len(inputs))
    assert count == golden["batches_used"]
    net.compute_precise_bn_stats(model, inputs[:count])
    relative = {"float32": 1e-4, "float64": 1e-6}[dtype]
    for layer in golden[dtype]["layers"]:
        bn = dict(model.named_modules())[layer["name"]]
        assert bn.running_mean[:8].tolist() == pytest.approx(layer["running_mean"], rel=relative, abs=1e-6)
        assert bn.running_var[:8].tolist() == pytest.approx(layer["running_var"], rel=relative)
        assert bn.momentum == layer["momentum_after"] and int(bn.num_batches_tracked) == layer["num_batches_tracked"]
    assert model.training
    with torch.no_grad():
        logits = model.eval()(picture(golden["eval_input"], getattr(torch, dtype)))
    assert_logits(logits, golden[dtype]["eval_logits_after"], {"float32": 1e-3, "float64": 1e-6}[dtype])


# ---- pictures --------------------------------------------------------------------------------------------------------------

def to_network(pixels, shift=None):
    """Take one transformed picture the way of a batch: in bytes or floats, with its colour jitter, normalised on the device."""
    batch = (torch.from_numpy(np.stack([pixels])).permute(0, 3, 1, 2), torch.zeros(1), [])
    batch += () if shift is None else (torch.from_numpy(shift[None]),)
    return list(data.DeviceBatches([batch], CPU, transforms.MEAN, transforms.STD))[0][0][0].numpy()


def assert_picture(array, golden, atol, mean_atol):
    assert list(array.shape) == golden["shape"] and str(array.dtype) == golden["dtype"]
    for position, value in golden["samples"]:
        assert float(array[tuple(position)]) == pytest.approx(value, rel=0, abs=atol), position
    assert array.mean(dtype=np.float64) == pytest.approx(golden["mean"], rel=0, abs=mean_atol)


def original(spec):
    return Image.fromarray(make_image(spec["width"], spec["height"], spec["seed"]))


# In floating point the numbers are upstream's; in bytes no pixel is as much as 1 of 255 apart, nor the mean 0.2 (OpenCV's bytes are 0.12
# too dark on the average), here as the network sees them.
each_arithmetic = pytest.mark.parametrize("in_float, atol, mean_atol", [
    (True, 5e-4, 5e-4), (False, 1 / (255 * 0.224), 0.2 / (255 * 0.224))], ids=["float", "bytes"])


@pytest.mark.parametrize("golden", VARIANTS["EN-B3"]["transforms"] + VARIANTS["EN-B0"]["transforms"],
                         ids=lambda golden: "%(test_im_size)d" % golden)
@each_arithmetic
def test_evaluation_transform(golden, in_float, atol, mean_atol):
    """BGR order, bilinear without antialiasing, the centre, the normalisation: published weights expect these."""
    pixels = transforms.eval_transform(original(golden["image"]), golden["test_im_size"], golden["train_im_size"], in_float)
    assert pixels.dtype == (np.float32 if in_float else np.uint8)
    assert_picture(to_network(pixels), golden, atol, mean_atol)


@pytest.mark.parametrize("golden", COMPONENTS["train_pipeline"], ids=lambda golden: "%(train_im_size)d" % golden)
@each_arithmetic
def test_training_transform(golden, in_float, atol, mean_atol):
    """Crop, flip, jitter and normalisation of training, draw for draw."""
    pixels, shift = transforms.train_transform(original(golden["image"]), golden["train_im_size"], golden["seed"], in_float=in_float)
    assert_picture(to_network(pixels, shift), golden, atol, mean_atol)


@pytest.mark.parametrize("golden", COMPONENTS["resize_and_crop_sizes"], ids=lambda golden: "%(width)dx%(height)d" % golden)
def test_evaluation_sizes(golden):
    """The resized size is computed as upstream computes it, truncation in double included."""
    size = transforms.short_side_size(golden["height"], golden["width"], golden["test_im_size"])
    assert size == (golden["resized_height"], golden["resized_width"])
    image = Image.new("RGB", (golden["width"], golden["height"]))
    cropped = transforms.eval_transform(image, golden["test_im_size"], golden["train_im_size"])
    assert cropped.shape == (golden["output_height"], golden["output_width"], 3)


@pytest.mark.parametrize("golden", COMPONENTS["random_sized_crop"], ids=lambda golden: "%(width)dx%(height)d" % golden)
def test_random_crops(golden):
    """The boxes are upstream's for the same random numbers: uniform aspect ratio, last offset never drawn."""
    rng = np.random.RandomState(golden["numpy_seed"])
    for wanted in golden["boxes_x_y_w_h"]:
        y, x, height, width = (transforms.random_box(golden["height"], golden["width"], rng)
                               or (0, 0, golden["height"], golden["width"]))
        assert [x, y, width, height] == wanted


@pytest.mark.parametrize("golden", COMPONENTS["lighting"], ids=lambda golden: str(golden["numpy_seed"]))
def test_lighting(golden):
    """The colour jitter's offsets, red first."""
    offset = transforms.lighting(np.random.RandomState(golden["numpy_seed"]), golden["std"])
    assert offset.tolist() == pytest.approx(golden["rgb_offset"], rel=1e-6)


def augmented_original():
    return make_image(64, 48, 5) // 2 + 40


@pytest.mark.parametrize("golden", COMPONENTS["augment_ops"], ids=lambda golden: "%(op)s %(value)s" % golden)
def test_augment_operation(golden):
    """Each operation of AutoAugment and RandAugment, at one strength of either sign."""
    assert augment.OPERATIONS[golden["op"]][3] == golden["negate"]
    assert list(augment.OPERATIONS[golden["op"]][1:3]) == [golden["min"], golden["max"]]

    class Sign(object):
        def random(self):
            return 1.0 if golden["value"] < 0 else 0.0

    image = augment.apply_op(Image.fromarray(augmented_original()), golden["op"], 1.0, golden["magnitude"], Sign())
    assert_picture(np.asarray(image), golden, 2, 1)


@pytest.mark.parametrize("golden", COMPONENTS["augment_policies"], ids=lambda golden: "%(augment)s %(seed)d" % golden)
def test_augment_policy(golden):
    """AutoAugment's policies and RandAugment's draws, in upstream's order of random numbers."""
    array = augment.augment(augmented_original(), augment.parse_spec(golden["augment"]),
                            np.random.RandomState(golden["seed"]), random.Random(golden["seed"]))
    assert_picture(array, golden, 2, 1)

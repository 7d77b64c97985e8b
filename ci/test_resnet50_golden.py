"""ResNet50 against the numbers of upstream's own code, ci/golden/ResNet50.json."""
import collections
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

import fill
import recipe
import resnet
from common import data, distributed, meters, transforms
from common.device import import_torchvision
from conftest import CI, load_script

GOLDEN = json.load(open(os.path.join(CI, "golden", "ResNet50.json")))
VARIANTS = {variant["arch"]: variant for variant in GOLDEN["variants"]}
ARCHS = sorted(VARIANTS)
RECIPES = {
    "upstream": dict(smoothing=0.0, form="uniform", no_decay="none"),
    "1p": dict(smoothing=0.1, form="uniform", no_decay="bias"),
    "8p": dict(smoothing=0.1, form="off-class", no_decay="bn"),
}


def filled(arch, zero_gammas=False):
    model = getattr(resnet, arch)()
    model.load_state_dict(fill.fill_state_dict(model.state_dict()))
    if zero_gammas:
        resnet.zero_last_gammas(model)
    return model


@pytest.mark.parametrize("arch", ARCHS)
def test_keys_shapes_and_order(arch):
    """Upstream checkpoints load without renaming."""
    state = getattr(resnet, arch)().state_dict()
    described = [[key, list(tensor.shape), str(tensor.dtype).replace("torch.", "")] for key, tensor in state.items()]
    assert described == VARIANTS[arch]["state_dict"]
    assert sum(p.numel() for p in getattr(resnet, arch)().parameters()) == VARIANTS[arch]["num_parameters"]


@pytest.mark.parametrize("arch, entries", [("resnet18", 122), ("resnet34", 218), ("resnet50", 320), ("resnet101", 626)])
def test_number_of_entries(arch, entries):
    """Every depth has the checkpoint entries that torchvision's has."""
    assert len(getattr(resnet, arch)().state_dict()) == entries


@pytest.mark.parametrize("arch", ARCHS)
def test_logits(arch):
    """The forward pass, the stride of a bottleneck in its 3x3 convolution included."""
    golden = VARIANTS[arch]["eval_logits"]
    shape = VARIANTS[arch]["eval_input"]
    with torch.no_grad():
        logits = filled(arch).eval()(fill.make_input(shape["batch"], shape["height"], shape["width"], shape["seed"]))
    for row, first, total, norm, top in zip(logits, golden["first16"], golden["sum"], golden["l2"], golden["argmax"]):
        assert np.allclose(row[:16].numpy(), first, rtol=0, atol=1e-3 * norm)
        assert abs(float(row.double().norm()) - norm) < 1e-3 * norm
        assert abs(float(row.double().sum()) - total) < 1e-3 * norm
        assert int(row.argmax()) == top


def trace(model, which, setup, rate, steps, accumulate=1):
    """Return the losses of `steps` training batches, with an update after every `accumulate` of them."""
    criterion = recipe.SmoothedCrossEntropy(which["smoothing"], which["form"])
    optimizer = torch.optim.SGD(recipe.parameter_groups(model, which["no_decay"], 1e-4), rate, momentum=0.9)
    model.train()
    losses = []
    for step in range(steps):
        images = fill.make_input(setup["batch"], setup["height"], setup["width"], setup["input_seed0"] + step)
        target = fill.make_target(setup["batch"], setup["classes"], setup["target_seed0"] + step)
        loss = criterion(model(images.to(next(model.parameters()).dtype)), target)
        (loss / accumulate).backward()
        if (step + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def norms(model):
    """Return the L2 norms of all parameters and of all running statistics."""
    def norm(tensors):
        return float(torch.cat([tensor.detach().double().flatten() for tensor in tensors]).norm())
    return norm(model.parameters()), norm([b for name, b in model.named_buffers() if "num_batches" not in name])


def compare(model, losses, golden, rtol):
    assert np.allclose(losses, golden["losses"], rtol=rtol)
    assert np.allclose(norms(model), (golden["param_l2"], golden["buffer_l2"]), rtol=rtol)


@pytest.mark.parametrize("name", sorted(RECIPES))
@pytest.mark.parametrize("arch", ARCHS)
def test_training_in_float64(arch, name):
    """Loss, weight decay groups, momentum and learning rate of each recipe over five updates: the tight proof."""
    golden, setup = VARIANTS[arch]["train_losses"][name], VARIANTS[arch]["train_setup"]
    model = filled(arch).double()
    losses = trace(model, RECIPES[name], setup, golden["lr_value"], setup["steps"])
    compare(model, losses, golden["filled_float64"], 1e-6)


@pytest.mark.parametrize("name", sorted(RECIPES))
@pytest.mark.parametrize("arch", ARCHS)
def test_training_in_float32(arch, name):
    """The same in the precision that trainings use, from residual blocks that start as the identity."""
    golden, setup = VARIANTS[arch]["train_losses"][name], VARIANTS[arch]["train_setup"]
    model = filled(arch, zero_gammas=True)
    losses = trace(model, RECIPES[name], setup, golden["lr_value"], setup["steps"])
    compare(model, losses, golden["filled_zero_gamma_float32"], golden["filled_zero_gamma_float32"]["rtol"])


@pytest.mark.parametrize("name", sorted(RECIPES))
@pytest.mark.parametrize("arch", ARCHS)
def test_first_loss_of_filled_weights(arch, name):
    """The loss before any update, from plainly filled weights."""
    golden, setup = VARIANTS[arch]["train_losses"][name], VARIANTS[arch]["train_setup"]
    losses = trace(filled(arch), RECIPES[name], setup, golden["lr_value"], steps=1)
    assert np.allclose(losses, golden["filled_float32"]["losses"][:1], rtol=1e-4)


@pytest.mark.parametrize("arch", ARCHS)
def test_gradient_accumulation(arch):
    """Gradients of two batches are averaged into one update."""
    golden, setup = VARIANTS[arch]["train_accumulated"], VARIANTS[arch]["train_setup"]
    model = filled(arch, zero_gammas=True)
    rate = VARIANTS[arch]["train_losses"][golden["recipe"]]["lr_value"]
    losses = trace(model, RECIPES[golden["recipe"]], setup, rate, golden["micro_steps"], golden["accumulate"])
    compare(model, losses, golden, 1e-3)


@pytest.mark.parametrize("arch", ARCHS)
def test_weight_decay_groups(arch):
    """Which parameters each recipe spares, the shortcuts' BatchNorms of the eight-card recipe included."""
    for name, golden in VARIANTS[arch]["no_decay"].items():
        model = getattr(resnet, arch)()
        groups = recipe.parameter_groups(model, RECIPES[name]["no_decay"], 1e-4)
        sizes = {group["weight_decay"]: len(group["params"]) for group in groups}
        assert sizes.get(0.0, 0) == golden["count"] and sizes[1e-4] == golden["rest"]
        named = dict((id(p), n) for n, p in model.named_parameters())
        decaying = [named[id(p)] for group in groups if group["weight_decay"] for p in group["params"]]
        assert set(golden.get("normalisation_parameters_that_decay_all_the_same", [])) <= set(decaying)


@pytest.mark.parametrize("arch", ARCHS)
def test_initialisation(arch):
    """Standard deviations of the initial weights, the zeroed gammas, and the normal classifier of the 1p recipe."""
    torch.manual_seed(0)
    golden = VARIANTS[arch]
    model = getattr(resnet, arch)()
    own = dict(model.named_parameters())
    for name, std in golden["init_std"]["conv"]:
        assert abs(float(own[name].std()) / std - 1) < 0.06 and abs(float(own[name].mean())) < 0.1 * std
    bound = golden["init_std"]["fc_weight_default_uniform_bound"]
    assert 0.99 * bound < float(own["fc.weight"].abs().max()) <= bound
    assert float(own["fc.bias"].abs().max()) <= golden["init_std"]["fc_bias_uniform_bound"]
    assert all(float(own[name].detach().min()) == 1 for name in golden["zeroed_gammas"])
    resnet.zero_last_gammas(model)
    assert sorted(name for name, p in own.items() if float(p.detach().abs().max()) == 0 and name.endswith("weight")) == sorted(
        golden["zeroed_gammas"])
    resnet.normal_classifier(model)
    assert abs(float(own["fc.weight"].std()) / golden["init_std"]["fc_weight_1p_normal_std"] - 1) < 0.02


@pytest.mark.parametrize("golden", GOLDEN["lr_schedule"], ids=lambda golden: golden["name"])
def test_learning_rate(golden):
    """The learning rate of every epoch in the table, warm-up included."""
    for epoch, rate in golden["epoch_lr"]:
        ours = recipe.learning_rate(epoch, golden["schedule"], golden["base_lr"], golden["warmup"], golden["epochs"])
        assert np.isclose(ours, rate, rtol=1e-9)


@pytest.mark.parametrize("arguments, batch, rate", [(["-b", "512"], 512, 0.2), (["-b", "4096"], 4096, 1.6), ([], 256, 0.1)])
def test_base_rate_follows_the_batch(arguments, batch, rate):
    """One rule, 0.1 x batch / 256, gives the base rate of all three recipes."""
    main = load_script("ResNet50/main.py")
    args = main.checked(main.parser().parse_args(["--data", "x"] + arguments))
    assert args.batch_size == batch and np.isclose(args.lr, rate)


@pytest.mark.parametrize("golden", GOLDEN["losses"], ids=lambda golden: golden["logits"][:18])
def test_losses_and_their_gradients(golden):
    """Cross entropy, both forms of label smoothing, and soft targets."""
    rows, classes, seed, factor = (4, 10, 31, 3) if "31" in golden["logits"] else (8, 1000, 33, 2)
    target = fill.make_target(rows, classes, seed + 1)
    assert target.tolist() == golden["target_values"]
    one_hot = torch.zeros(rows, classes).scatter_(1, target.unsqueeze(1), 1.0)
    soft = 0.7 * one_hot + 0.3 * one_hot[torch.arange(rows) - 1]
    cases = {"cross_entropy": (0.0, "uniform", target), "uniform_form": (golden["smoothing"], "uniform", target),
             "offclass_form": (golden["smoothing"], "off-class", target), "soft_target_form": (golden["smoothing"], "uniform", soft)}
    for name, (smoothing, form, wanted) in cases.items():
        logits = (fill.make_input(rows, 1, 1, seed=seed, channels=classes).view(rows, classes) * factor).requires_grad_()
        loss = recipe.SmoothedCrossEntropy(smoothing, form)(logits, wanted)
        loss.backward()
        assert np.isclose(float(loss), golden[name]["loss"], rtol=1e-5), name
        assert np.isclose(float(logits.grad.norm()), golden[name]["grad_l2"], rtol=1e-5), name
        assert np.allclose(logits.grad[0, :8].numpy(), golden[name]["grad_first8"], rtol=1e-4, atol=1e-8), name


def described(array, golden, atol):
    flat = np.asarray(array, dtype=np.float64).ravel()
    assert list(np.shape(array)) == golden["shape"]
    assert np.isclose(flat.mean(), golden["mean"], atol=max(atol, 1e-9)) and np.isclose(flat.std(), golden["std"], atol=max(atol, 1e-6))
    for index, value in golden["samples"]:
        assert abs(flat[index] - value) <= atol


def normalized(array):
    """Send one uint8 array (height, width, 3) through the collation and the normalisation of a training."""
    batch = torch.from_numpy(array[None].copy()).permute(0, 3, 1, 2), torch.zeros(1), []
    return next(iter(data.DeviceBatches([batch], torch.device("cpu"))))[0][0]


@pytest.mark.parametrize("golden", GOLDEN["transforms"]["eval"], ids=lambda golden: str(golden["resized_size"]))
def test_evaluation_transform(golden):
    """Shorter side to 256, centre crop 224, normalisation on the device: to the last bit in uint8, 1e-5 after."""
    image = Image.fromarray(fill.make_image(**golden["image"]))
    resized = transforms.resize_shorter(image, 256)
    assert list(resized.size) == golden["resized_size"]
    cropped = np.asarray(transforms.center_crop(resized, 224))
    described(cropped.transpose(2, 0, 1), golden["eval_uint8"], 0)
    described(np.asarray(transforms.center_crop(resized, 256)), golden["infer_bin_256_hwc_uint8"], 0)
    described(normalized(cropped).numpy(), golden["eval_host"], 1e-5)
    described(normalized(cropped).numpy(), golden["eval_device_normalised"], 1e-5)


@pytest.mark.parametrize("width, height", [(500, 375), (375, 500), (300, 1000), (1000, 300), (80, 60)])
def test_every_pixel_of_the_evaluation_crop_is_torchvisions(width, height):
    """Upstream's evaluation is torchvision's resize and centre crop: the whole crop is the same, byte for byte."""
    theirs = import_torchvision().transforms
    image = Image.fromarray(fill.make_image(width, height, seed=4))
    wanted = np.asarray(theirs.CenterCrop(224)(theirs.Resize(256)(image)))
    assert np.array_equal(transforms.eval_transform(224, 256)(image, None), wanted) and wanted.std() > 30


@pytest.mark.parametrize("golden", GOLDEN["transforms"]["train_fixed_box"], ids=lambda golden: str(golden["flip"]))
def test_training_crop(golden):
    """Crop, bilinear resize to 224 and flip of a given box."""
    top, left, height, width = golden["box_top_left_height_width"]
    image = Image.fromarray(fill.make_image(**golden["image"]))
    array = np.asarray(transforms.crop_and_resize(image, (left, top, left + width, top + height), 224))
    out = normalized(array[:, ::-1] if golden["flip"] else array).numpy()
    assert np.isclose(out.mean(), golden["out"]["mean"], atol=1e-3) and np.isclose(out.std(), golden["out"]["std"], atol=1e-3)
    for index, value in golden["out"]["samples"]:
        assert abs(out.ravel()[index] - value) < 0.02


@pytest.mark.parametrize("golden", GOLDEN["accuracy"], ids=lambda golden: golden["target"])
def test_accuracy(golden):
    """Top-1 and top-5 in per cent, from a non-contiguous top-k result too (defect 17)."""
    rows, classes, seed = (40, 10, 41) if "41" in golden["logits"] else (64, 20, 43)
    logits = fill.make_input(rows, 1, 1, seed=seed, channels=classes).view(rows, classes)
    tally = meters.Tally("a batch")
    tally.add(torch.tensor(0.0), logits, fill.make_target(rows, classes, seed + 1))
    tally.fetch()
    assert np.allclose([tally.top1.avg, tally.top5.avg], [golden["acc1"], golden["acc5"]], rtol=1e-6)


@pytest.mark.parametrize("rows, classes, raised", [(64, 20, 1.0), (96, 1000, 3.0)])
def test_accuracy_is_that_of_a_ranking(rows, classes, raised):
    """With labels that are often right: as many hits as there are rows in which fewer than one (or five) outputs exceed the label's."""
    target = fill.make_target(rows, classes, seed=46)
    logits = fill.make_input(rows, 1, 1, seed=45, channels=classes).view(rows, classes)
    logits[torch.arange(rows), target] += raised
    exceeding = (logits.numpy() > logits.numpy()[np.arange(rows), target.numpy()][:, None]).sum(1)
    wanted = [100.0 * (exceeding < 1).mean(), 100.0 * (exceeding < 5).mean()]
    assert 10 < wanted[0] < wanted[1] < 90
    tally = meters.Tally("a batch")
    tally.add(torch.tensor(0.0), logits, target)
    tally.fetch()
    assert np.allclose([tally.top1.avg, tally.top5.avg], wanted, rtol=1e-6)


def test_average_meter():
    """The average counts every update, from the first on (the port skips ten: defect 3)."""
    meter = meters.AverageMeter("x")
    for (value, count), average in zip(GOLDEN["meters"]["updates_value_count"], GOLDEN["meters"]["upstream"]):
        meter.update(value, count)
        assert np.isclose(meter.avg, average, rtol=1e-6)


@pytest.mark.parametrize("ranks, golden", [(1, GOLDEN["log_lines"]["upstream"]), (1, GOLDEN["log_lines"]["1p"]),
                                           (8, GOLDEN["log_lines"]["8p"])], ids=["upstream", "1p", "8p"])
def test_log_lines(ranks, golden):
    """Progress lines are upstream's to the letter; with several ranks they begin with the device."""
    main = load_script("ResNet50/main.py")
    shown = []
    for name, form, value in [("Time", ":6.3f", 0.432), ("Data", ":6.3f", 0.012), ("Loss", ":.4e", 6.9078),
                              ("Acc@1", ":6.2f", 12.5), ("Acc@5", ":6.2f", 33.75)]:
        meter = meters.AverageMeter(name, form)
        meter.update(value)
        shown.append(meter)
    npu = collections.namedtuple("Device", "type index")("npu", 0)
    rank = distributed.Rank(0, ranks, 0, npu)
    assert [main.line(rank, "Epoch: [7]", 40, 2502, *shown), main.line(rank, "Test: ", 5, 98, shown[0], *shown[2:])] == golden


@pytest.mark.parametrize("golden", GOLDEN["distributed"], ids=lambda golden: "%(nnodes)d nodes, %(device_list)s" % golden)
def test_ranks_and_their_shares(golden, monkeypatch):
    """Device, rank, batch and workers of each process, on one machine and on several."""
    monkeypatch.setattr("common.device.count", lambda kind: 8)
    main = load_script("ResNet50/main.py")
    args = main.checked(main.parser().parse_args([
        "--data", "x", "--device", "npu", "--multiprocessing-distributed", "--device-list", golden["device_list"], "--world-size",
        str(golden["nnodes"]), "--rank", str(golden["node_rank"]), "--addr", "127.0.0.1", "--batch-size", str(golden["batch_size"]),
        "--workers", str(golden["workers"])]))
    layout = main.device_layout(args)
    main.flags.divide(args, layout)
    assert layout.world_size == golden["world_size"]
    ours = [{"local": k, "device": device, "rank": layout.rank(k)} for k, device in enumerate(layout.indices)]
    assert ours[:len(golden["processes"])] == golden["processes"]
    assert (args.batch_per_rank, args.workers_per_rank) == (golden["batch_per_card"], golden["workers_per_card"])


def test_trains_like_torchvision_names():
    """Any network of torchvision can be named, beside our own."""
    main = load_script("ResNet50/main.py")
    assert main.torchvision_network("squeezenet1_0", num_classes=7).num_classes == 7

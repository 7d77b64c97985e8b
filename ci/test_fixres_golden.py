"""FixRes against upstream's numbers: networks, training steps of both phases, samplers, learning rates, pictures."""
import copy
import json
import os
import random

import numpy as np
import pytest
import torch
from PIL import Image

from common.cli import UserError
from common.device import import_torchvision
from common.meters import Tally
from fill import fill_state_dict, make_image, make_input, make_target
from imnet_common import networks, transforms
from imnet_common.batches import SequenceBatches
from imnet_common.resnext import ResNeXt
from imnet_common.schedule import base_learning_rate, learning_rate, sgd
from imnet_finetune.adaptation import freeze, set_finetune_mode
from imnet_finetune.samplers import FixedOrderSampler
from imnet_resnet50_scratch.samplers import RASampler

with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden", "FixRes.json")) as stream:
    GOLDEN = json.load(stream)
VARIANTS = {variant["arch"]: variant for variant in GOLDEN["variants"]}
ARCHITECTURES = {"resnet50": "ResNet50", "pnasnet5large": "PNASNet", "tf_efficientnet_b0_ap": "EfficientNet",
                 "resnext101_32x48d": "IGAM_Resnext101_32x48d"}
slow = pytest.mark.slow


# --- networks ---------------------------------------------------------------------------------------------------------

def built(arch):
    if arch == "tf_efficientnet_b0_ap":
        import_torchvision()
        pytest.importorskip("timm")
    return networks.build(ARCHITECTURES[arch])


def filled(arch, calibrate=None, tame=False, dtype="float32"):
    """Return the network with the golden weights, prepared as the golden file's note says."""
    model = built(arch)
    model.load_state_dict(fill_state_dict(model.state_dict()))
    for name, parameter in model.named_parameters():
        if tame and name.endswith("bn3.weight"):
            parameter.data.mul_(0.1)
    if calibrate:
        collect_statistics(model, make_input(**calibrate))
    return model.double() if dtype == "float64" else model


def collect_statistics(model, images):
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    for dropout in dropouts:
        dropout.p = 0
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    with torch.no_grad():
        model(images)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


@pytest.mark.parametrize("arch", ["resnet50", "pnasnet5large", "tf_efficientnet_b0_ap", "resnext101_32x48d"])
def test_names_and_shapes_are_upstreams(arch):
    """Upstream's checkpoints load without renaming."""
    if arch == "resnext101_32x48d":
        if not hasattr(torch, "get_default_device"):
            pytest.skip("3.3 GB without PyTorch's meta device")
        with torch.device("meta"):
            model = built(arch)
    else:
        model = built(arch)
    entries = [[key, list(value.shape), str(value.dtype).split(".")[1]] for key, value in model.state_dict().items()]
    assert entries == VARIANTS[arch]["state_dict"]
    assert sum(parameter.numel() for parameter in model.parameters()) == VARIANTS[arch]["num_parameters"]


EVALS = [("resnet50", number) for number in range(4)] + [("tf_efficientnet_b0_ap", number) for number in range(2)]
EVALS += [pytest.param("pnasnet5large", 0, marks=slow), ("pnasnet5large", 1)]
EVALS += [pytest.param("resnext101_32x48d", number, marks=slow) for number in range(2)]


@pytest.mark.parametrize("arch,number", EVALS)
def test_evaluation_gives_upstreams_logits(arch, number):
    """The forward pass of every network is upstream's, at every resolution of the golden file."""
    golden = VARIANTS[arch]["eval"][number]
    model = filled(arch, golden["calibrate"]).eval()
    found = {}
    for name in golden["probes"]:
        getattr(model, name).register_forward_hook(lambda _, __, output, name=name: found.update({name: output.double()}))
    with torch.no_grad():
        logits = model(make_input(**golden["eval_input"])).double()
    wanted = golden["eval_logits"]
    row_l2 = torch.tensor(wanted["row_l2"]).double()
    first = torch.tensor(wanted["first_16"]).double()
    assert list(logits.shape) == wanted["shape"] and logits.argmax(1).tolist() == wanted["argmax"]
    assert ((logits[:, :16] - first).abs().max(1)[0] <= 1e-3 * row_l2 / 1000 ** 0.5).all()
    assert ((logits.sum(1) - torch.tensor(wanted["row_sum"]).double()).abs() <= 1e-3 * row_l2).all()
    assert logits.norm(dim=1).tolist() == pytest.approx(wanted["row_l2"], rel=1e-3)
    for name, probe in golden["probes"].items():
        assert list(found[name].shape) == probe["shape"]
        assert found[name].flatten(1).norm(dim=1).tolist() == pytest.approx(probe["l2_per_sample"], rel=1e-3)


def test_resnext_is_torchvisions():
    """The small sister of ResNeXt-101 32x48d, whose own golden run needs 4 GB, agrees with torchvision's bit by bit."""
    theirs = getattr(import_torchvision().models, "resnext50_32x4d", None)
    if theirs is None:
        pytest.skip("this torchvision has no ResNeXt")
    ours, theirs = ResNeXt([3, 4, 6, 3], groups=32, base_width=4).eval(), theirs().eval()
    state = fill_state_dict(ours.state_dict())
    ours.load_state_dict(state)
    theirs.load_state_dict(state)
    images = make_input(2, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


# --- training steps ---------------------------------------------------------------------------------------------------

def train_cases():
    default = {("resnet50", 3), ("resnet50", 5), ("tf_efficientnet_b0_ap", 0)}
    return [pytest.param(arch, number, marks=[] if (arch, number) in default else slow)
            for arch, variant in VARIANTS.items() for number in range(len(variant.get("train", ())))]


def evaluation_losses(model, setting):
    model.eval()
    losses = []
    for number, size in enumerate(setting["val_sizes"]):
        images = make_input(size, setting["height"], setting["width"], seed=300 + number)
        targets = make_target(size, 1000, seed=400 + number)
        with torch.no_grad():
            losses.append(torch.nn.functional.cross_entropy(model(images.to(model_dtype(model))), targets).item())
    return losses


def model_dtype(model):
    return next(model.parameters()).dtype


def prepared(arch, setting):
    """Return (model, optimizer, what sets the modes of an epoch) as the entry script of the phase makes them."""
    model = filled(arch, setting["calibrate"], setting.get("tame"), setting["dtype"])
    if setting["phase"] == "finetune":
        freeze(model, ARCHITECTURES[arch])
    rate = setting.get("override_lr") or base_learning_rate(setting["base_lr"], setting["config_batch"], setting["num_tasks"])
    optimizer = sgd(model, learning_rate(rate, epoch=0))

    def set_mode():
        if setting["phase"] == "finetune":
            set_finetune_mode(model, ARCHITECTURES[arch])
        else:
            model.train()
    return model, optimizer, set_mode


def run_steps(arch, setting):
    """Train as the golden run did, and return the numbers that its record may hold."""
    model, optimizer, set_mode = prepared(arch, setting)
    found = {"learning_rate": optimizer.param_groups[0]["lr"], "param_groups": len(optimizer.param_groups)}
    for key in ("momentum", "weight_decay", "nesterov", "dampening"):
        found[key] = optimizer.param_groups[0][key]
    found["trainable_parameters"] = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if setting["phase"] == "finetune":
        found["eval_losses_before"] = evaluation_losses(model, setting)
    before = copy.deepcopy(model.state_dict())
    set_mode()
    found["modules_in_train_mode_during_training"] = training_leaves(model, whole_children=arch.startswith("tf_"))
    found["train_losses"] = []
    for step in range(setting["steps"]):
        images = make_input(setting["batch"], setting["height"], setting["width"], seed=setting["input_seed"] + step)
        targets = make_target(setting["batch"], 1000, seed=setting["target_seed"] + step)
        loss = torch.nn.functional.cross_entropy(model(images.to(model_dtype(model))), targets)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
            found["first_step_gradient_l2"] = {name: gradient.double().norm().item() for name, gradient in gradients.items()}
            found["parameters_with_gradient"] = list(gradients)
            found["number_of_parameters_with_gradient"] = len(gradients)
        optimizer.step()
        found["train_losses"].append(loss.item())
    after = model.state_dict()
    found["param_l2_after"] = sum(p.double().pow(2).sum().item() for p in model.parameters()) ** 0.5
    found["tensor_l2_after"] = {name: value.double().norm().item() for name, value in after.items()}
    found["eval_losses_after"] = evaluation_losses(model, setting)
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    found["state_dict_entries_changed_by_training"] = changed
    found["number_of_state_dict_entries_changed"] = len(changed)
    found["checkpoint_optimizer_momentum_buffers"] = sum(
        state.get("momentum_buffer") is not None for state in optimizer.state_dict()["state"].values())
    return found


def training_leaves(model, whole_children):
    """Return the modules without children that are in train mode; newer timm's BatchNorm has some where 0.3.2's had none."""
    leaves = [name for name, module in model.named_modules() if module.training and not list(module.children())]
    return sorted(set(name.split(".")[0] for name in leaves), key=["conv_head", "bn2", "classifier"].index) if whole_children else leaves


def close(found, wanted, rtol):
    if isinstance(wanted, dict):
        return all(close(found[key], value, rtol) for key, value in wanted.items())
    return found == pytest.approx(wanted, rel=rtol)


@pytest.mark.parametrize("arch,number", train_cases())
def test_training_steps_are_upstreams(arch, number):
    """Losses, gradients, modes, frozen and changed entries of five steps are those of upstream's own trainer."""
    golden = VARIANTS[arch]["train"][number]
    setting, result = golden["setting"], golden["result"]
    found = run_steps(arch, setting)
    checked = set(key for key in result if not key.startswith("checkpoint_") or key in found)
    rtol = 1e-6 if setting["dtype"] == "float64" else 1e-3
    if setting.get("unsteady"):  # chaotic in float32 after the first loss, as the file says
        assert close(found["train_losses"][0], result["train_losses"][0], 1e-3)
        checked -= {"train_losses", "param_l2_after", "tensor_l2_after", "eval_losses_after"}
    for key in sorted(checked):
        if isinstance(result[key], list) and result[key] and isinstance(result[key][0], str):
            assert found[key] == result[key], key
        else:
            wide = rtol == 1e-3 and key in ("first_step_gradient_l2", "eval_losses_after")
            assert close(found[key], result[key], 2e-3 if wide else rtol), (key, found[key], result[key])


# --- samplers and learning rates --------------------------------------------------------------------------------------

def check_sequence(indices, wanted):
    if "indices" in wanted:
        assert indices == wanted["indices"]
        return
    assert indices[:24] == wanted["first_24"] and indices[-8:] == wanted["last_8"]
    assert sum(indices) == wanted["sum"] and len(set(indices)) == wanted.get("distinct", len(set(indices)))


@pytest.mark.parametrize("case", GOLDEN["ra_sampler"]["cases"])
def test_repeated_augmentation_sampler(case):
    """Each rank gets upstream's own index sequence in every epoch, in whatever order the epochs are asked for."""
    arguments = [case[key] for key in ("dataset_len", "num_replicas", "rank", "repetitions", "len_factor", "shuffle")]
    if "error" in case["epochs"][0]:
        with pytest.raises(UserError, match="take more images or fewer ranks"):
            RASampler(*arguments)
        return
    sampler = RASampler(*arguments)
    assert (sampler.num_samples, sampler.total_size) == (case["num_samples"], case["total_size"])
    for golden in case["epochs"] + case["epochs"][::-1]:
        check_sequence(sampler.keys(golden["epoch"])[:, 1].tolist(), golden)
    resumed = RASampler(*arguments)
    check_sequence(resumed.keys(case["epochs"][-1]["epoch"])[:, 1].tolist(), case["epochs"][-1])


def test_no_two_copies_of_an_image_are_augmented_alike():
    """Repeated augmentation is worth nothing when the copies get the same crop: every use of an image is a draw of its own."""
    keys = [tuple(key) for rank in range(4) for epoch in range(3) for key in RASampler(23, 4, rank).keys(epoch).tolist()]
    assert len(keys) == len(set(keys)) == 3 * 72


@pytest.mark.parametrize("case", GOLDEN["distributed_sampler"]["cases"])
def test_finetuning_order(case):
    """Fine-tuning gives each rank its own part, in the same order in every epoch."""
    sampler = FixedOrderSampler(case["dataset_len"], case["num_replicas"], case["rank"])
    assert sampler.num_samples == case["num_samples"]
    check_sequence(sampler.indices().tolist(), case)
    for epoch in (0, 3):
        assert sampler.keys(epoch)[:, 1].tolist() == sampler.indices().tolist()


@pytest.mark.parametrize("case", GOLDEN["steps_per_epoch"])
def test_steps_per_epoch(case):
    """An epoch of the first phase is as long as upstream's, which counts images of ImageNet and not of the loader."""
    scratch = RASampler(case["dataset_len"], case["num_tasks"], 0)
    finetune = FixedOrderSampler(case["dataset_len"], case["num_tasks"], 0)
    assert scratch.steps(case["batch_per_card"]) == case["scratch_steps_per_epoch"]
    assert finetune.steps(case["batch_per_card"]) == case["finetune_steps_per_epoch_upstream"]


def test_batches_start_in_the_middle():
    """A resumed epoch takes up the sequence where the interrupted one left it, also behind an incomplete batch's boundary."""
    sampler = RASampler(23, 2, 1)
    batches = SequenceBatches(sampler, batch_size=8)
    batches.set_epoch(1)
    whole = list(batches)
    assert [len(batch) for batch in whole] == [8, 8, 8, 8, 3] and len(batches) == 5
    assert [index for batch in whole for _, index in batch] == sampler.keys(1)[:, 1].tolist()
    batches.set_epoch(1, first_step=3)
    assert list(batches) == whole[3:]


@pytest.mark.parametrize("case", GOLDEN["lr_schedule"])
def test_learning_rates(case):
    """The rule for the base rate and the steps at epochs 30, 60 and 90 are upstream's."""
    base = base_learning_rate(case["flag"], case["batch"], case["tasks"], case["scaled"])
    assert base == pytest.approx(case["base_lr"], rel=1e-12)
    for epoch, rate in case["epoch_lr"]:
        assert learning_rate(base, epoch) == pytest.approx(rate, rel=1e-12)


# --- pictures ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("case", GOLDEN["transforms"])
def test_evaluation_pictures(case):
    """Resize, crop (with black bars on portrait images) and normalisation are upstream's at every resolution."""
    image = Image.fromarray(make_image(**case["image"]))
    make = transforms.eval_pipeline if case["crop"] else transforms.uncropped_pipeline
    pixels = make(case["test_size"])(image, random.Random(0))
    recipe = networks.RECIPES["PNASNet" if case["backbone"] == "pnasnet5large" else "ResNet50"]
    values = (torch.from_numpy(pixels.copy()).double() / 255 - torch.tensor(recipe.mean)) / torch.tensor(recipe.std)
    values = values.permute(2, 0, 1).contiguous()
    wanted = case["output"]
    assert list(values.shape) == wanted["shape"]
    assert values.mean().item() == pytest.approx(wanted["mean"], rel=1e-3)
    assert values.flatten()[wanted["index"]].tolist() == pytest.approx(wanted["value"], rel=1e-3)
    assert values.std().item() == pytest.approx(wanted["std"], rel=1e-3)


@pytest.mark.parametrize("size", [224, 320])
@pytest.mark.parametrize("width,height", [(500, 375), (375, 500), (300, 1000), (1000, 300), (80, 60)])
def test_every_pixel_of_the_crop_is_torchvisions(width, height, size):
    """Whole crops, their black bars and what lies between them, are those of torchvision's resize to upstream's size and centre crop."""
    theirs = import_torchvision().transforms
    resized = int(256 / 224 * size)
    if int(resized * width / height) < size and not hasattr(theirs, "InterpolationMode"):
        pytest.skip("torchvision before 0.9 centres what is too small by another rule")
    image = Image.fromarray(make_image(width, height, seed=4))
    wanted = np.asarray(theirs.CenterCrop(size)(theirs.Resize((resized, int(resized * width / height)))(image)))
    assert np.array_equal(transforms.eval_pipeline(size)(image, None), wanted)
    inside = wanted[:, wanted.any(axis=(0, 2))]  # the columns between the bars
    assert inside.shape[1] == min(size, int(resized * width / height)) and inside.std() > 30


def test_size_before_the_crop():
    """The size before the crop is int(256 / 224 * size), cut off and not rounded."""
    sizes = {128: 146, 160: 182, 224: 256, 288: 329, 320: 365, 384: 438, 480: 548}
    assert {size: transforms.eval_pipeline(size).steps[0].size for size in sizes} == sizes


@pytest.mark.parametrize("case", GOLDEN["resize_target_size"])
def test_resize_sets_the_height(case):
    """Upstream's resize makes the height the given size, not the shorter side."""
    size = transforms.resized_size(case["size"], case["width"], case["height"], largest=case["largest"])
    assert size == (case["out_width"], case["out_height"])


def test_short_side_option():
    """With the usual rule, portrait images fill the crop."""
    assert transforms.resized_size(256, 375, 500, short_side=True) == (256, 341)
    assert transforms.resized_size(256, 500, 375, short_side=True) == (341, 256)
    bars = np.asarray(transforms.eval_pipeline(224)(Image.new("RGB", (375, 500), "white"), None))
    filled_up = np.asarray(transforms.eval_pipeline(224, short_side=True)(Image.new("RGB", (375, 500), "white"), None))
    assert (bars[:, :16] == 0).all() and (bars[:, 16:208] == 255).all() and (filled_up == 255).all()


@pytest.mark.parametrize("case", GOLDEN["transforms_v2"]["shifted_center_crop"])
def test_shifted_crop_draws_as_upstream(case):
    """The second recipe's crop takes the same two draws, in the same order, and falls on the same pixels."""
    generator = np.random.RandomState(case["numpy_seed"])
    crop = transforms.ShiftedCenterCrop(case["size"])
    for (width, height), (top, left, _, _) in zip(case["image_sizes"], case["crop_top_left_height_width"]):
        assert crop.corner(width, height, generator.randint) == (left, top)


def test_pipelines_have_upstreams_steps():
    """Every pipeline does upstream's steps in upstream's order; the device does the last two."""
    def names(pipeline):
        found = [type(step).__name__.replace("Shifted", "") for step in pipeline.steps]
        return found + ["ToTensor", "Normalize"]

    cropped, whole = GOLDEN["transforms_v2"]["pipelines"]["crop=True"], GOLDEN["transforms_v2"]["pipelines"]["crop=False"]
    assert names(transforms.train_pipeline(224)) == cropped["train"] == whole["train"]
    assert names(transforms.eval_pipeline(224)) == cropped["val_test"]
    assert names(transforms.finetune_pipeline_v2(224)) == cropped["val_train"]
    assert names(transforms.uncropped_pipeline(224)) == whole["val"]


def test_training_pictures_depend_on_the_draw_alone():
    """The same draw gives the same picture, another draw another one, and jitter stays within its strength."""
    image = Image.fromarray(make_image(90, 70, seed=4))
    for pipeline in (transforms.train_pipeline(32), transforms.finetune_pipeline_v2(32)):
        first, again, other = (pipeline(image, random.Random(seed)) for seed in (5, 5, 6))
        assert first.shape == (32, 32, 3) and first.dtype == np.uint8
        assert (first == again).all() and (first != other).any()
    gray = Image.new("RGB", (8, 8), (100, 100, 100))
    levels = {int(np.asarray(transforms.ColorJitter(0.3)(gray, random.Random(seed)))[0, 0, 0]) for seed in range(200)}
    assert 70 <= min(levels) < 75 and 125 < max(levels) <= 130


@pytest.mark.parametrize("case", GOLDEN["accuracy"])
def test_accuracy(case):
    """Top-1 and top-5 of batches, and their average over images, are upstream's; batches of any size and layout work."""
    tally = Tally("batches")
    for number, size in enumerate(case["batches"]):
        logits = np.random.RandomState(case["seed"] + number).standard_normal((size, case["classes"])).astype(np.float32)
        targets = make_target(size, case["classes"], case["seed"] + 50 + number)
        tally.add(torch.tensor(0.0), torch.from_numpy(logits), targets)
        tally.fetch()
        assert [tally.top1.val, tally.top5.val] == pytest.approx(case["batch_top1_top5"][number], rel=1e-6)
    assert [tally.top1.avg, tally.top5.avg] == pytest.approx([case["average_top1"], case["average_top5"]], rel=1e-6)


@pytest.mark.parametrize("classes,raised,sizes", [(100, 2.0, (64, 17)), (1000, 3.0, (96, 32, 5))])
def test_accuracy_is_that_of_a_ranking(classes, raised, sizes):
    """With labels that are often right: an image is a hit where fewer than one (or five) outputs exceed its label's."""
    tally, exceeding = Tally("batches"), []
    for number, size in enumerate(sizes):
        logits = np.random.RandomState(60 + number).standard_normal((size, classes)).astype(np.float32)
        targets = make_target(size, classes, seed=70 + number)
        logits[np.arange(size), targets.numpy()] += raised
        exceeding.append((logits > logits[np.arange(size), targets.numpy()][:, None]).sum(1))
        tally.add(torch.tensor(0.0), torch.from_numpy(logits), targets)
        tally.fetch()
        assert [tally.top1.val, tally.top5.val] == pytest.approx([100.0 * (exceeding[-1] < k).mean() for k in (1, 5)], rel=1e-6)
    wanted = [100.0 * (np.concatenate(exceeding) < k).mean() for k in (1, 5)]
    assert 10 < wanted[0] < wanted[1] < 90
    assert [tally.top1.avg, tally.top5.avg] == pytest.approx(wanted, rel=1e-6)

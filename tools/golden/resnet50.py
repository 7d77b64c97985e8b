"""ResNet50's golden numbers: networks that upstream names (torchvision's), and meters, lines, accuracy and rates of its main.py.

The recipes 1p and 8p are the Ascend port's, not upstream's: their losses, decay groups and rates follow the formulas of docs/golden.md.
"""
import argparse
import contextlib
import functools
import io
import math

import numpy as np
import torch
from PIL import Image

import fill
from golden import _networks as networks
from golden._entries import Entry
from golden._upstream import Source

SOURCE = Source("pytorch/examples", "49e1a8847c8c4d8d3c576479cb2fe2fd2ac583de", "imagenet/main.py", ("imagenet",))
_PORT = "made by the existing Ascend port's scripts, which are not upstream's"
NOT_MADE = {"meters.1p": _PORT, "meters.8p": _PORT, "log_lines.1p": _PORT, "log_lines.8p": _PORT, "distributed": _PORT}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# ---- networks --------------------------------------------------------------------------------------------------------------

def build(upstream, arch, **options):
    """Return the network that upstream takes by this name."""
    return vars(upstream.take("main", "models"))[arch](**options)


def layout(upstream, variant, form):
    """Keys, shapes, sizes, and which gammas torchvision zeroes."""
    model = build(upstream, variant["arch"])
    return {"num_parameters": networks.parameters(model), "state_dict": networks.layout(model),
            "macs": networks.multiply_adds(model, variant["eval_input"]["height"], variant["eval_input"]["width"]),
            "zeroed_gammas": zeroed_gammas(upstream, variant["arch"])}


def zeroed_gammas(upstream, arch):
    """Return the names of the weights from which torchvision's zero_init_residual makes blocks begin as the identity."""
    model = build(upstream, arch, zero_init_residual=True)
    return [name for name, value in model.named_parameters() if name.endswith("weight") and bool((value == 0).all())]


def evaluation(upstream, variant, form):
    """Logits of filled weights."""
    model = networks.filled(build(upstream, variant["arch"]))
    logits = networks.evaluated(model, networks.images(variant["eval_input"]))[0].double()
    return {"eval_logits": {"first16": logits[:, :16].tolist(), "sum": logits.sum(1).tolist(), "l2": logits.norm(dim=1).tolist(),
                            "argmax": logits.argmax(1).tolist()}}


def initialisation(upstream, variant, form):
    """The deviations that the sheet gives, which what torchvision draws must have; those of the 1p recipe's classifier."""
    torch.manual_seed(0)
    model = build(upstream, variant["arch"])
    drawn, inputs = dict(model.named_parameters()), model.fc.in_features
    stds = [[name, math.sqrt(2.0 / (drawn[name].shape[0] * drawn[name][0, 0].numel()))] for name in form["init_std"]["conv"]]
    for name, std in stds:
        assert abs(float(drawn[name].detach().std()) / std - 1) < 5 / math.sqrt(2 * drawn[name].numel()), name
    bound = 1 / math.sqrt(inputs)
    assert 0.99 * bound < float(model.fc.weight.detach().abs().max()) <= bound
    return {"init_std": {"conv": stds, "fc_weight_1p_normal_std": math.sqrt(1 / (3 * inputs)), "fc_weight_default_uniform_bound": bound,
                         "fc_bias_uniform_bound": bound}}


# ---- training --------------------------------------------------------------------------------------------------------------

def loss_of(words):
    """Return f(logits, labels) of a recipe's words: plain cross entropy, or smoothed in the uniform or the off-class form."""
    if words == "cross entropy":
        return torch.nn.CrossEntropyLoss()
    return functools.partial(smoothed, smoothing=float(words.split()[2].rstrip(",")), off_class="off-class" in words)


def smoothed(logits, labels, smoothing, off_class=False):
    """Return the mean cross entropy with targets of 1 - s + s/K for the label and s/K for the others; in the off-class form 1 - s and
    s/(K - 1). `labels` (N,), or (N, K) as targets that are soft already."""
    classes = logits.shape[1]
    target = labels if labels.dim() == 2 else torch.zeros_like(logits).scatter_(1, labels.view(-1, 1), 1.0)
    share = smoothing * classes / (classes - 1) if off_class else smoothing
    target = (1 - share) * target + share / classes
    return -(target * torch.log_softmax(logits, dim=1)).sum(1).mean()


def is_spared(name, rule):
    """Whether the rule lets a parameter of this name go without weight decay."""
    return "bias" in rule and name.endswith("bias") or "bn" in rule and "bn" in name


def groups(model, rule, decay):
    """Return the optimizer's parameter groups, the spared ones first."""
    named = list(model.named_parameters())
    return [{"params": [value for name, value in named if is_spared(name, rule) == spared], "weight_decay": 0.0 if spared else decay}
            for spared in (True, False) if any(is_spared(name, rule) == spared for name, _ in named)]


def trace(upstream, case, recipe, dtype=torch.float32, zeroed=False, steps=None, every=1):
    """Return losses, and norms of parameters and running statistics after them, of a recipe's training."""
    setup = case["train_setup"]
    model = networks.filled(build(upstream, case["arch"])).to(dtype)
    parameters = dict(model.named_parameters())
    for name in zeroed_gammas(upstream, case["arch"]) if zeroed else ():
        parameters[name].data.zero_()
    optimizer = torch.optim.SGD(groups(model, recipe["no_decay"], recipe["weight_decay"]), recipe["lr_value"], recipe["momentum"])
    batches = networks.batches(setup, steps or setup["steps"], setup["classes"], (setup["input_seed0"], setup["target_seed0"]), dtype)
    losses, _ = networks.train(model, optimizer, loss_of(recipe["loss"]), batches, every)
    return {"losses": losses, "param_l2": networks.l2(model.parameters()), "buffer_l2": networks.l2(networks.statistics(model))}


def in_double(upstream, case, form):
    """Five steps in float64."""
    return trace(upstream, case, case, torch.float64)


def in_single(upstream, case, form):
    """Five steps in float32."""
    return trace(upstream, case, case)


def zeroed(upstream, case, form):
    """Five steps in float32 from blocks that begin as the identity."""
    return trace(upstream, case, case, zeroed=True)


def accumulated(upstream, case, form):
    """An update for the mean gradient of two batches."""
    return trace(upstream, case, case["train_losses"][case["recipe"]], zeroed=True, steps=case["micro_steps"], every=case["accumulate"])


def decay(upstream, case, form):
    """How many parameters go without decay, and which of the normalisations' decay although the rule means them."""
    model = build(upstream, case["arch"])
    spared = [name for name, _ in model.named_parameters() if is_spared(name, case["rule"])]
    missed = [name for name, _ in model.named_parameters() if ".downsample.1." in name]
    return {"count": len(spared), "rest": len(list(model.parameters())) - len(spared),
            "normalisation_parameters_that_decay_all_the_same": missed if "bn" in case["rule"] else None}


def schedule(upstream, case, form):
    """The rate of each epoch: upstream's own, or that of the port's warm-up and decay."""
    return {"epoch_lr": [[epoch, rate(upstream, case, epoch)] for epoch in form["epoch_lr"]]}


def rate(upstream, case, epoch):
    """Return the rate of an epoch, from 0."""
    base, warmup, rest = case["base_lr"], case["warmup"], case["epochs"] - case["warmup"]
    if case["schedule"] == "step30":
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
        upstream.take("main", "adjust_learning_rate")(optimizer, epoch, argparse.Namespace(lr=base))
        return optimizer.param_groups[0]["lr"]
    if epoch < warmup:
        return base * (epoch + 1) / warmup
    if case["schedule"] == "step":
        return base * 0.1 ** sum(epoch >= milestone for milestone in (30, 60, 80))
    part = (epoch - warmup) / rest
    return base * (1 - part) if case["schedule"] == "linear" else 0.5 * base * (1 + math.cos(math.pi * part))


# ---- pictures --------------------------------------------------------------------------------------------------------------

def samples(array, positions):
    """Return what the file records of an image."""
    flat = np.asarray(array).ravel()
    values = [[position, flat[position].item()] for position in positions]
    return dict(networks.described(array), samples=values)


def evaluation_crop(upstream, case, form):
    """An image through torchvision's transforms with upstream's numbers, normalised on the host or on the device, and 256 x 256 bytes."""
    import torchvision.transforms as transforms
    resized = transforms.Resize(256)(Image.fromarray(fill.make_image(**case["image"])))
    cropped = transforms.CenterCrop(224)(resized)
    pixels = torch.from_numpy(np.asarray(cropped).transpose(2, 0, 1).copy())
    mean, std = [255 * torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD)]
    arrays = {"eval_host": transforms.Normalize(MEAN, STD)(transforms.ToTensor()(cropped)).numpy(),
              "eval_device_normalised": ((pixels.float() - mean) / std).numpy(), "eval_uint8": pixels.numpy(),
              "infer_bin_256_hwc_uint8": np.asarray(transforms.CenterCrop(256)(resized))}
    return dict({name: samples(array, form[name]["samples"]) for name, array in arrays.items()}, resized_size=list(resized.size))


def training_crop(upstream, case, form):
    """A given box of an image, resized and perhaps flipped."""
    import torchvision.transforms as transforms
    import torchvision.transforms.functional as functional
    image = Image.fromarray(fill.make_image(**case["image"]))
    image = functional.resized_crop(image, *case["box_top_left_height_width"], size=(224, 224))
    image = functional.hflip(image) if case["flip"] else image
    return {"out": samples(transforms.Normalize(MEAN, STD)(transforms.ToTensor()(image)).numpy(), form["out"]["samples"])}


# ---- losses, accuracy, lines -------------------------------------------------------------------------------------------------

def losses(upstream, case, form):
    """Each form of the loss of one batch, and its gradient."""
    target = networks.in_words(case["target"])
    one_hot = torch.zeros(len(target), 10 if len(target) == 4 else 1000).scatter_(1, target.view(-1, 1), 1.0)
    soft = 0.7 * one_hot + 0.3 * one_hot[torch.arange(len(target)) - 1]
    forms = {"cross_entropy": (torch.nn.CrossEntropyLoss(), target),
             "uniform_form": (functools.partial(smoothed, smoothing=case["smoothing"]), target),
             "offclass_form": (functools.partial(smoothed, smoothing=case["smoothing"], off_class=True), target),
             "soft_target_form": (functools.partial(smoothed, smoothing=case["smoothing"]), soft)}
    found = {"target_values": target.tolist()}
    for name, (criterion, wanted) in forms.items():
        logits = networks.in_words(case["logits"]).reshape(one_hot.shape) * float(case["logits"].split("*")[-1])
        loss = criterion(logits.requires_grad_(), wanted)
        loss.backward()
        found[name] = {"loss": loss.item(), "grad_l2": networks.l2([logits.grad]), "grad_first8": logits.grad[0, :8].tolist()}
    found["soft_target_form"]["soft_target"] = "0.7 at target[i] plus 0.3 at target[i - 1] (cyclic)"
    return found


def accuracy(upstream, case, form):
    """Top-1 and top-5 in per cent."""
    target = networks.in_words(case["target"])
    with upstream.older_view():
        acc1, acc5 = upstream.take("main", "accuracy")(networks.in_words(case["logits"]).reshape(len(target), -1), target, topk=(1, 5))
    return {"acc1": float(acc1), "acc5": float(acc5)}


def meters(upstream, case, form):
    """Upstream's average after each update."""
    meter, averages = upstream.take("main", "AverageMeter")("x"), []
    for value, count in case["updates_value_count"]:
        meter.update(value, count)
        averages.append(meter.avg)
    return {"upstream": averages}


def lines(upstream, case, form):
    """Upstream's progress lines of a training and of an evaluation."""
    meter, progress = upstream.take("main", "AverageMeter", "ProgressMeter")
    shown = [meter("Time", ":6.3f"), meter("Data", ":6.3f"), meter("Loss", ":.4e"), meter("Acc@1", ":6.2f"), meter("Acc@5", ":6.2f")]
    for each, value in zip(shown, (0.432, 0.012, 6.9078, 12.5, 33.75)):
        each.update(value)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        progress(2502, shown, prefix="Epoch: [7]").display(40)
        progress(98, shown[:1] + shown[2:], prefix="Test: ").display(5)
    return {"upstream": said.getvalue().splitlines()}


_TRACE = ("losses", "param_l2", "buffer_l2")
ENTRIES = (
    Entry("variants.*", ("num_parameters", "state_dict", "macs", "zeroed_gammas"), layout),
    Entry("variants.*", ("eval_logits",), evaluation),
    Entry("variants.*.train_losses.*.filled_float64", _TRACE, in_double),
    Entry("variants.*.train_losses.*.filled_zero_gamma_float32", _TRACE, zeroed),
    Entry("variants.*.train_losses.*.filled_float32", _TRACE, in_single),
    Entry("variants.*.train_accumulated", _TRACE, accumulated),
    Entry("variants.*.no_decay.*", ("count", "rest", "normalisation_parameters_that_decay_all_the_same"), decay),
    Entry("variants.*", ("init_std",), initialisation),
    Entry("lr_schedule.*", ("epoch_lr",), schedule),
    Entry("transforms.eval.*", ("resized_size", "eval_host", "eval_device_normalised", "eval_uint8", "infer_bin_256_hwc_uint8"),
          evaluation_crop),
    Entry("transforms.train_fixed_box.*", ("out",), training_crop),
    Entry("losses.*", ("target_values", "cross_entropy", "uniform_form", "offclass_form", "soft_target_form"), losses),
    Entry("accuracy.*", ("acc1", "acc5"), accuracy),
    Entry("meters", ("upstream",), meters),
    Entry("log_lines", ("upstream",), lines),
)

"""GENet's golden numbers: networks from upstream's models/, accuracy from its utils.py, pipelines from its train.py."""
import contextlib
import functools
import math
import os
import runpy
import sys
import tempfile
from unittest import mock

import numpy as np
import torch
from PIL import Image

import fill
from golden import _networks as networks
from golden._entries import Entry
from golden._upstream import Source

SOURCE = Source("BayesWatch/pytorch-GENet", "3fbf99fb6934186004ffb5ea5c0732e0e976d5b2", "models/wideresnet.py", ("",))
NOT_MADE = {}
CLASSES = {"cifar10": 10, "cifar100": 100}


def build(upstream, options, classes):
    """Return upstream's network of {depth, width, extent, extra_params, mlp, dataset}."""
    network = upstream.take("models.wideresnet", "WideResNet")
    return network(options["depth"], options["width"], num_classes=classes, extent=options["extent"],
                   extra_params=options["extra_params"], mlp=options["mlp"])


def layout(upstream, variant, form):
    """Keys, shapes, sizes."""
    model = build(upstream, variant["options"], variant["num_classes"])
    return {"state_dict": networks.layout(model), "num_parameters": networks.parameters(model),
            "flops": networks.multiply_adds(model, variant["eval_input"]["height"], variant["eval_input"]["width"])}


def initialisation(upstream, variant, form):
    """The rule by which each tensor is drawn, which what upstream draws must obey."""
    torch.manual_seed(0)
    model = build(upstream, variant["options"], variant["num_classes"])
    layers = dict(model.named_modules())
    rules = {key: rule(layers[key.rpartition(".")[0]], tensor) for key, tensor in model.state_dict().items()}
    for key, tensor in model.state_dict().items():
        assert obeys(tensor.double(), *rules[key]), "%s is not %s" % (key, rules[key])
    return {"init": rules}


def rule(layer, tensor):
    """Return [kind, value] of a tensor of a layer: what the port sheet says of upstream's constructor."""
    if isinstance(layer, torch.nn.Conv2d):
        return ["normal", math.sqrt(2.0 / (layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels))]
    if isinstance(layer, torch.nn.Linear) and tensor.dim() == 2:
        return ["uniform", 1.0 / math.sqrt(layer.in_features)]
    return ["constant", float(tensor.flatten()[0])]


def obeys(tensor, kind, value):
    """Whether a drawn tensor can come from [kind, value]: five standard errors."""
    if kind == "constant":
        return bool((tensor == value).all())
    if kind == "uniform":
        return 0.9 * value < float(tensor.abs().max()) <= value
    return abs(float(tensor.std()) - value) < 5 * value / math.sqrt(2 * tensor.numel())


def evaluation(upstream, variant, form):
    """Logits and the norms of the stages, in float32 and float64."""
    model = networks.filled(build(upstream, variant["options"], variant["num_classes"]))
    batch = networks.images(variant["eval_input"])
    logits, stages = networks.evaluated(model, batch, list(form["eval_stage_l2"]))
    exact, _ = networks.evaluated(model.double(), batch.double())
    return {"eval_logits": logits.tolist(), "eval_logits_float64": exact.tolist(),
            "eval_stage_l2": {name: networks.l2([output]) for name, output in stages.items()}}


def training(upstream, variant, form):
    """Five steps with upstream's optimizer settings, in float32 and float64, and how far the two are apart."""
    single, after = trace(upstream, variant, torch.float32)
    double, after_double = trace(upstream, variant, torch.float64)
    return {"train_losses": single, "train_after": after, "train_losses_float64": double, "train_after_float64": after_double,
            "train_float32_vs_float64": [abs(a - b) / b for a, b in zip(single, double)]}


def optimizer(upstream, case, form):
    """The settings of upstream's train.py; what it leaves alone is PyTorch's."""
    args = train_globals(upstream)["args"]
    return {"lr": args.learning_rate, "momentum": args.momentum, "dampening": 0, "weight_decay": args.weight_decay,
            "nesterov": args.nesterov}


def trace(upstream, variant, dtype):
    """Return (losses, norms after them) of the variant's training."""
    spec, settings = variant["train_input"], train_globals(upstream)["args"]
    model = networks.filled(build(upstream, variant["options"], variant["num_classes"])).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.learning_rate, momentum=settings.momentum,
                                weight_decay=settings.weight_decay, nesterov=settings.nesterov)
    batches = networks.batches(spec, spec["steps"], variant["num_classes"], (spec["input_seed_base"], spec["target_seed_base"]), dtype)
    losses, _ = networks.train(model, optimizer, torch.nn.CrossEntropyLoss(), batches)
    return losses, {"parameters_l2": networks.l2(model.parameters()),
                    "running_mean_l2": networks.l2(networks.statistics(model, "mean")),
                    "running_var_l2": networks.l2(networks.statistics(model, "var"))}


def schedule(upstream, recipe, form):
    """The rate of each epoch: PyTorch's MultiStepLR, one step after each epoch."""
    rates = networks.rates(recipe["learning_rate"], recipe["epoch_step"], recipe["lr_decay_ratio"], recipe["no_epochs"])
    return {"points": [[epoch, rates[epoch]] for epoch in form["points"]]}


@functools.lru_cache(maxsize=None)
def train_globals(upstream, dataset="cifar10"):
    """Run upstream's train.py up to its training, on a data set of one image, and return its global names."""
    upstream.without_module("tensorboardX", "upstream imports it to draw curves", SummaryWriter=lambda: None)
    upstream.stand_in("torchvision.datasets", "one black image, as no image is read")
    import torchvision
    black = [(0, 0)]
    path, here = upstream.file("train.py"), os.getcwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as patches:
        patches.callback(os.chdir, here)
        os.chdir(folder)  # it makes a folder for its checkpoints
        for name in ("CIFAR10", "CIFAR100"):
            patches.enter_context(mock.patch.object(torchvision.datasets, name, lambda **_: black))
        patches.enter_context(mock.patch.object(sys, "argv", ["train.py", "--dataset", dataset, "--depth", "10", "--width", "1"]))
        patches.enter_context(mock.patch.dict(os.environ))
        return runpy.run_path(path, run_name="upstream")


def picture(upstream, case, form):
    """One image through the pipeline of evaluation, or of training with the crop and the flip that are given."""
    names = train_globals(upstream, case["dataset"])
    import torchvision.transforms.functional as functional
    image = Image.fromarray(fill.make_image(**case["image"]))
    pipeline = names["transform_val"]
    if "crop_top" in case:
        pipeline, crop = names["transform_train"], names["transform_train"].transforms[0]
        image = functional.pad(image, crop.padding)
        image = functional.crop(image, case["crop_top"], case["crop_left"], *crop.size)
        image = functional.hflip(image) if case["flip"] else image
    for step in pipeline.transforms[-2:]:
        image = step(image)
    return dict(networks.described(image, ddof=1), values=[float(image[tuple(index)]) for index in case["indices"]])


def batch_errors(upstream, case, form):
    """Loss and errors of one batch of logits, the label's raised."""
    seed, rows, classes = {10: (11, 16, 10), 100: (13, 128, 100)}[int(case["target"].split(",")[1])]
    target = fill.make_target(rows, classes, seed + 1)
    logits = torch.from_numpy(np.random.RandomState(seed).standard_normal((rows, classes)).astype(np.float32))
    logits = networks.raised(logits, target, 1.5)
    with upstream.older_view():
        err1, err5 = upstream.take("utils", "get_error")(logits, target, topk=(1, 5))
    return {"err1": float(err1), "err5": float(err5), "cross_entropy": float(torch.nn.CrossEntropyLoss()(logits, target))}


def seeded(upstream, case, form):
    """What a seed draws, in upstream's order."""
    torch.manual_seed(case["seed"])
    state = build(upstream, case["options"], CLASSES[case["options"]["dataset"]]).state_dict()
    return {"tensors": {key: {"l2": networks.l2([state[key]]), "first4": state[key].flatten()[:4].tolist()} for key in form["tensors"]}}


ENTRIES = (
    Entry("optimizer", ("lr", "momentum", "dampening", "weight_decay", "nesterov"), optimizer),
    Entry("lr_schedule.1p", ("points",), schedule),
    Entry("lr_schedule.8p", ("points",), schedule),
    Entry("transforms.eval.*", ("shape", "mean", "std", "values"), picture),
    Entry("transforms.train.*", ("shape", "mean", "std", "values"), picture),
    Entry("losses.cases.*", ("err1", "err5", "cross_entropy"), batch_errors),
    Entry("seeded_init", ("tensors",), seeded),
    Entry("variants.*", ("state_dict", "num_parameters", "flops"), layout),
    Entry("variants.*", ("init",), initialisation),
    Entry("variants.*", ("eval_logits", "eval_logits_float64", "eval_stage_l2"), evaluation),
    Entry("variants.*", ("train_losses", "train_after", "train_losses_float64", "train_after_float64", "train_float32_vs_float64"),
          training),
)

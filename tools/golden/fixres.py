"""FixRes' golden numbers: steps of training by upstream's own Trainers, its samplers, transforms and accuracy.

The networks are torchvision's (ResNet-50), timm's (EfficientNet) and upstream's own (PNASNet, ResNeXt). ResNeXt-101 32x48d needs 4 GB.
"""
import contextlib
import math
import os
import tempfile
from unittest import mock

import numpy as np
import torch
from PIL import Image

import fill
from common import cli
from golden import _networks as networks
from golden._entries import Entry
from golden._upstream import Source

SOURCE = Source("facebookresearch/FixRes", "c9be6acc7a6b32f896e62c28a97c20c2348327d3", "imnet_resnet50_scratch/train.py", ("",))
NOT_MADE = {"transforms.*.output_torchvision_0_2_2": "of torchvision 0.2.2, whose centre crop of a small image is another"}
ARCHITECTURES = {"resnet50": "ResNet50", "pnasnet5large": "PNASNet", "tf_efficientnet_b0_ap": "EfficientNet"}


# ---- networks --------------------------------------------------------------------------------------------------------------

def build(upstream, arch):
    """Return a network without pretrained weights, of 1000 classes."""
    if arch == "resnet50":
        return upstream.take("imnet_finetune.train", "models").resnet50()
    if arch == "pnasnet5large":
        return upstream.take("imnet_evaluate.pnasnet", "pnasnet5large")(num_classes=1000, pretrained=None)
    if arch == "resnext101_32x48d":
        network, block = upstream.take("imnet_evaluate.Res", "ResNet", "Bottleneck")
        return network(block, [3, 4, 23, 3], groups=32, width_per_group=48)
    module = upstream.take("imnet_finetune.train")
    if not hasattr(module, "create_model"):
        raise cli.UserError("upstream takes %s from timm, which is not installed; or leave it out with --variants" % arch)
    return module.create_model(arch, pretrained=False, num_classes=1000)


def layout(upstream, variant, form):
    """Keys, shapes, size."""
    model = build(upstream, variant["arch"])
    return {"num_parameters": networks.parameters(model), "state_dict": networks.layout(model)}


def work(upstream, case, form):
    """Multiply-adds for one image."""
    return {"value": networks.multiply_adds(build(upstream, case["arch"]), case["height"], case["width"])}


def evaluation(upstream, case, form):
    """Logits, perhaps behind running statistics of one batch, and what some modules give."""
    model = without_dropout(networks.filled(build(upstream, case["arch"])))
    if case["calibrate"]:
        networks.calibrate(model, networks.images(case["calibrate"]))
    logits, seen = networks.evaluated(model, networks.images(case["eval_input"]), list(form["probes"]))
    probes = {name: {"shape": list(seen[name].shape), "l2_per_sample": seen[name].double().flatten(1).norm(dim=1).tolist()}
              for name in form["probes"]}
    return {"probes": probes, "eval_logits": networks.recorded(logits, "first_16")}


def without_dropout(model):
    """Set every dropout's rate to 0; return the model."""
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0
    return model


# ---- training ----------------------------------------------------------------------------------------------------------------

class Wrapper(torch.nn.Module):
    """Stands for DistributedDataParallel in one process: the network as `module`."""

    def __init__(self, module, **_):
        super().__init__()
        self.module = module

    def forward(self, images):
        return self.module(images)


@contextlib.contextmanager
def on_a_cpu(upstream, package, state=None):
    """In here, upstream's Trainer runs on a CPU, without images, and its networks begin without downloads: with `state`."""
    module = upstream.take(package + ".train")
    upstream.stand_in("torch.cuda, DistributedDataParallel, init_process_group", "the run is one process on a CPU")
    upstream.stand_in("torchvision.datasets.ImageFolder", "batches are those of ci/fill.py")
    replaced = [(torch.cuda, "set_device", lambda *_: None), (torch.nn.Module, "cuda", lambda self, *_, **__: self),
                (torch.Tensor, "cuda", lambda self, *_, **__: self), (torch.nn.parallel, "DistributedDataParallel", Wrapper),
                (torch.distributed, "init_process_group", lambda **_: None),
                (module.datasets, "ImageFolder", lambda *_, **__: [0] * 64)]
    if hasattr(module, "pnasnet5large"):
        upstream.stand_in("pretrained weights", "weights are those of ci/fill.py")
        replaced += [(module, "pnasnet5large", lambda **_: build(upstream, "pnasnet5large")),
                     (module, "load_state_dict_from_url", lambda *_, **__: state)]
        replaced += [(module, "default_cfgs", {"tf_efficientnet_b0_ap": {"url": ""}})] if hasattr(module, "default_cfgs") else []
    with contextlib.ExitStack() as patches:
        for owner, name, value in replaced:
            patches.enter_context(mock.patch.object(owner, name, value))
        yield module


def started(upstream, package, module, folder, setting):
    """Return upstream's Trainer, its networks and optimizer made, for a setting {base_lr, config_batch, num_tasks, arch}."""
    config, cluster = upstream.take(package + ".config", "TrainerConfig", "ClusterConfig")
    values = dict(data_folder=folder, epochs=1, lr=setting["base_lr"], input_size=224, batch_per_gpu=setting["config_batch"],
                  save_folder=folder, imnet_path=folder, architecture=ARCHITECTURES[setting["arch"]], workers=1, local_rank=0,
                  resnet_weight_path=os.path.join(folder, "start.pth"), EfficientNet_models=setting["arch"], global_rank=0,
                  num_tasks=setting["num_tasks"], job_id="job")
    trainer = module.Trainer(config(**{name: values[name] for name in config._fields}), cluster("gloo", "file://" + folder))
    trainer._setup_process_group()
    trainer._init_state()
    return trainer


def training(upstream, case, form):
    """Some steps by upstream's Trainer, from its rate and what it freezes to its checkpoint."""
    setting = case["setting"]
    package = {"scratch": "imnet_resnet50_scratch", "finetune": "imnet_finetune"}[setting["phase"]]
    state = fill.fill_state_dict(build(upstream, setting["arch"]).state_dict())
    with tempfile.TemporaryDirectory() as folder, on_a_cpu(upstream, package, state) as module:
        torch.save({"model": {"module." + key: value for key, value in state.items()}}, os.path.join(folder, "start.pth"))
        trainer = started(upstream, package, module, folder, setting)
        model, optimizer = trainer._state.model.module, trainer._state.optimizer
        prepare(model, setting)
        if "override_lr" in setting:
            trainer._state.lr_scheduler.base_lrs = [setting["override_lr"]]
        trainer._train_loader, trainer._test_loader = batches(setting)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        found, losses = {}, {True: [], False: []}
        with watched(model, optimizer, found, losses):
            trainer._train()
        saved = checkpoint(os.path.join(folder, "job"))
    found.update(saved, train_losses=losses[True], **afterwards(model, optimizer, before))
    count = len(setting["val_sizes"])
    found["eval_losses_after"], found["eval_losses_before"] = losses[False][-count:], losses[False][:count]
    return {"result": picked(found, form["result"], setting["arch"])}


def prepare(model, setting):
    """Give the network the golden start: filled, tamed, calibrated, in double, as the setting says."""
    networks.filled(without_dropout(model))
    for name, parameter in model.named_parameters():
        if setting.get("tame") and name.endswith("bn3.weight"):
            parameter.data.mul_(0.1)
    if setting["calibrate"]:
        networks.calibrate(model, networks.images(setting["calibrate"]))
    if setting["dtype"] == "float64":
        model.double()


def batches(setting):
    """Return ([(images, labels)] of training, [(images, labels)] of evaluation)."""
    dtype, validation = getattr(torch, setting["dtype"]), []
    for number, size in enumerate(setting["val_sizes"]):
        validation += networks.batches(dict(setting, batch=size), 1, 1000, (300 + number, 400 + number), dtype)
    return networks.batches(setting, setting["steps"], 1000, (setting["input_seed"], setting["target_seed"]), dtype), validation


@contextlib.contextmanager
def watched(model, optimizer, found, losses):
    """Note the losses, {whether they are trained on: [loss]}, and how things stand before the first update."""
    forward, step = torch.nn.CrossEntropyLoss.forward, optimizer.step

    def noted(criterion, logits, labels):
        loss = forward(criterion, logits, labels)
        losses[torch.is_grad_enabled()].append(loss.item())
        return loss

    def first(*words, **named):
        if "first_step_gradient_l2" not in found:
            found.update(at_first_update(model, optimizer))
        return step(*words, **named)
    with mock.patch.object(torch.nn.CrossEntropyLoss, "forward", noted), mock.patch.object(optimizer, "step", first):
        yield


def at_first_update(model, optimizer):
    """Return rate, settings, what is trained, gradients and modes."""
    group = optimizer.param_groups[0]
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {"learning_rate": group["lr"], "momentum": group["momentum"], "weight_decay": group["weight_decay"],
            "nesterov": group["nesterov"], "dampening": group["dampening"], "param_groups": len(optimizer.param_groups),
            "first_step_gradient_l2": {name: networks.l2([value]) for name, value in gradients.items()},
            "parameters_with_gradient": list(gradients), "number_of_parameters_with_gradient": len(gradients),
            "trainable_parameters": [name for name, value in model.named_parameters() if value.requires_grad],
            "modules_in_train_mode_during_training": [name for name, layer in model.named_modules()
                                                      if layer.training and not list(layer.children())]}


def afterwards(model, optimizer, before):
    """Return norms, and which entries training has changed."""
    after = model.state_dict()
    changed = [key for key, value in after.items() if not torch.equal(value, before[key])]
    return {"param_l2_after": networks.l2(model.parameters()),
            "tensor_l2_after": {key: networks.l2([value]) for key, value in after.items()},
            "state_dict_entries_changed_by_training": changed, "number_of_state_dict_entries_changed": len(changed)}


def checkpoint(folder):
    """Return what upstream's checkpoint holds."""
    saved = torch.load(os.path.join(folder, "checkpoint.pth"), map_location="cpu")
    return {"checkpoint_top_level_keys": sorted(saved), "checkpoint_files": sorted(os.listdir(folder)),
            "checkpoint_first_model_key": next(iter(saved["model"])), "checkpoint_epoch": saved["epoch"],
            "checkpoint_optimizer_momentum_buffers": sum(
                state.get("momentum_buffer") is not None for state in saved["optimizer"]["state"].values())}


def picked(found, form, arch):
    """Return of the findings those that the file has. (timm's newer BatchNorm holds modules, which stand for it.)"""
    if arch.startswith("tf_"):
        found["modules_in_train_mode_during_training"] = list(dict.fromkeys(
            name.split(".")[0] for name in found["modules_in_train_mode_during_training"]))
    return {key: {name: found[key][name] for name in names} if isinstance(names, dict) else found[key] for key, names in form.items()}


def schedule(upstream, case, form):
    """Base rate and rate of each epoch, by upstream's Trainer from scratch; the port's fine-tuning does not scale the flag."""
    package = "imnet_resnet50_scratch"
    setting = dict(base_lr=case["flag"], config_batch=case["batch"], num_tasks=case["tasks"], arch="resnet50")
    small = torch.nn.Linear(1, 1)
    with tempfile.TemporaryDirectory() as folder, on_a_cpu(upstream, package) as module, \
            mock.patch.object(module.models, "resnet50", lambda **_: small):
        state = started(upstream, package, module, folder, setting)._state
    base = state.optimizer.param_groups[0]["lr"] if case["scaled"] else case["flag"]
    state.lr_scheduler.base_lrs, points = [base], []
    for epoch in form["epoch_lr"]:
        state.lr_scheduler.step(epoch)
        points.append([epoch, state.optimizer.param_groups[0]["lr"]])
    return {"base_lr": base, "epoch_lr": points}


# ---- samplers ----------------------------------------------------------------------------------------------------------------

def summary(indices, form):
    """Return a sequence as the file has it: whole, or its ends, sum and number of distinct values."""
    array = np.asarray(indices)
    found = {"indices": array.tolist(), "first_24": array[:24].tolist(), "last_8": array[-8:].tolist(), "sum": int(array.sum()),
             "distinct": len(np.unique(array))}
    return {key: found[key] for key in form if key in found}


def repeating(upstream, case):
    """Return upstream's sampler of repeated augmentation of a case."""
    return upstream.take("imnet_resnet50_scratch.samplers", "RASampler")(
        range(case["dataset_len"]), case["num_replicas"], case["rank"], case["dataset_len"], 1, repetitions=case["repetitions"],
        len_factor=case["len_factor"], shuffle=case["shuffle"])


def ra_lengths(upstream, case, form):
    """Its lengths."""
    sampler = repeating(upstream, case)
    return {"num_samples": len(sampler), "total_size": sampler.total_size}


def ra_sampler(upstream, case, form):
    """Its indices of an epoch, from numpy's generator seeded once before the first."""
    sampler = repeating(upstream, case)
    np.random.seed(0)
    try:
        for _ in range(case["epoch"] + 1):
            indices = list(sampler)
    except AssertionError as error:
        return {"error": type(error).__name__}
    return summary(indices, form)


def distributed_sampler(upstream, case, form):
    """The fine-tuning order: PyTorch's own sampler, its epoch never set."""
    sampler = torch.utils.data.distributed.DistributedSampler(range(case["dataset_len"]), case["num_replicas"], case["rank"])
    return dict(summary(list(sampler), form), num_samples=len(sampler))


def steps(upstream, case, form):
    """Steps of an epoch: of the loader, and where 5005 x 512 images are reached."""
    images, batch, tasks = case["dataset_len"], case["batch_per_card"], case["num_tasks"]
    sampler = upstream.take("imnet_resnet50_scratch.samplers", "RASampler")(range(images), tasks, 0, images, batch, repetitions=3)
    most, finetune = math.ceil(5005 * 512 / (batch * tasks)), math.ceil(math.ceil(images / tasks) / batch)
    return {"scratch_steps_per_epoch": min(most, math.ceil(len(sampler) / batch)), "finetune_steps_per_epoch_upstream": finetune,
            "finetune_steps_per_epoch_ascend_port": min(most, finetune)}


# ---- pictures ----------------------------------------------------------------------------------------------------------------

def pipeline(upstream, case):
    """Return upstream's evaluation pipeline of a case."""
    make = upstream.take("imnet_finetune.transforms", "get_transforms")
    return make(test_size=case["test_size"], crop=case["crop"], need=("val",), backbone=case["backbone"])["val"]


def picture(upstream, case, form):
    """An image through upstream's evaluation."""
    values = pipeline(upstream, case)(Image.fromarray(fill.make_image(**case["image"]))).double().numpy()
    found = networks.described(values, case["index"])
    return {"shape": found["shape"], "mean": found["mean"], "std": found["std"], "value": found["values"]}


def resized(upstream, case, form):
    """The size before the crop."""
    image = pipeline(upstream, case).transforms[0](Image.fromarray(fill.make_image(**case["image"])))
    return {"resized_width_height": list(image.size)}


def target_size(upstream, case, form):
    """The size by upstream's rule, which sets the height."""
    resize = upstream.take("imnet_finetune.transforms", "Resize")
    height, width = resize.target_size(case["width"], case["height"], case["size"], case["largest"])
    return {"out_height": height, "out_width": width}


def pipelines(upstream, case, form):
    """The steps of the second recipe's pipelines."""
    make = upstream.take("transforms_v2", "get_transforms")
    return {"crop=%s" % crop: {name: [type(step).__name__ for step in made.transforms] for name, made in sorted(make(crop=crop).items())}
            for crop in (True, False)}


def shifted_crop(upstream, case, form):
    """Where the second recipe's crop falls, from numpy's generator."""
    module, corners = upstream.take("transforms_v2"), []
    np.random.seed(case["numpy_seed"])
    with mock.patch.object(module, "crop", lambda image, *corner: corners.append([int(number) for number in corner])):
        for size in case["image_sizes"]:
            module.center_crop_new(Image.new("RGB", tuple(size)), case["size"])
    return {"crop_top_left_height_width": corners}


def accuracy(upstream, case, form):
    """Top-1 and top-5 of batches by upstream's function, and their average by its meter."""
    function, meter = upstream.take("imnet_evaluate.train", "accuracy_sp", "HistoryMeter")
    meters, results = (meter(), meter()), []
    for number, size in enumerate(case["batches"]):
        logits = np.random.RandomState(case["seed"] + number).standard_normal((size, case["classes"])).astype(np.float32)
        target = fill.make_target(size, case["classes"], case["seed"] + 50 + number)
        with upstream.older_view():
            results.append(function(torch.from_numpy(logits), target, topk=(1, 5)))
        for each, value in zip(meters, results[-1]):
            each.update(value, size)
    return {"batch_top1_top5": results, "average_top1": meters[0].avg, "average_top5": meters[1].avg}


ENTRIES = (
    Entry("variants.*", ("num_parameters", "state_dict"), layout),
    Entry("variants.*.flops", ("value",), work),
    Entry("variants.*.eval.*", ("eval_logits", "probes"), evaluation),
    Entry("variants.*.train.*", ("result",), training),
    Entry("lr_schedule.*", ("base_lr", "epoch_lr"), schedule),
    Entry("ra_sampler.cases.*", ("num_samples", "total_size"), ra_lengths),
    Entry("ra_sampler.cases.*.epochs.*", ("indices", "first_24", "last_8", "sum", "distinct", "error"), ra_sampler),
    Entry("distributed_sampler.cases.*", ("num_samples", "indices", "first_24", "last_8", "sum"), distributed_sampler),
    Entry("steps_per_epoch.*", ("scratch_steps_per_epoch", "finetune_steps_per_epoch_upstream", "finetune_steps_per_epoch_ascend_port"),
          steps),
    Entry("transforms.*.output", ("shape", "mean", "std", "value"), picture),
    Entry("transforms.*", ("resized_width_height",), resized),
    Entry("resize_target_size.*", ("out_height", "out_width"), target_size),
    Entry("transforms_v2.pipelines", ("crop=True", "crop=False"), pipelines),
    Entry("transforms_v2.shifted_center_crop.*", ("crop_top_left_height_width",), shifted_crop),
    Entry("accuracy.*", ("batch_top1_top5", "average_top1", "average_top5"), accuracy),
)

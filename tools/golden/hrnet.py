"""HRNet's golden numbers: configuration, networks, optimizer and accuracy from upstream's lib/."""
import argparse
import functools

import numpy as np
import torch
from PIL import Image

import fill
from golden import _networks as networks
from golden._entries import Entry
from golden._upstream import Source

SOURCE = Source("HRNet/HRNet-Image-Classification", "f760c988482cdb8a1f69b10b219d669721144582", "lib/models/cls_hrnet.py", ("lib",))
NOT_MADE = {}
FLAGS = "w18 with --modelDir M --logDir L --dataDir D --testModel T"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# ---- configuration -------------------------------------------------------------------------------------------------------

@functools.lru_cache(maxsize=None)
def defaults(upstream):
    """Return upstream's configuration tree before anything is merged into it."""
    return upstream.take("config", "config").clone()


def merged(upstream, arch, modelDir="", logDir="", dataDir="", testModel=""):
    """Return the frozen tree of the experiment file of a network, by upstream's own function."""
    tree = defaults(upstream).clone()
    path = upstream.file("experiments/cls_hrnet_%s_sgd_lr5e-2_wd1e-4_bs32_x100.yaml" % arch)
    upstream.take("config", "update_config")(tree, argparse.Namespace(cfg=path, modelDir=modelDir, logDir=logDir, dataDir=dataDir,
                                                                      testModel=testModel))
    return tree


def rows(tree, prefix=""):
    """Return [[dotted key, type, value]], sorted; a tuple as a list, a node without keys as itself."""
    found = []
    for key, value in tree.items():
        if hasattr(value, "items"):
            found += rows(value, prefix + key + ".") or [[prefix + key, "node", None]]
        else:
            found.append([prefix + key, type(value).__name__, list(value) if isinstance(value, tuple) else value])
    return sorted(found)


def config(upstream, file, form):
    """Every key of the tree, its type and its default."""
    return {"config_defaults": rows(defaults(upstream))}


def config_files(upstream, file, form):
    """The tree of two experiment files, and what the directory flags change in it."""
    plain = {arch: rows(merged(upstream, arch)) for arch in ("w18", "w18_small_v1")}
    changed = [row for row in rows(merged(upstream, "w18", "M", "L", "D", "T")) if row not in plain["w18"]]
    return dict(plain, **{FLAGS: changed})


# ---- networks ------------------------------------------------------------------------------------------------------------

def build(upstream, arch):
    """Return upstream's network of an experiment file, initialised as upstream does."""
    return upstream.take("models.cls_hrnet", "get_cls_net")(merged(upstream, arch))


def layout(upstream, variant, form):
    """Keys, shapes, sizes."""
    model = build(upstream, variant["arch"])
    return {"state_dict": networks.layout(model), "num_state_dict_entries": len(model.state_dict()),
            "num_parameters": networks.parameters(model), "num_parameter_tensors": len(list(model.parameters()))}


def work(upstream, case, form):
    """Multiply-adds of one image, and as upstream's summary prints them."""
    count = networks.multiply_adds(build(upstream, case["arch"]), case["height"], case["width"])
    return {"multiply_adds": count, "printed_gflops": count / 1024.0 ** 3}


def evaluation(upstream, variant, form):
    """Logits, and what each stage gives."""
    model = networks.filled(build(upstream, variant["arch"]))
    values, seen = networks.evaluated(model, networks.images(variant["eval_input"]), list(form["intermediate"]))
    parts = {name: output if isinstance(output, list) else [output] for name, output in seen.items()}
    return {"eval_logits": networks.recorded(values, "first"), "intermediate": {name: [
        {"shape": list(part.shape), "l2": networks.l2([part]), "sum": float(part.double().sum())} for part in parts[name]]
        for name in form["intermediate"]}}


def other_sizes(upstream, case, form):
    """Logits of small inputs and of one that is not square."""
    model = networks.filled(build(upstream, case["arch"]))
    values, _ = networks.evaluated(model, networks.images(case["eval_input"]))
    return {"eval_logits": networks.recorded(values, "first")}


def calibrated(upstream, case, form):
    """Logits behind running statistics of one batch."""
    model = networks.filled(build(upstream, case["arch"]))
    networks.calibrate(model, networks.images(case["calibration_input"]))
    values, _ = networks.evaluated(model, networks.images(case["eval_input"]))
    return {"eval_logits": networks.recorded(values, "first"), "running_stats_l2": networks.l2(networks.statistics(model))}


def initialisation(upstream, case, form):
    """How widely a tensor is drawn; the rule's own deviation of a convolution's weights."""
    layer, tensor = drawn(upstream)[case["key"]]
    own = None
    if isinstance(layer, torch.nn.Conv2d) and tensor.dim() == 4:
        own = (2.0 / (tensor.shape[0] * tensor[0, 0].numel())) ** 0.5
    return {"shape": list(tensor.shape), "drawn_std": float(tensor.std()), "drawn_max_abs": float(tensor.abs().max()),
            "normal_std": own}


@functools.lru_cache(maxsize=None)
def drawn(upstream):
    """Return {key: (layer, tensor)} of the small network as upstream initialises it."""
    torch.manual_seed(0)
    model = build(upstream, "w18_small_v1")
    layers = dict(model.named_modules())
    return {key: (layers[key.rpartition(".")[0]], tensor) for key, tensor in model.state_dict().items()}


# ---- training ------------------------------------------------------------------------------------------------------------

def steps(upstream, case, rate, dtype):
    """Return (losses, {parameter: gradient norm of the first step}, model) of training with upstream's optimizer."""
    tree, spec = merged(upstream, case["arch"]), case["train_input"]
    model = networks.filled(build(upstream, case["arch"])).to(dtype)
    optimizer = upstream.take("utils.utils", "get_optimizer")(tree, model)
    for group in optimizer.param_groups:
        group["lr"] = rate
    batches = networks.batches(spec, spec["steps"], spec["classes"], (100, 200), dtype)
    losses, gradients = networks.train(model, optimizer, torch.nn.CrossEntropyLoss(), batches)
    return losses, gradients, model


def training(upstream, variant, form):
    """Five steps in float64 at upstream's rate."""
    optimizer = variant["train_optimizer"]
    losses, gradients, model = steps(upstream, variant, optimizer["lr"], torch.float64)
    return {"train_losses": losses, "train_first_step_grad_l2": {name: gradients[name] for name in form["train_first_step_grad_l2"]},
            "train_first_step_grad_l2_all": total(gradients), "train_final_param_l2": networks.l2(model.parameters()),
            "train_final_buffer_l2": networks.l2(networks.statistics(model)),
            "train_final_num_batches_tracked": int(model.bn1.num_batches_tracked)}


def total(gradients):
    """Return the norm over all parameters."""
    return sum(norm ** 2 for norm in gradients.values()) ** 0.5


def optimizer(upstream, case, form):
    """Upstream's optimizer and its settings."""
    tree = merged(upstream, case["arch"])
    found = upstream.take("utils.utils", "get_optimizer")(tree, build(upstream, case["arch"]))
    group = found.param_groups[0]
    return dict({key: group[key] for key in ("momentum", "dampening", "weight_decay", "nesterov")},
                **{"class": type(found).__name__, "param_groups": len(found.param_groups)})


def slow_training(upstream, case, form):
    """The steps in float32, at a rate at which rounding does not grow."""
    losses, gradients, model = steps(upstream, case, case["optimizer"]["lr"], torch.float32)
    return {"losses": losses, "first_step_grad_l2_all": total(gradients), "final_param_l2": networks.l2(model.parameters()),
            "final_buffer_l2": networks.l2(networks.statistics(model))}


def schedule(upstream, file, form, early=False):
    """The rates of one device, of eight, and of upstream's four, by PyTorch's scheduler with upstream's milestones: moved before each epoch
    (`early`: what upstream's loop gives since PyTorch 1.1) or after it (what it gave on the PyTorch that upstream names)."""
    recipe = merged(upstream, "w18").TRAIN
    bases = {"1p": 0.1, "8p": 0.1 * 8, "upstream_4gpu": recipe.LR}
    found = {name: networks.rates(bases[name], recipe.LR_STEP, recipe.LR_FACTOR, max(epochs) + 1, early) for name, epochs in form.items()}
    return {name: [[epoch, found[name][epoch]] for epoch in epochs] for name, epochs in form.items()}


def early_schedule(upstream, file, form):
    """The rates of the port's loop, one epoch early."""
    return schedule(upstream, file, form, early=True)


# ---- data and accuracy ---------------------------------------------------------------------------------------------------

def batch_accuracy(upstream, case, form):
    """Loss and accuracy of one batch, in which the labels' logits are raised."""
    target = fill.make_target(case["batch"], case["classes"], case["target_seed"])
    logits = networks.raised(networks.in_words(case["logits"]), target, {10: 1.0, 1000: 2.5}[case["classes"]])
    with upstream.older_view():
        hits = upstream.take("core.evaluate", "accuracy")(logits, target, (1, 5))
    return {"loss": float(torch.nn.CrossEntropyLoss()(logits, target)), "accuracy1": float(hits[0]), "accuracy5": float(hits[1])}


def accuracy(upstream, case, form):
    """Upstream's averages over batches of unequal size."""
    found = {}
    for name in ("loss", "accuracy1", "accuracy5"):
        meter = upstream.take("core.function", "AverageMeter")()
        for batch in case["batches"]:
            meter.update(batch[name], batch["batch"])
        found["average_" + name] = meter.avg
    return found


def crop(upstream, case, form):
    """An image through torchvision's transforms with the numbers of upstream's tools/train.py, which builds them inside its main()."""
    import torchvision.transforms as transforms
    size = case["image_size"]
    resized = transforms.Resize(int(size / 0.875))(Image.fromarray(fill.make_image(**case["image"])))
    cropped = transforms.CenterCrop(size)(resized)
    pixels, left = np.asarray(cropped), [int(round((extent - size) / 2.0)) for extent in resized.size]
    values = transforms.Normalize(MEAN, STD)(transforms.ToTensor()(cropped))
    found = networks.described(values, case["flat_index"])
    return dict(found, resize_short_side=int(size / 0.875), resized_width_height=list(resized.size), crop_left_top=left,
                channel_mean=values.double().mean(dim=(1, 2)).tolist(), crop_uint8_sum=int(pixels.astype(int).sum()),
                crop_uint8_values=pixels.ravel()[case["crop_uint8_hwc_flat_index"]].tolist())


ENTRIES = (
    Entry("", ("config_defaults",), config),
    Entry("config_merged", ("w18", FLAGS, "w18_small_v1"), config_files),
    Entry("lr_schedule", ("1p", "8p", "upstream_4gpu"), schedule),
    Entry("lr_schedule_port_actual", ("1p", "8p"), early_schedule),
    Entry("init.tensors.*", ("shape", "drawn_std", "drawn_max_abs", "normal_std"), initialisation),
    Entry("accuracy.*.batches.*", ("loss", "accuracy1", "accuracy5"), batch_accuracy),
    Entry("accuracy.*", ("average_loss", "average_accuracy1", "average_accuracy5"), accuracy),
    Entry("transforms.*", ("resize_short_side", "resized_width_height", "crop_left_top", "shape", "mean", "std", "channel_mean", "values",
                           "crop_uint8_values", "crop_uint8_sum"), crop),
    Entry("variants.*", ("state_dict", "num_state_dict_entries", "num_parameters", "num_parameter_tensors"), layout),
    Entry("variants.*.flops", ("multiply_adds", "printed_gflops"), work),
    Entry("variants.*", ("eval_logits", "intermediate"), evaluation),
    Entry("variants.*.eval_more.*", ("eval_logits",), other_sizes),
    Entry("variants.*.eval_calibrated", ("eval_logits", "running_stats_l2"), calibrated),
    Entry("variants.*.train_optimizer", ("class", "param_groups", "momentum", "dampening", "weight_decay", "nesterov"), optimizer),
    Entry("variants.*", ("train_losses", "train_first_step_grad_l2", "train_first_step_grad_l2_all", "train_final_param_l2",
                         "train_final_buffer_l2", "train_final_num_batches_tracked"), training),
    Entry("variants.*.train_float32_small_lr", ("losses", "first_step_grad_l2_all", "final_param_l2", "final_buffer_l2"), slow_training),
)

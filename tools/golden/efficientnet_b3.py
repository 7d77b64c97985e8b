"""EfficientNet-B3's golden numbers: networks, losses, optimizer, schedule, pictures and log lines of pycls."""
import contextlib
import hashlib
import json
import random
from unittest import mock

import numpy as np
import torch
from PIL import Image

import fill
from common import cli
from golden import _networks as networks
from golden._entries import Entry
from golden._upstream import Source

SOURCE = Source("facebookresearch/pycls", "ee89cecb0e295b8037843e7e28344b156a847554", "pycls/models/effnet.py", ("",))
NOT_MADE = {"components.log_lines_npu_port": "made by the existing Ascend port's meters, which are not upstream's"}


# ---- configuration -----------------------------------------------------------------------------------------------------------

def flat(node, prefix=""):
    """Return {dotted key: value} of a tree, tuples as lists."""
    found = {}
    for key, value in node.items():
        value = list(value) if isinstance(value, tuple) else value
        found.update(flat(value, prefix + key + ".") if hasattr(value, "items") else {prefix + key: value})
    return dict(sorted(found.items()))


def configured(upstream, *keys):
    """Set pycls' global tree to its defaults and then to {dotted key: value}s; return it."""
    module = upstream.take("pycls.core.config")
    module.reset_cfg()
    for key, value in [pair for each in keys for pair in each.items()]:
        try:
            module.cfg.merge_from_list([key, value])
        except (AssertionError, KeyError, ValueError) as error:
            raise cli.UserError("upstream's configuration does not take %s: %s" % (key, error))
    return module.cfg


def defaults(upstream, file, form):
    """Every key of the tree with its default."""
    return {"config_defaults": flat(configured(upstream))}


def check_file(upstream, variant):
    """Raise UserError where upstream's configuration file says otherwise than the settings of a network that is named after it."""
    if variant["arch"] != variant["config"]:
        return
    tree = configured(upstream)
    tree.merge_from_file(upstream.file("configs/dds_baselines/effnet/%s_dds_8gpu.yaml" % variant["config"]))
    for key, value in flat(tree).items():
        if variant["config_keys"].get(key, value) != value:
            raise cli.UserError("upstream's %s_dds_8gpu.yaml has %s %s, the golden file %s" % (
                variant["config"], key, value, variant["config_keys"][key]))


# ---- networks ----------------------------------------------------------------------------------------------------------------

def build(upstream, keys, dtype=torch.float32):
    """Return upstream's network of a configuration, with filled weights."""
    configured(upstream, keys)
    return networks.filled(upstream.take("pycls.models.effnet", "EffNet")()).to(dtype)


def digits(value, count):
    """Return a float with so many significant digits, as the file records it."""
    return float("%.*g" % (count, value))


def rows(logits):
    """Return what the file records of logits (N, classes): in float64 with twelve digits."""
    short = (lambda value: digits(value, 12)) if logits.dtype == torch.float64 else float
    return [{"logits": [short(value) for value in row[:16].tolist()], "sum": short(row.sum().item()), "l2": short(row.norm().item())}
            for row in logits]


def deviation(single, double):
    """Return how far float32 logits are from float64, the largest difference over the row's root mean square."""
    error = (single.double() - double).abs().max(1)[0] / double.pow(2).mean(1).sqrt()
    return digits(error.max().item(), 3)


def layout(upstream, variant, form):
    """Keys, shapes, sizes."""
    check_file(upstream, variant)
    model = build(upstream, variant["config_keys"])
    entries = networks.layout(model)
    return {"state_dict": entries, "num_state_dict_entries": len(entries), "num_parameters": networks.parameters(model),
            "state_dict_sha256": hashlib.sha256(json.dumps(entries).encode()).hexdigest(), "flops": counted(upstream, model)["flops"]}


def counted(upstream, model):
    """Return upstream's own {flops, params, acts} of a network."""
    return upstream.take("pycls.core.net", "complexity")(model)


def complexity(upstream, case, form):
    """Operations, parameters and activations as upstream counts them."""
    return counted(upstream, build(upstream, case["config_keys"]))


def evaluation(upstream, variant, form):
    """Logits of filled weights."""
    single, double = [networks.evaluated(build(upstream, variant["config_keys"], dtype), networks.images(variant["eval_input"], dtype))[0]
                      for dtype in (torch.float32, torch.float64)]
    return {"eval_logits": rows(single), "eval_logits_float64": rows(double), "eval_float32_deviation": deviation(single, double)}


def calibrated(upstream, case, form):
    """Logits of a pass in train mode, and in eval mode with its statistics."""
    trained, tested = [], []
    for dtype in (torch.float32, torch.float64):
        model = build(upstream, case["config_keys"], dtype)
        trained.append(networks.calibrate(model, networks.images(case["calibration_input"], dtype)))
        tested.append(networks.evaluated(model, networks.images(case["eval_input"], dtype))[0])
    return {"train_mode_logits": rows(trained[0]), "train_mode_logits_float64": rows(trained[1]), "eval_logits": rows(tested[0]),
            "eval_logits_float64": rows(tested[1]), "train_float32_deviation": deviation(*trained),
            "eval_float32_deviation": deviation(*tested)}


def training(upstream, case, form):
    """Five steps of a recipe, in float32 and float64."""
    return {"train_losses": trace(upstream, case, torch.float32), "train_losses_float64": trace(upstream, case, torch.float64)}


def trace(upstream, case, dtype):
    """Return losses and norms after them, by upstream's loss and optimizer."""
    model = build(upstream, case["config_keys"], dtype)
    optimizer = upstream.take("pycls.core.optimizer", "construct_optimizer")(model)
    upstream.take("pycls.core.optimizer", "set_lr")(optimizer, case["lr"])
    criterion, one_hot = upstream.take("pycls.core.builders", "build_loss_fun")(), upstream.take("pycls.core.net", "smooth_one_hot_labels")
    batches = [(images, one_hot(labels).to(dtype))
               for images, labels in networks.batches(case, case["steps"], case["classes"], (100, 200), dtype)]
    losses, _ = networks.train(model, optimizer, criterion, batches)
    return {"losses": losses, "param_l2": networks.l2(model.parameters()), "running_stats_l2": networks.l2(networks.statistics(model))}


def init_reference(upstream, case, form):
    """What a seed draws, in upstream's order."""
    tensor = drawn(upstream, keys_of(case), case["torch_seed"])[case["key"]]
    values = tensor.double().flatten()
    return {"first": tensor.flatten()[:4].tolist(), "sum": digits(values.sum(), 9), "l2": digits(values.norm(), 9),
            "std": digits(values.std(), 6)}


def keys_of(case):
    """Return the settings of the network that a component names."""
    return [variant["config_keys"] for variant in case["variants"] if variant["config"] == case["config"]][0]


def drawn(upstream, keys, seed):
    """Return the state dict that upstream's constructor draws."""
    configured(upstream, keys)
    torch.manual_seed(seed)
    return upstream.take("pycls.models.effnet", "EffNet")().state_dict()


# ---- optimisation --------------------------------------------------------------------------------------------------------------

def schedule(upstream, case, form):
    """The rate of each epoch."""
    configured(upstream, case["keys"])
    rate = upstream.take("pycls.core.optimizer", "get_epoch_lr")
    return {"points": [[epoch, digits(rate(epoch), 15)] for epoch in form["points"]]}


def groups(upstream, case, form):
    """The optimizer's groups, with and without BatchNorm's own decay."""
    found = {}
    for name, own in (("default", False), ("with BN.USE_CUSTOM_WEIGHT_DECAY True", True)):
        configured(upstream, keys_of(case), {"BN.USE_CUSTOM_WEIGHT_DECAY": own})
        model = upstream.take("pycls.models.effnet", "EffNet")()
        optimizer = upstream.take("pycls.core.optimizer", "construct_optimizer")(model)
        found[name] = [dict({"tensors": len(group["params"]), "elements": sum(p.numel() for p in group["params"])},
                            **{key: group[key] for key in ("weight_decay", "momentum", "nesterov", "dampening")})
                       for group in optimizer.param_groups]
    return found


def loss(upstream, case, form):
    """Targets, loss and gradient of one batch."""
    configured(upstream, {"MODEL.NUM_CLASSES": case["classes"], "TRAIN.LABEL_SMOOTHING": case["label_smoothing"]})
    logits = (3 * networks.in_words(case["logits"])).reshape(case["batch"], -1).requires_grad_()
    target = upstream.take("pycls.core.net", "smooth_one_hot_labels")(torch.tensor(case["labels"]))
    value = upstream.take("pycls.core.builders", "build_loss_fun")()(logits, target)
    value.backward()
    return {"target_row_0": target[0, :10].tolist(), "loss": value.item(), "grad_row_0": logits.grad[0, :10].tolist()}


def drop_connect(upstream, case, form):
    """What is left of an input where a given draw drops and keeps samples."""
    mask, function = torch.tensor(case["mask_observed"]).view(-1, 1, 1, 1), upstream.take("pycls.models.blocks", "drop_connect")
    with mock.patch.object(torch.Tensor, "bernoulli_", lambda tensor, *_, **__: tensor.copy_(mask)):
        return {"output": function(networks.in_words(case["input"]).clone(), case["ratio"]).flatten(1).tolist()}


def mixup(upstream, case, form):
    """A batch mixed with given partners; the weight from numpy's generator."""
    configured(upstream, {"MODEL.NUM_CLASSES": case["classes"], "TRAIN.LABEL_SMOOTHING": case["label_smoothing"],
                          "TRAIN.MIXUP_ALPHA": case["alpha"]})
    np.random.seed(case["numpy_seed"])
    draws, net = {}, upstream.take("pycls.core.net")
    partners = mock.patch.object(torch, "randperm", lambda *_, **__: torch.tensor(case["permutation"]))
    with noted(np.random, "beta", draws), partners, on_a_cpu():
        inputs, target, labels = net.mixup(networks.in_words(case["input"]), net.smooth_one_hot_labels(torch.tensor(case["labels_in"])))
    return {"lambda": float(draws["beta"]), "mixed_sample_0": inputs[0].flatten().tolist(),
            "mixed_target_0": target[0].tolist(), "hard_labels_out": labels.tolist()}


@contextlib.contextmanager
def noted(owner, name, found):
    """Note what a function returns."""
    original = getattr(owner, name)

    def called(*words, **named):
        found[name] = original(*words, **named)
        return found[name]
    with mock.patch.object(owner, name, called):
        yield


def on_a_cpu():
    """In here, tensors stay where they are."""
    return mock.patch.object(torch.Tensor, "cuda", lambda self, *_, **__: self)


def topk_errors(upstream, case, form):
    """Top-1 and top-5 errors of one batch."""
    labels = torch.tensor(case["labels"])
    with upstream.older_view():
        errors = upstream.take("pycls.core.meters", "topk_errors")(networks.in_words(case["logits"]).reshape(len(labels), -1), labels, [1, 5])
    return {"top1_err": float(errors[0]), "top5_err": float(errors[1])}


def activation(upstream, case, form):
    """An activation at some places."""
    configured(upstream, {"MODEL.ACTIVATION_FUN": case["name"]})
    return {"y": upstream.take("pycls.models.blocks", "activation")()(torch.tensor(case["x"])).tolist()}


class Batches(list):
    """Stands for a loader."""


def precise_bn(upstream, case, form):
    """Statistics over batches of some layers, and logits with them."""
    single, double = [precise(upstream, case, dtype) for dtype in (torch.float32, torch.float64)]
    return {"float32": single, "float64": double, "batches_used": single["layers"][0]["num_batches_tracked"]}


def precise(upstream, case, dtype):
    """Return what the file records of three layers, and the logits."""
    model = build(upstream, case["config_keys"], dtype).train()
    batches = Batches((fill.make_input(case["batch"], case["height"], case["width"], 300 + number).to(dtype), 0)
                      for number in range(case["batches_offered"]))
    batches.batch_size = case["batch"]
    with on_a_cpu():
        upstream.take("pycls.core.net", "compute_precise_bn_stats")(model, batches)
    layers = dict(model.named_modules())
    found = [statistics(name, layers[name]) for name in ("stem.bn", "s2.b2.lin_proj_bn", "head.conv_bn")]
    return {"layers": found, "eval_logits_after": rows(networks.evaluated(model, networks.images(case["eval_input"], dtype))[0])}


def statistics(name, layer):
    """Return the first statistics of a BatchNorm, those in float64 with twelve digits."""
    mean, var = [[digits(value, 12) if layer.running_mean.dtype == torch.float64 else value for value in values[:8].tolist()]
                 for values in (layer.running_mean, layer.running_var)]
    return {"name": name, "momentum_after": layer.momentum, "num_batches_tracked": int(layer.num_batches_tracked), "running_mean": mean,
            "running_var": var}


# ---- pictures ------------------------------------------------------------------------------------------------------------------

def prepared(upstream, pixels, split, keys):
    """Return an RGB image (height, width, 3) as upstream's data set gives it to a network, (3, size, size) in BGR."""
    configured(upstream, keys)
    dataset = upstream.take("pycls.datasets.imagenet", "ImageNet")
    empty = dataset.__new__(dataset)  # without a folder to look through
    empty._split = split
    return empty._prepare_im(np.ascontiguousarray(pixels[:, :, ::-1]))


def samples(array, form):
    """Return what the file records of a picture, with nine digits."""
    values = [[position, float(array[tuple(position)])] for position in form["samples"]]
    return {"shape": list(array.shape), "dtype": str(array.dtype), "mean": digits(array.mean(dtype=np.float64), 9),
            "std": digits(array.std(dtype=np.float64), 9), "samples": values}


def picture(upstream, case, form):
    """An image through the evaluation."""
    keys = {"TRAIN.IM_SIZE": case["train_im_size"], "TEST.IM_SIZE": case["test_im_size"]}
    return samples(prepared(upstream, fill.make_image(**case["image"]), "val", keys), form)


def train_picture(upstream, case, form):
    """An image through the augmentation of training."""
    np.random.seed(case["seed"])
    random.seed(case["seed"])
    keys = {"TRAIN.IM_SIZE": case["train_im_size"], "TRAIN.AUGMENT": case["augment"]}
    return samples(prepared(upstream, fill.make_image(**case["image"]), "train", keys), form)


def sizes(upstream, case, form):
    """The sizes after resize and crop."""
    seen = []
    with watched_resize(upstream, lambda image, size: seen.append(size)):
        keys = {"TRAIN.IM_SIZE": case["train_im_size"], "TEST.IM_SIZE": case["test_im_size"]}
        output = prepared(upstream, np.zeros((case["height"], case["width"], 3), np.uint8), "val", keys)
    width, height = seen[0] if seen else (case["width"], case["height"])
    return {"resized": bool(seen), "resized_width": width, "resized_height": height, "output_height": output.shape[1],
            "output_width": output.shape[2]}


@contextlib.contextmanager
def watched_resize(upstream, look):
    """Have look(image, (width, height)) called for every resize."""
    module = upstream.take("pycls.datasets.transforms", "cv2")
    original = module.resize

    def resize(image, size, **options):
        look(image, tuple(size))
        return original(image, size, **options)
    with mock.patch.object(module, "resize", resize):
        yield


def boxes(upstream, case, form):
    """The boxes of successive random crops, read from an image whose pixels are their own places."""
    y, x = np.mgrid[0:case["height"], 0:case["width"]].astype(np.float32)
    places, found = np.stack([x, y, x], axis=-1), []

    def look(image, size):
        found.append([int(image[0, 0, 0]), int(image[0, 0, 1]), image.shape[1], image.shape[0]])
    np.random.seed(case["numpy_seed"])
    with watched_resize(upstream, look):
        for _ in form["boxes_x_y_w_h"]:
            upstream.take("pycls.datasets.transforms", "random_sized_crop")(places, case["size"])
    return {"boxes_x_y_w_h": found}


def lighting(upstream, case, form):
    """The colour jitter's offsets, red first."""
    values, vectors = upstream.take("pycls.datasets.imagenet", "_EIG_VALS", "_EIG_VECS")
    np.random.seed(case["numpy_seed"])
    image = upstream.take("pycls.datasets.transforms", "lighting")(np.zeros((1, 1, 3)), case["std"], values, vectors)
    return {"rgb_offset": [digits(value, 12) for value in image[0, 0].tolist()]}


def augmented_original():
    return Image.fromarray(fill.make_image(64, 48, 5) // 2 + 40)


def augment_op(upstream, case, form):
    """An operation of AutoAugment at one strength, of the sign that the case's value has."""
    low, high, negate = upstream.take("pycls.datasets.augment", "OP_RANGES")[case["op"]]
    with mock.patch.object(random, "random", lambda: 1.0 if case["value"] < 0 else 0.0):
        image = upstream.take("pycls.datasets.augment", "apply_op")(augmented_original(), case["op"], 1.0, case["magnitude"])
    return dict(samples(np.asarray(image), form), min=low, max=high, negate=negate)


def augment_policy(upstream, case, form):
    """A drawn policy."""
    np.random.seed(case["seed"])
    random.seed(case["seed"])
    return samples(np.asarray(upstream.take("pycls.datasets.augment", "make_augment")(case["augment"])(augmented_original())), form)


# ---- log lines -----------------------------------------------------------------------------------------------------------------

def log_lines(upstream, case, form):
    """The lines of upstream's meters for given statistics, with steps of 0.25 s and 8123.4 MB."""
    configured(upstream, {"LOG_PERIOD": 2, "OPTIM.MAX_EPOCH": 100})
    module, lines, clock = upstream.take("pycls.core.meters"), [], [0.0]
    length = {phase: 1 + max(step["iter"] for step in case["feed"] if step["phase"] == phase) for phase in ("train", "test")}
    meters = {"train": module.TrainMeter(length["train"]), "test": module.TestMeter(length["test"])}
    timer = upstream.take("pycls.core.timer", "time")
    with mock.patch.object(module, "gpu_mem_usage", lambda: 8123.4), mock.patch.object(module.logger, "info", lines.append), \
            mock.patch.object(timer, "time", lambda: clock[0]):
        for step in case["feed"]:
            meter = meters[step["phase"]]
            meter.iter_tic()
            clock[0] += 0.25
            meter.iter_toc()
            meter.update_stats(*[step[key] for key in ("top1_err", "top5_err", "loss", "lr", "mb_size") if key in step])
            meter.log_iter_stats(step["epoch"], step["iter"])
            if step["iter"] + 1 == length[step["phase"]]:
                meter.log_epoch_stats(step["epoch"])
                meter.reset()
    return {"lines": lines}


_PICTURE = ("shape", "dtype", "mean", "std", "samples")
ENTRIES = (
    Entry("", ("config_defaults",), defaults),
    Entry("variants.*", ("state_dict", "num_state_dict_entries", "state_dict_sha256", "num_parameters", "flops"), layout),
    Entry("variants.*.complexity", ("flops", "params", "acts"), complexity),
    Entry("variants.*", ("eval_logits", "eval_logits_float64", "eval_float32_deviation"), evaluation),
    Entry("variants.*.calibrated", ("train_mode_logits", "train_mode_logits_float64", "eval_logits", "eval_logits_float64",
                                    "train_float32_deviation", "eval_float32_deviation"), calibrated),
    Entry("variants.*.train_losses.runs.*", ("train_losses", "train_losses_float64"), training),
    Entry("variants.*.lr_schedule.*", ("points",), schedule),
    Entry("variants.*.transforms.*", _PICTURE, picture),
    Entry("components.lr_policies.*", ("points",), schedule),
    Entry("components.loss.*", ("target_row_0", "loss", "grad_row_0"), loss),
    Entry("components.drop_connect.*", ("output",), drop_connect),
    Entry("components.mixup.*", ("lambda", "mixed_sample_0", "mixed_target_0", "hard_labels_out"), mixup),
    Entry("components.topk_errors.*", ("top1_err", "top5_err"), topk_errors),
    Entry("components.activation.*", ("y",), activation),
    Entry("components.optimizer_groups.*", ("default", "with BN.USE_CUSTOM_WEIGHT_DECAY True"), groups),
    Entry("components.precise_bn", ("float32", "float64", "batches_used"), precise_bn),
    Entry("components.init_reference.*.tensors.*", ("first", "sum", "l2", "std"), init_reference),
    Entry("components.resize_and_crop_sizes.*", ("resized", "resized_width", "resized_height", "output_height", "output_width"), sizes),
    Entry("components.random_sized_crop.*", ("boxes_x_y_w_h",), boxes),
    Entry("components.train_pipeline.*", _PICTURE, train_picture),
    Entry("components.lighting.*", ("rgb_offset",), lighting),
    Entry("components.augment_ops.*", _PICTURE + ("min", "max", "negate"), augment_op),
    Entry("components.augment_policies.*", _PICTURE, augment_policy),
    Entry("components.log_lines", ("lines",), log_lines),
)

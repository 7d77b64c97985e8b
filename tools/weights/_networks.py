"""The networks of the five models by name: how each is built, which one weights are of, and what it is shown of a picture."""
import contextlib
import os
import re
import sys
from argparse import Namespace
from collections import namedtuple

import numpy as np
import torch

from GENet import cifar
from common import data, loading, transforms
from common.cli import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
HRNETS = ("hrnet_w18_small_v1", "hrnet_w18_small_v2") + tuple("hrnet_w%d" % width for width in (18, 30, 32, 40, 44, 48, 64))
EFFICIENTNETS = tuple("efficientnet_b%d" % number for number in range(6))
FIXRES = {"fixres_resnet50": "ResNet50", "fixres_pnasnet": "PNASNet", "fixres_resnext101_32x48d": "IGAM_Resnext101_32x48d"}
_FIXRES_SIZES = {"fixres_resnet50": 384, "fixres_pnasnet": 480, "fixres_resnext101_32x48d": 320}  # of the published accuracies
GENET = "genet"
NAMES = RESNETS + HRNETS + EFFICIENTNETS + tuple(FIXRES) + (GENET,)
# Whose networks a state dict may be of, by a key that it has; the first counts. FixRes' ResNet-50 cannot be told from ResNet50's:
# without a word, it is the latter.
_FAMILIES = (("block1.layer.0.conv1.weight", (GENET,)), ("stage4.0.branches.0.0.conv1.weight", HRNETS),
             ("stem.conv.weight", EFFICIENTNETS), ("cell_stem_0.conv_1x1.conv.weight", ("fixres_pnasnet",)),
             ("layer1.0.conv1.weight", RESNETS + ("fixres_resnext101_32x48d",)))
_CLASSIFIERS = ("fc.weight", "classifier.weight", "head.fc.weight", "last_linear.weight")

# name: of NAMES; model: the directory; options: what builds it besides the name and the number of classes.
Network = namedtuple("Network", "name model classes options")
# What a network is shown: `transform(size)` gives f(PIL image in RGB, random.Random) -> uint8 (size, size, 3) in the order
# `channels` (RGB or BGR); `mean` and `std` of values in [0, 1], in that order; `size` in pixels.
View = namedtuple("View", "transform mean std channels size")


def directory(name):
    """Return the model's directory for a name of NAMES."""
    for model, names in (("ResNet50", RESNETS), ("HRNet", HRNETS), ("EfficientNet-B3", EFFICIENTNETS), ("FixRes", FIXRES)):
        if name in names:
            return model
    return "GENet"


def known(name, classes=1000, options=None):
    """Return the Network of a name. Raises UserError for another one."""
    if name not in NAMES:
        raise UserError("unknown network %s; choose one of %s" % (name, ", ".join(NAMES)))
    return Network(name, directory(name), classes, options or {})


def build(network):
    """Return the torch.nn.Module with random weights, in evaluation mode."""
    _reach(network.model)
    builders = {"ResNet50": _resnet, "HRNet": _hrnet, "EfficientNet-B3": _efficientnet, "FixRes": _fixres, "GENet": _genet}
    return builders[network.model](network).eval()


def _reach(model):
    folder = os.path.join(ROOT, model)
    if folder not in sys.path:
        sys.path.insert(0, folder)


def skeleton(network):
    """Return the module without memory for its weights, where PyTorch can (2.0 and later)."""
    with torch.device("meta") if hasattr(torch.device, "__enter__") else contextlib.suppress():
        return build(network)


def _resnet(network):
    import resnet
    return getattr(resnet, network.name)(network.classes)


def _hrnet(network):
    from lib.config import new_config, update_config
    from lib.models import build_model
    path = os.path.join(ROOT, "HRNet", "experiments", "cls_%s_sgd_lr5e-2_wd1e-4_bs32_x100.yaml" % network.name)
    config = new_config()
    update_config(config, Namespace(cfg=path, modelDir="", logDir="", dataDir="", testModel="",
                                    opts=["MODEL.NUM_CLASSES", str(network.classes)]))
    return build_model(config)


def _efficientnet(network):
    from pycls.models import effnet
    words = [str(word) for pair in sorted(network.options.items()) for word in pair]
    return effnet(network.name[-2:].upper(), cfg_list=words + ["MODEL.NUM_CLASSES", network.classes])


def _fixres(network):
    from imnet_common import networks
    return networks.build(FIXRES[network.name], network.classes)


def _genet(network):
    from models import WideResNet
    return WideResNet(num_classes=network.classes, **network.options)


# --- which network weights are of -------------------------------------------------------------------------------------

def classes_of(state):
    """Return how many outputs the classifier of a state dict has, 1000 where it is not to be seen."""
    return next((len(state[key]) for key in _CLASSIFIERS + ("classifier.1.weight",) if key in state), 1000)


def recognised(content, state, name=None):
    """Return the Network that weights in our own key names are of: `name`, or what the checkpoint `content` says, or else what keys
    and shapes fit. None where nothing fits."""
    classes = classes_of(state)
    name = name or _said_by(content) or _by_keys(state, classes)
    if name is None:
        return None
    options = {}
    if name == GENET:
        options = dict(_genet_options(state), **content.get("network") or {})
    elif name in EFFICIENTNETS and isinstance(content.get("cfg"), str):
        options = _efficientnet_options(content["cfg"])
    return known(name, classes, options)


def _by_keys(state, classes):
    names = next((names for key, names in _FAMILIES if key in state), ())
    if names == (GENET,):
        return GENET
    return next((name for name in names if fits(state, skeleton(known(name, classes)).state_dict())), None)


def _said_by(content):
    by_fixres = dict((architecture, name) for name, architecture in FIXRES.items())
    if content.get("arch") == "GENET":
        return GENET
    return by_fixres.get(content.get("architecture")) or (content.get("arch") if content.get("arch") in RESNETS else None)


def fits(state, own):
    """Return whether a state dict has the keys and shapes of `own`; counters of batches may be missing."""
    def shapes(tensors):
        return dict((key, tuple(value.shape)) for key, value in tensors.items() if not key.endswith("num_batches_tracked"))
    return shapes(state) == shapes(own)


def _genet_options(state):
    """Return WideResNet's arguments from its keys; the extent of a network without gather parameters cannot be seen, and counts
    as 0, the whole map."""
    blocks = len({key.split(".")[2] for key in state if key.startswith("block1.layer.")})
    gathers = [key for key in state if re.match(r"block1\.layer\.0\.downop\..*dwconv\.weight", key)]
    options = {"depth": 6 * blocks + 4, "width": len(state["block1.layer.0.conv1.weight"]) // 16, "extra_params": bool(gathers),
               "mlp": any(".mlp." in key for key in state), "extent": 0}
    if gathers and state[gathers[0]].shape[-1] == 3:
        options["extent"] = 2 ** len(gathers)
    return options


def _efficientnet_options(text):
    """Return {key: value} of what makes the network and its pictures in pycls' configuration, as a checkpoint has it."""
    import yaml
    said = yaml.safe_load(text)
    keys = ("MODEL.ACTIVATION_FUN", "BN.EPS", "TRAIN.IM_SIZE", "TEST.IM_SIZE")
    found = [(key, said.get(key.split(".")[0], {}).get(key.split(".")[1])) for key in keys]
    return dict((key, value) for key, value in found if value is not None)


# --- pictures ---------------------------------------------------------------------------------------------------------

def view_of(network, size=None):
    """Return the View of evaluation at `size` pixels, the recipe's without it. For GENet, whose pictures of 32 pixels are shown as
    they are, larger ones are made smaller first."""
    imagenet = (loading.IMAGENET_MEAN, loading.IMAGENET_STD, "RGB")
    if network.model == "ResNet50":
        return View(lambda size: transforms.eval_transform(size, size * 8 // 7), *imagenet, size=size or 224)
    if network.model == "HRNet":
        return View(lambda size: transforms.eval_transform(size, int(size / 0.875)), *imagenet, size=size or 224)
    if network.model == "EfficientNet-B3":
        return _efficientnet_view(network, size)
    if network.model == "FixRes":
        return _fixres_view(network, size)
    _reach(network.model)
    from cifar_batches import MEAN_STD
    mean, std = MEAN_STD["cifar100" if network.classes == 100 else "cifar10"]
    return View(lambda size: transforms.eval_transform(size, size), mean, std, "RGB", 32)


def _efficientnet_view(network, size):
    skeleton(network)  # sets pycls' configuration
    from pycls.core.config import cfg
    from pycls.datasets import loader, transforms as pictures
    crop, shorter = cfg.TRAIN.IM_SIZE, cfg.TEST.IM_SIZE

    def transform(size):
        resized = shorter if size == crop else size * shorter // crop
        return lambda image, rng: pictures.eval_transform(loader.upright(image), resized, size)
    return View(transform, pictures.MEAN, pictures.STD, "BGR", size or crop)


def _fixres_view(network, size):
    skeleton(network)
    from imnet_common import networks, transforms as pictures
    recipe = networks.RECIPES[FIXRES[network.name]]
    return View(pictures.eval_pipeline, recipe.mean, recipe.std, "RGB", size or _FIXRES_SIZES[network.name])


def normalised(pixels, view):
    """Return what the network is given, float (N, 3, size, size), for arrays of bytes (size, size, 3) that the view's transform has
    made."""
    pixels = torch.stack([torch.from_numpy(np.array(array)) for array in pixels]).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (view.mean, view.std))
    return ((pixels.float() / 255 - mean) / std).contiguous()


def validation_pictures(network, view, path):
    """Return how many pictures a network's validation set has, and f(index) -> (uint8 (size, size, 3) as the view shows it, class number)."""
    if network.model == "GENet":
        dataset = "cifar100" if network.classes == 100 else "cifar10"
        images, labels = cifar.read_split(cifar.find_folder(path, dataset), "test", dataset)
        return len(labels), lambda index: (images[index].transpose(1, 2, 0), int(labels[index]))
    data.check_layout(path, ("val",))
    folder = data.ImageFolder(os.path.join(path, "val"), view.transform(view.size), network.classes)

    def picture(index):
        pixels, target, bad = folder[(0, index)]
        if bad:
            raise UserError("unreadable picture " + bad[0])
        return pixels, target
    return len(folder), picture

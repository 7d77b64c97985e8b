"""The key names of other packages' networks, and what has to be folded into weights so that those networks give the same logits.

timm (https://github.com/huggingface/pytorch-image-models) and torchvision have kept the key names of the residual networks, timm
those of HRNet. Their EfficientNets have others than pycls', see RGB where pycls' sees BGR, and may have another BatchNorm constant.
"""
import re

import torch
from torch import nn

from common.cli import UserError
from weights import _networks

PACKAGES = ("timm", "torchvision")
_EPS = {("torchvision", "efficientnet_b5"): 1e-3}
_USUAL_EPS = 1e-5
# Parts of a block in the order of their layers, where the input is widened first; without that, the first two are not there.
_PARTS = ("exp", "exp_bn", "dwise", "dwise_bn", "se.f_ex.0", "se.f_ex.2", "lin_proj", "lin_proj_bn")
_TIMM_PARTS = {8: ("conv_pw", "bn1", "conv_dw", "bn2", "se.conv_reduce", "se.conv_expand", "conv_pwl", "bn3"),
               6: ("conv_dw", "bn1", "se.conv_reduce", "se.conv_expand", "conv_pw", "bn2")}
_TORCHVISION_PARTS = {8: ("0.0", "0.1", "1.0", "1.1", "2.fc1", "2.fc2", "3.0", "3.1"),
                      6: ("0.0", "0.1", "1.fc1", "1.fc2", "2.0", "2.1")}
_ENDS = {"timm": {"stem.conv": "conv_stem", "stem.bn": "bn1", "head.conv": "conv_head", "head.conv_bn": "bn2",
                  "head.fc": "classifier"},
         "torchvision": {"stem.conv": "features.0.0", "stem.bn": "features.0.1", "head.conv": "features.8.0",
                         "head.conv_bn": "features.8.1", "head.fc": "classifier.1"}}
_STEMS = {"timm": "conv_stem.weight", "torchvision": "features.0.0.weight"}


def counterpart(network, package):
    """Return the name of the same network in a package. Raises UserError, with the reason, where there is none."""
    name = network.name
    reason = None
    if network.model == "HRNet" and package == "timm":
        name = name.replace("_small_v1", "_small")
    elif network.model == "HRNet":
        reason = "torchvision has no HRNet; timm has"
    elif network.model == "GENet":
        reason = "%s has no gather-excite network on wide residual networks for pictures of 32 pixels" % package
    elif name == "fixres_pnasnet":
        reason = ("timm's pads as TensorFlow does at every size, FixRes' at some (331) alone, so the logits differ"
                  if package == "timm" else "torchvision has no PNASNet")
    elif name == "fixres_resnext101_32x48d":
        reason = "%s has no ResNeXt-101 32x48d by name; the keys are those of torchvision's ResNet class" % package
    elif network.model == "EfficientNet-B3" and network.options.get("MODEL.ACTIVATION_FUN", "silu").lower() == "relu":
        reason = "it was trained with ReLU (MODEL.ACTIVATION_FUN), theirs has SiLU"
    if reason:
        raise UserError("%s cannot be exported for %s: %s" % (network.name, package, reason))
    return name.replace("fixres_", "")


def key_names(keys, network, package):
    """Return {our key: the package's key} for the keys of a network."""
    if network.model != "EfficientNet-B3":
        return dict((key, key) for key in keys)
    widened = {key.split(".exp.")[0] for key in keys if ".exp." in key}
    return dict((key, _efficientnet_key(key, widened, package)) for key in keys)


def _efficientnet_key(key, widened, package):
    module, what = key.rsplit(".", 1)
    if module in _ENDS[package]:
        return "%s.%s" % (_ENDS[package][module], what)
    stage, block, part = re.match(r"s(\d+)\.b(\d+)\.(.*)", module).groups()
    parts = _PARTS if "s%s.b%s" % (stage, block) in widened else _PARTS[2:]
    if package == "timm":
        return "blocks.%d.%d.%s.%s" % (int(stage) - 1, int(block) - 1, _TIMM_PARTS[len(parts)][parts.index(part)], what)
    return "features.%s.%d.block.%s.%s" % (stage, int(block) - 1, _TORCHVISION_PARTS[len(parts)][parts.index(part)], what)


def for_package(state, network, package):
    """Return our state dict as the package's network of the same name takes it, strictly."""
    counterpart(network, package)
    own = dict(_networks.skeleton(network).state_dict())
    names = key_names(own, network, package)
    renamed = dict((names[key], value) for key, value in state.items())
    if network.model == "EfficientNet-B3":
        _turn_channels(renamed, _STEMS[package])
        _move_constant(renamed, _own_eps(network) - _their_eps(network, package))
    return renamed


def from_package(state, network, package):
    """Return the package's state dict in our key names; the way back of `for_package`."""
    own = _networks.skeleton(network).state_dict()
    names = dict((theirs, ours) for ours, theirs in key_names(own, network, package).items())
    state = dict((names[key], value) for key, value in state.items())
    if network.model == "EfficientNet-B3":
        _turn_channels(state, "stem.conv.weight")
        _move_constant(state, _their_eps(network, package) - _own_eps(network))
    return state


def found(state):
    """Return (network, package) for a state dict in a package's own key names, None where it has none such."""
    package = next((package for package, key in _STEMS.items() if key in state), None)
    for name in _networks.EFFICIENTNETS if package else ():
        network = _networks.known(name, _networks.classes_of(state))
        own = _networks.skeleton(network).state_dict()
        names = key_names(own, network, package)
        if _networks.fits(state, dict((names[key], value) for key, value in own.items())):
            return network, package
    return None


def renormalised(state, network, mean, std):
    """Return a state dict, in our names, of weights trained on pictures normalised with `mean` and `std` (R, G, B; None: as ours),
    for pictures normalised as ours are. Raises UserError where the mean is another one."""
    view = _networks.view_of(network)
    order = -1 if view.channels == "BGR" else 1
    mean, std = mean[::order] if mean else view.mean, std[::order] if std else view.std
    if any(abs(one - other) > 1e-6 for one, other in zip(mean, view.mean)):
        raise UserError("weights for pictures with mean %s cannot be folded into ones for mean %s (%s): the first convolution pads "
                        "with zeros, which are the mean" % (_listed(mean), _listed(view.mean), view.channels))
    first = next(key for key, value in state.items() if value.dim() == 4)
    factor = torch.tensor(view.std) / torch.tensor(std)
    return dict(state, **{first: state[first] * factor.view(1, 3, 1, 1)})


def _listed(values):
    return ",".join("%g" % value for value in values)


def _turn_channels(state, stem):
    """RGB for BGR, or the other way, in place: the mean and std of each colour go with it."""
    state[stem] = state[stem].flip(1)


def _move_constant(state, difference):
    """Give the BatchNorms, in place, variances that with an epsilon smaller by `difference` divide by what they have divided by."""
    for key in state if difference else ():
        if key.endswith("running_var"):
            state[key] = state[key] + difference


def _own_eps(network):
    return next(module.eps for module in _networks.skeleton(network).modules() if isinstance(module, nn.BatchNorm2d))


def _their_eps(network, package):
    return _EPS.get((package, network.name), _USUAL_EPS)

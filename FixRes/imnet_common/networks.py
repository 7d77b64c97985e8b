"""The networks that FixRes adapts, by the names that its command lines use."""
from collections import OrderedDict, namedtuple

import torch

from common.cli import UserError
from common.device import import_torchvision
from imnet_common.pnasnet import PNASNet5Large, without_background
from imnet_common.resnext import resnext101_32x48d

# Per architecture: mean and std of the normalisation, and where its first weights were published (ResNet50: phase 1 makes them).
Recipe = namedtuple("Recipe", "mean std first_weights")

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
RECIPES = OrderedDict([
    ("ResNet50", Recipe(*_IMAGENET, first_weights=None)),
    ("PNASNet", Recipe(*_HALVES, first_weights="http://data.lip6.fr/cadene/pretrainedmodels/pnasnet5large-bf079911.pth")),
    ("IGAM_Resnext101_32x48d", Recipe(
        *_IMAGENET, first_weights="https://download.pytorch.org/models/ig_resnext101_32x48-3e41cc8a.pth")),
    ("EfficientNet", Recipe(*_IMAGENET, first_weights="timm's own")),
])
ARCHITECTURES = tuple(RECIPES)


def build(architecture, num_classes=1000, efficientnet_model="tf_efficientnet_b0_ap"):
    """Return the network with PyTorch's (for a ResNet: He et al.'s) random weights.

    Input (batch, 3, height, width) of any size, output (batch, num_classes) logits. Raises UserError where timm, which
    EfficientNet comes from, is not installed or does not know `efficientnet_model`.
    """
    if architecture == "ResNet50":
        return import_torchvision().models.resnet50(num_classes=num_classes)
    if architecture == "PNASNet":
        return PNASNet5Large(num_classes)
    if architecture == "IGAM_Resnext101_32x48d":
        return resnext101_32x48d(num_classes)
    return _efficientnet(efficientnet_model, num_classes)


def _efficientnet(name, num_classes, pretrained=False):
    import_torchvision()  # timm imports it
    try:
        import timm
    except ImportError:
        raise UserError("--architecture EfficientNet needs the package timm: pip install timm")
    try:
        return timm.create_model(name, num_classes=num_classes, pretrained=pretrained)
    except RuntimeError as error:
        raise UserError("--EfficientNet_models %s: timm says: %s" % (name, error))


def first_weights(architecture, efficientnet_model="tf_efficientnet_b0_ap"):
    """Fetch and return the published state_dict (1000 classes) that fine-tuning starts from when no file is given.

    ResNet50 has none: raises UserError, as it does when the download fails.
    """
    if architecture == "EfficientNet":
        return _efficientnet(efficientnet_model, 1000, pretrained=True).state_dict()
    address = RECIPES[architecture].first_weights
    if address is None:
        raise UserError("--architecture %s needs start weights: give the checkpoint of phase 1 with --resnet_weight_path"
                        % architecture)
    try:
        state_dict = torch.hub.load_state_dict_from_url(address, map_location="cpu")
    except OSError as error:
        raise UserError("cannot fetch %s (%s): fetch it yourself and give the file with --pth_path" % (address, error))
    return without_background(state_dict) if architecture == "PNASNet" else state_dict

"""What fine-tuning adapts to the new resolution: the classifier's weights and the statistics of the last BatchNorm.

The statistics of activations change with the resolution at which a network looks at objects (Touvron et al., arXiv 1906.06423,
section 3.2). For a ResNet the run therefore trains `fc` alone, and lets `layer4.2.bn3` normalise with the batch's statistics
and collect new ones. Its weight and bias stay as they are, and so does everything before it.
"""
from collections import namedtuple
from functools import reduce

# Parameters are trained in the direct children whose names contain one of `trained`; `in_train_mode` are paths of modules.
Adaptation = namedtuple("Adaptation", "trained in_train_mode")

_RESNET = Adaptation(trained=("fc",), in_train_mode=("layer4.2.bn3",))
ADAPTATIONS = {
    "ResNet50": _RESNET,
    "IGAM_Resnext101_32x48d": _RESNET,
    "PNASNet": Adaptation(trained=("last_linear", "cell_9", "cell_10", "cell_11"),
                          in_train_mode=("cell_9", "cell_10", "cell_11", "dropout")),
    "EfficientNet": Adaptation(trained=("classifier",), in_train_mode=("classifier", "conv_head", "bn2")),
}


def freeze(model, architecture):
    """Turn gradients off for every parameter that fine-tuning leaves alone. To be called before DDP wraps the model.

    A frozen parameter must have no gradient at all: with a gradient of zeros, SGD's weight decay would shrink it.
    """
    trained = ADAPTATIONS[architecture].trained
    for name, child in model.named_children():
        is_trained = any(part in name for part in trained)
        for parameter in child.parameters():
            parameter.requires_grad = is_trained


def set_finetune_mode(model, architecture):
    """Put the whole (unwrapped) model in eval mode but for the modules that fine-tuning keeps in train mode."""
    model.eval()
    for path in ADAPTATIONS[architecture].in_train_mode:
        reduce(getattr, path.split("."), model).train()

"""Start weights, from a file or from the folder of an earlier phase."""
import os

from common import checkpoint, network
from common.cli import UserError
from imnet_common.pnasnet import without_background

# Names that checkpoints have, in the order in which a folder is searched: the end of a run comes before its best epoch.
NAMES = ("checkpoint.pth", "checkpoint.pth.tar", "model_best.pth", "model_best.pth.tar")
HEADS = ("fc.weight", "last_linear.weight", "classifier.weight")


def file_of(path):
    """Return `path`, or for a folder the checkpoint in it. Raises UserError where there is none."""
    if os.path.isdir(path):
        for name in NAMES:
            if os.path.isfile(os.path.join(path, name)):
                return os.path.join(path, name)
        raise UserError("the folder %s holds no weights (wanted: one of %s)" % (path, ", ".join(NAMES)))
    if not os.path.isfile(path):
        raise UserError("no weights file %s" % path)
    return path


def load(model, path, num_classes, use_ema="auto", new_classifier=False):
    """Load the file (or the folder's checkpoint) `path` into `model`; every key has to fit.

    Returns a line that says which weights in it were taken (`use_ema`: see checkpoint.weights_key), '' where there is no choice.
    Upstream's layouts all do: with or without `module.`, under `model` or `state_dict` or bare. The 1001 classes of PNASNet's
    original weights lose their background. With `new_classifier` that of `model` stays. Raises UserError with what does not
    fit, the number of classes first.
    """
    path = file_of(path)
    content = checkpoint.load(path)
    state = checkpoint.weights(content, path, use_ema)
    if "last_linear.weight" in state and state["last_linear.weight"].shape[:1] == (1001,):
        state = without_background(state)
    if new_classifier:
        state = network.with_own_classifier(model, state)
    for head in HEADS:
        if head in model.state_dict() and head in state and state[head].dim() == 2 and len(state[head]) != num_classes:
            raise UserError("%s was trained on %d classes, this run has %d: give weights of the same classes, or --num_classes; "
                            "a training with --new_classifier takes any" % (path, len(state[head]), num_classes))
    checkpoint.load_weights(model, state, path)
    return checkpoint.describe(content, path, use_ema)

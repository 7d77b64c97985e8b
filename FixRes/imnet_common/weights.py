"""Start weights, from a file or from the folder of an earlier phase."""
import os

from common import checkpoint
from common.cli import UserError
from imnet_common.pnasnet import without_background

# Names that checkpoints have, in the order in which a folder is searched: the end of a run comes before its best epoch.
NAMES = ("checkpoint.pth", "checkpoint.pth.tar", "model_best.pth", "model_best.pth.tar")


def file_of(path):
    """Return `path`, or for a folder the checkpoint in it. Raises UserError where there is none."""
    if os.path.isdir(path):
        for name in NAMES:
            if os.path.isfile(os.path.join(path, name)):
                return os.path.join(path, name)
        raise UserError("the folder %s holds no weights (wanted: one of %s)" % (path, ", ".join(NAMES)))
    return path


def load(model, path, use_ema="auto", new_classifier=False):
    """Load the file (or the folder's checkpoint) `path` into `model`, as common.checkpoint.load_weights does, and return its line
    for the log. The 1001 classes of PNASNet's original weights lose their background."""
    path = file_of(path)
    content = checkpoint.load(path)
    state = checkpoint.weights(content, path, use_ema)
    if "last_linear.weight" in state and state["last_linear.weight"].shape[:1] == (1001,):
        state = without_background(state)
    checkpoint.load_weights(model, state, path, new_classifier=new_classifier)
    return checkpoint.describe(content, path, use_ema)

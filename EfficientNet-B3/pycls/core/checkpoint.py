"""pycls' checkpoint files: where they lie, what is in them, and which weights to take from one."""
import glob
import os

from common import checkpoint
from common.cli import UserError
from common.distributed import unwrapped

_NEWEST = "checkpoint.pth.tar"
_BEST = ("model.pyth", "model_best.pth.tar")
_CLASSIFIER = ("head.fc.weight", "head.fc.bias")


# --- weights ----------------------------------------------------------------------------------------------------------

def weights_file(path):
    """Return the weights file that `path` names: itself, or the model.pyth in that folder. Raises UserError for a URL."""
    if "://" in path:
        raise UserError("weights %s: nothing is downloaded; fetch the file and give its path" % path)
    if not os.path.isdir(path):
        return path
    inside = os.path.join(path, _BEST[0])
    if not os.path.isfile(inside):
        raise UserError("weights %s: is a folder without %s; give the file" % (path, _BEST[0]))
    return inside


def load_weights(path, model, new_classifier=False):
    """Load the weights of a file into `model`; every key and shape has to fit. Raises UserError otherwise.

    `new_classifier`: leave the classifier as it is, so that the file may be of another number of classes.
    """
    source = weights_file(path)
    state = checkpoint.weights(_better_state(checkpoint.load(source)))
    if new_classifier:
        own = unwrapped(model).state_dict()
        state = dict(state, **{key: own[key] for key in _CLASSIFIER})
    checkpoint.load_weights(unwrapped(model), state, source)


def _better_state(content):
    """Of a file that holds a moving average too, return the weights with the smaller error (missing ones count as 100)."""
    if not isinstance(content, dict) or "ema_state" not in content:
        return content
    if "model_state" in content and content.get("test_err", 100) <= content.get("ema_err", 100):
        return content["model_state"]
    return content["ema_state"]

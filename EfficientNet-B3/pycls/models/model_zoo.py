"""Networks of the family by name, without a command line."""
import os

from common.cli import UserError
from pycls.core.checkpoint import load_weights
from pycls.core.config import load_cfg
from pycls.models.effnet import EffNet

_CONFIGS = os.path.join(os.path.dirname(__file__), "..", "..", "configs", "dds_baselines", "effnet")
_NAMES = ("B0", "B1", "B2", "B3", "B4", "B5")


def effnet(name, pretrained="", cfg_list=()):
    """Return EfficientNet `name` (B0 … B5, or with the prefix EfficientNet-) in evaluation mode for 1000 classes.

    `pretrained` is a file of weights; nothing is downloaded. `cfg_list` holds KEY VALUE pairs. Like upstream's function
    this sets the global configuration, which the network reads. Raises UserError for an unknown name or bad weights.
    """
    short = name.replace("EfficientNet-", "")
    if short not in _NAMES:
        raise UserError("unknown network %r: choose one of %s" % (name, ", ".join(_NAMES)))
    load_cfg(os.path.join(_CONFIGS, "EN-%s_dds_8gpu.yaml" % short), [str(word) for word in cfg_list])
    model = EffNet()
    if pretrained:
        load_weights(pretrained, model)
    return model.eval()

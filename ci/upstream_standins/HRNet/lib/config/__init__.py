"""Upstream's two names, the port's tree (less the two keys that upstream reads and its tree lacks)."""
import os
import sys

from ports import ROOT

sys.path.append(os.path.join(ROOT, "HRNet"))
from lib.config import default  # noqa: E402

config = default.new_config()
config.defrost()
del config.TRAIN["RMSPROP_ALPHA"], config.TRAIN["RMSPROP_CENTERED"]


def update_config(cfg, args):
    args.opts = []
    port = default.new_config()
    default.update_config(port, args)
    port.defrost()
    del port.TRAIN["RMSPROP_ALPHA"], port.TRAIN["RMSPROP_CENTERED"]
    cfg.defrost()
    cfg.merge_from_other_cfg(port)
    cfg.freeze()

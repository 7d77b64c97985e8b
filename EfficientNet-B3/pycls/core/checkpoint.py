"""pycls' checkpoint files: where they lie, what is in them, and which weights to take from one."""
import glob
import os

from common import checkpoint
from common.cli import UserError
from common.distributed import unwrapped
from common.progress import Progress
from pycls.core.config import cfg

_FOLDER = "checkpoints"
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


# --- training ---------------------------------------------------------------------------------------------------------

def make_progress(rank, parts):
    """Return the Progress of a training whose `parts` are {model_state, optimizer_state, ...} with a state_dict each."""
    return Progress(rank, "model_state", parts, os.path.join(cfg.OUT_DIR, _NEWEST), os.path.join(cfg.OUT_DIR, _BEST[1]),
                    constants={"cfg": cfg.dump()}, every_steps=cfg.TRAIN.SAVE_STEPS)


def newest_checkpoint():
    """Return the file in OUT_DIR to resume from, or None: our own, else the last of an upstream run."""
    ours = os.path.join(cfg.OUT_DIR, _NEWEST)
    if os.path.isfile(ours):
        return ours
    upstreams = sorted(glob.glob(os.path.join(glob.escape(cfg.OUT_DIR), _FOLDER, "model_epoch_*.pyth")))
    return upstreams[-1] if upstreams else None


def resume(progress, source):
    """Continue from the checkpoint file `source`; return the keys that it lacks.

    Upstream's `epoch` is the one that has ended, ours the one that comes next.
    """
    content = checkpoint.load(source)
    if os.path.basename(source) != _NEWEST and isinstance(content, dict):
        content = dict(content, epoch=int(content.get("epoch", -1)) + 1, step=0)
    return progress.resume(content, source)


def end_epoch(progress, parts, errors, rank):
    """Write the files of an epoch that has ended, which `progress` is still in; return the path of upstream's.

    `errors`: {test_err, and with a moving average ema_err}, top-1 in per cent. Upstream's file has upstream's keys; the
    best one, and of several equally good ones the last, is copied to model.pyth.
    """
    top1 = 100.0 - min(errors.values())
    is_best = progress.best is None or top1 >= progress.best
    path = os.path.join(cfg.OUT_DIR, _FOLDER, "model_epoch_%04d.pyth" % (progress.epoch + 1))
    if rank.is_main:
        state = dict(((key, part.state_dict()) for key, part in parts.items() if key != "amp"), cfg=cfg.dump(),
                     epoch=progress.epoch, **errors)
        checkpoint.save(state, path, [os.path.join(cfg.OUT_DIR, _BEST[0])] if is_best else [])
    progress.end_epoch(top1, [os.path.join(cfg.OUT_DIR, _BEST[1])] if top1 == progress.best else [])
    return path

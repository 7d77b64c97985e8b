"""pycls' checkpoint files: where they lie, what is in them, and which weights to take from one."""
import glob
import os

from common import checkpoint, resume
from common.cli import UserError
from common.distributed import unwrapped
from common.meters import Tally
from common.progress import Progress
from pycls.core import net
from pycls.core.config import cfg

_FOLDER = "checkpoints"
_NEWEST = "checkpoint.pth.tar"
_BEST = ("model.pyth", "model_best.pth.tar")
_ERRORS = {"test": "test_err", "test_ema": "ema_err"}  # as newer pycls names them


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


def load_weights(path, model, new_classifier=False, use_ema="auto"):
    """Load the weights of a file, or of the model.pyth in a folder, into `model` as common.checkpoint.load_weights does."""
    source = weights_file(path)
    return checkpoint.load_weights(model, checkpoint.load(source), source, use_ema, new_classifier)


# --- training ---------------------------------------------------------------------------------------------------------

def parts_of(learner):
    """Return what a checkpoint holds the state of, by upstream's keys: {model_state, optimizer_state, ...}."""
    parts = {"model_state": unwrapped(learner.model), "optimizer_state": learner.optimizer, "amp": learner.amp}
    return parts if learner.ema is None else dict(parts, ema_state=learner.ema)


def make_progress(rank, parts):
    """Return the Progress of a training whose `parts` are those of `parts_of`. Its numbers are means over the ranks."""
    progress = Progress(rank, "model_state", parts, os.path.join(cfg.OUT_DIR, _NEWEST), None,
                        constants={"cfg": cfg.dump(), "seed": cfg.RNG_SEED, "min_errors": {}}, every_steps=cfg.TRAIN.SAVE_STEPS,
                        keep=cfg.TRAIN.KEEP_CHECKPOINTS)
    names = _BEST + (cfg.CFG_DEST, "stdout.log", os.path.join(_FOLDER, "model_epoch_[0-9]*.pyth"))
    progress.products += [os.path.join(cfg.OUT_DIR, name) for name in names]
    progress.tally = Tally("epoch 0", reduce=net.mean_over_ranks)
    return progress


def newest_checkpoint():
    """Return the file in OUT_DIR to resume from, or None: our own, else the last of an upstream run."""
    ours = os.path.join(cfg.OUT_DIR, _NEWEST)
    if os.path.isfile(ours) or os.path.isfile(ours + ".1"):
        return ours
    upstreams = sorted(glob.glob(os.path.join(glob.escape(cfg.OUT_DIR), _FOLDER, "model_epoch_*.pyth")))
    return upstreams[-1] if upstreams else None


def choose(asked, rank):
    """Return (content, file) to go on from as common.resume.choose does, for `asked`, of --resume. (Upstream's `epoch` is the one
    that has ended, ours is the next.)"""
    content, source = resume.choose(resume.AUTO if asked is None and cfg.TRAIN.AUTO_RESUME else asked, newest_checkpoint(), rank)
    if source and "step" not in content:
        content = dict(content, epoch=int(content.get("epoch", -1)) + 1, step=0)
    return content, source


def end_epoch(progress, parts, results, rank):
    """Write the files of an epoch that has ended, which `progress` is still in; return the path of upstream's.

    `results`: the meters.Result of each network, test and perhaps test_ema, the better of which `progress` has noted. Upstream's
    file has upstream's keys; the best one, and of several equally good ones the last, is copied to model.pyth.
    """
    is_best = progress.results["val.top1"] == progress.best
    errors = {_ERRORS[name]: 100.0 - result.top1 for name, result in results.items()}
    path = os.path.join(cfg.OUT_DIR, _FOLDER, "model_epoch_%04d.pyth" % (progress.epoch + 1))
    if rank.is_main:
        state = dict(((key, part.state_dict()) for key, part in parts.items() if key != "amp"), cfg=cfg.dump(),
                     epoch=progress.epoch, **errors)
        checkpoint.save(state, path, [os.path.join(cfg.OUT_DIR, _BEST[0])] if is_best else [])
    progress.end_epoch([os.path.join(cfg.OUT_DIR, _BEST[1])] if is_best else [])
    return path

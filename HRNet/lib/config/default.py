"""The configuration tree: upstream's keys, types and defaults, and how a YAML file and a command line are merged into it.

Each key says what it does here. Keys marked "not read" come from the pose-estimation code that upstream grew from; they stay
so that anybody's YAML merges, and `unread_settings` lets a program say which of them a YAML sets in vain. A flag of
tools/train.py that says the same as a key (--lr and TRAIN.LR, ...) goes before the key.
"""
import difflib
import functools
import os

import yaml
from yacs.config import CfgNode as CN

from common import folders, ranges
from common.cli import UserError

_C = CN()
# Folder for checkpoints and logs; the run writes to <OUTPUT_DIR>/<DATASET.DATASET>/<name of the YAML file>. (--modelDir)
_C.OUTPUT_DIR = ""
# Folder for TensorBoard events; '' writes none. (--logDir)
_C.LOG_DIR = ""
# Folder above the data set, used to make DATASET.ROOT. (--dataDir)
_C.DATA_DIR = ""
# GPUs of upstream's single process. Here each device has its own process, and --device_list or --device_id choose; train.py only
# says so when it uses TRAIN.LR with another number of devices than these.
_C.GPUS = (0,)
# Loader processes of all devices of this host together. (--nproc; --workers counts those of one process)
_C.WORKERS = 4
# Steps between two printed lines.
_C.PRINT_FREQ = 20
_C.AUTO_RESUME = False  # not read; TRAIN.RESUME is
_C.PIN_MEMORY = True  # not read: batches are pinned wherever the device can use it
_C.RANK = 0  # not read: the launcher or --device_id sets the rank

_C.CUDNN = CN()
_C.CUDNN.BENCHMARK = True  # let cuDNN time its algorithms and keep the fastest
_C.CUDNN.DETERMINISTIC = False  # only deterministic cuDNN algorithms
_C.CUDNN.ENABLED = True  # use cuDNN at all

_C.MODEL = CN()
_C.MODEL.NAME = "cls_hrnet"  # which network of lib/models
_C.MODEL.INIT_WEIGHTS = True  # not read: weights are always initialised
_C.MODEL.PRETRAINED = ""  # not read: use --pretrained
_C.MODEL.NUM_JOINTS = 17  # not read
_C.MODEL.NUM_CLASSES = 1000  # outputs of the classifier
_C.MODEL.TAG_PER_JOINT = True  # not read
_C.MODEL.TARGET_TYPE = "gaussian"  # not read
_C.MODEL.IMAGE_SIZE = [256, 256]  # width, height in pixels; the first is used for both directions
_C.MODEL.HEATMAP_SIZE = [64, 64]  # not read
_C.MODEL.SIGMA = 2  # not read
# STAGE1 .. STAGE4, each: BLOCK (BASIC or BOTTLENECK), NUM_MODULES (exchange units), NUM_BRANCHES, NUM_BLOCKS and NUM_CHANNELS
# (a list, one entry a branch), FUSE_METHOD (SUM). STAGE1 uses BLOCK and the first entries of NUM_BLOCKS and NUM_CHANNELS; its
# NUM_RANCHES, upstream's spelling, is not read, nor is WITH_HEAD.
_C.MODEL.EXTRA = CN(new_allowed=True)

_C.LOSS = CN()  # nothing of it is read: the loss is the cross-entropy
_C.LOSS.USE_OHKM = False  # not read
_C.LOSS.TOPK = 8  # not read
_C.LOSS.USE_TARGET_WEIGHT = True  # not read
_C.LOSS.USE_DIFFERENT_JOINTS_WEIGHT = False  # not read

_C.DATASET = CN()
# Folder of the two sets below, used where the command names no data path. A YAML's value is replaced by
# <DATA_DIR>/<DATASET>/images, as upstream does; a KEY VALUE override stands.
_C.DATASET.ROOT = ""
_C.DATASET.DATASET = "mpii"  # name of the data set in output paths
_C.DATASET.TRAIN_SET = "train"  # folder of the training images, one folder a class in it
_C.DATASET.TEST_SET = "valid"  # folder of the validation images
_C.DATASET.DATA_FORMAT = "jpg"  # not read: pictures are recognised by their file names
_C.DATASET.HYBRID_JOINTS_TYPE = ""  # not read
_C.DATASET.SELECT_DATA = False  # not read
_C.DATASET.FLIP = True  # not read: training images are always flipped at random
_C.DATASET.SCALE_FACTOR = 0.25  # not read
_C.DATASET.ROT_FACTOR = 30  # not read
_C.DATASET.PROB_HALF_BODY = 0.0  # not read
_C.DATASET.NUM_JOINTS_HALF_BODY = 8  # not read
_C.DATASET.COLOR_RGB = False  # not read: always RGB

_C.TRAIN = CN()
_C.TRAIN.LR_FACTOR = 0.1  # the learning rate is multiplied by this at each milestone
_C.TRAIN.LR_STEP = [90, 110]  # the milestones: epochs, counted from 0, that start with the smaller rate
# Learning rate of the whole batch of all devices. (--lr is the rate of one device and is multiplied by their number)
_C.TRAIN.LR = 0.001
_C.TRAIN.OPTIMIZER = "adam"  # sgd, adam or rmsprop
_C.TRAIN.MOMENTUM = 0.9  # sgd, rmsprop
_C.TRAIN.WD = 0.0001  # weight decay of all parameters, BatchNorm and biases too (sgd, rmsprop)
_C.TRAIN.NESTEROV = False  # Nesterov momentum (sgd)
_C.TRAIN.RMSPROP_ALPHA = 0.99  # smoothing of the squared gradient (rmsprop); upstream reads it, but its tree lacks it
_C.TRAIN.RMSPROP_CENTERED = False  # subtract the squared mean gradient (rmsprop); as above
_C.TRAIN.GAMMA1 = 0.99  # not read
_C.TRAIN.GAMMA2 = 0.0  # not read
_C.TRAIN.BEGIN_EPOCH = 0  # first epoch, counted from 0; a resumed run starts where its checkpoint stands
_C.TRAIN.END_EPOCH = 140  # number of epochs. (--train_epochs)
_C.TRAIN.RESUME = False  # continue from checkpoint.pth.tar in the output folder if it is there. (--resume)
_C.TRAIN.CHECKPOINT = ""  # not read: --resume takes a file name
_C.TRAIN.BATCH_SIZE_PER_GPU = 32  # images a step of one device. (--bs)
_C.TRAIN.SHUFFLE = True  # not read: training images are always shuffled

_C.TEST = CN()
_C.TEST.BATCH_SIZE_PER_GPU = 32  # images a step of one device in validation. (--bs)
_C.TEST.FLIP_TEST = False  # not read
_C.TEST.POST_PROCESS = False  # not read
_C.TEST.SHIFT_HEATMAP = False  # not read
_C.TEST.USE_GT_BBOX = False  # not read
_C.TEST.IMAGE_THRE = 0.1  # not read
_C.TEST.NMS_THRE = 0.6  # not read
_C.TEST.SOFT_NMS = False  # not read
_C.TEST.OKS_THRE = 0.5  # not read
_C.TEST.IN_VIS_THRE = 0.0  # not read
_C.TEST.COCO_BBOX_FILE = ""  # not read
_C.TEST.BBOX_THRE = 1.0  # not read
_C.TEST.MODEL_FILE = ""  # weights that tools/valid.py evaluates. (--testModel)

_C.DEBUG = CN()  # nothing of it is read
_C.DEBUG.DEBUG = False  # not read
_C.DEBUG.SAVE_BATCH_IMAGES_GT = False  # not read
_C.DEBUG.SAVE_BATCH_IMAGES_PRED = False  # not read
_C.DEBUG.SAVE_HEATMAPS_GT = False  # not read
_C.DEBUG.SAVE_HEATMAPS_PRED = False  # not read

# What a number may be; of a list, each of its numbers.
RANGES = {
    "WORKERS": ranges.workers, "PRINT_FREQ": ranges.size,
    "MODEL.NUM_CLASSES": ranges.size, "MODEL.IMAGE_SIZE": ranges.size,
    "TRAIN.LR_FACTOR": ranges.natural, "TRAIN.LR_STEP": ranges.count, "TRAIN.LR": ranges.natural, "TRAIN.MOMENTUM": ranges.fraction,
    "TRAIN.WD": ranges.natural, "TRAIN.RMSPROP_ALPHA": ranges.fraction, "TRAIN.BEGIN_EPOCH": ranges.count,
    "TRAIN.END_EPOCH": ranges.count, "TRAIN.BATCH_SIZE_PER_GPU": ranges.size,
    "TEST.BATCH_SIZE_PER_GPU": ranges.size,
}

UNREAD = (
    "AUTO_RESUME", "PIN_MEMORY", "RANK", "MODEL.INIT_WEIGHTS", "MODEL.PRETRAINED", "MODEL.NUM_JOINTS", "MODEL.TAG_PER_JOINT",
    "MODEL.TARGET_TYPE", "MODEL.HEATMAP_SIZE", "MODEL.SIGMA", "LOSS", "DATASET.DATA_FORMAT", "DATASET.HYBRID_JOINTS_TYPE",
    "DATASET.SELECT_DATA", "DATASET.FLIP", "DATASET.SCALE_FACTOR", "DATASET.ROT_FACTOR", "DATASET.PROB_HALF_BODY",
    "DATASET.NUM_JOINTS_HALF_BODY", "DATASET.COLOR_RGB", "TRAIN.GAMMA1", "TRAIN.GAMMA2", "TRAIN.CHECKPOINT", "TRAIN.SHUFFLE",
    "TEST.FLIP_TEST", "TEST.POST_PROCESS", "TEST.SHIFT_HEATMAP", "TEST.USE_GT_BBOX", "TEST.IMAGE_THRE", "TEST.NMS_THRE",
    "TEST.SOFT_NMS", "TEST.OKS_THRE", "TEST.IN_VIS_THRE", "TEST.COCO_BBOX_FILE", "TEST.BBOX_THRE", "DEBUG")


def new_config():
    """Return a fresh tree of defaults, free to change."""
    return _C.clone()


def update_config(config, args):
    """Merge a YAML file and the command line into `config` and freeze it.

    args: .cfg, the YAML file; .modelDir, .logDir, .dataDir, .testModel, which go before the file where they are not empty;
    .opts, a list KEY, VALUE, KEY, VALUE ..., which goes before everything. Raises UserError that names the file or the
    command line, and the key.
    """
    config.defrost()
    _merge_file(config, args.cfg)
    for key, value in (("OUTPUT_DIR", args.modelDir), ("LOG_DIR", args.logDir), ("DATA_DIR", args.dataDir)):
        config[key] = value or config[key]
    config.TEST.MODEL_FILE = args.testModel or config.TEST.MODEL_FILE
    opts = list(getattr(args, "opts", None) or [])
    _merge_options(config, opts)
    if "DATASET.ROOT" not in opts[::2]:
        config.DATASET.ROOT = os.path.join(config.DATA_DIR, config.DATASET.DATASET, "images")
    _check(config)
    config.freeze()


def _check(config):
    complaint = ranges.complaint(_flat(config), RANGES, lists=True)
    if not config.MODEL.IMAGE_SIZE:
        complaint = "MODEL.IMAGE_SIZE is empty"
    first, epochs, name = config.TRAIN.BEGIN_EPOCH, config.TRAIN.END_EPOCH, config.DATASET.DATASET
    if first > epochs:
        complaint = "TRAIN.BEGIN_EPOCH %d: there are %d epochs (TRAIN.END_EPOCH)" % (first, epochs)
    if os.path.basename(name) != name or name == "..":
        complaint = "DATASET.DATASET %r: has to be a name without a folder" % name
    if complaint:
        raise UserError(complaint)


def _merge_file(config, path):
    try:
        text = folders.read(path).decode()
        # An alias could make any size of a short file.
        is_plain = not any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader))
        loaded = yaml.safe_load(text) if is_plain else None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("--cfg %s cannot be read: %s" % (path, folders.why(error)))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError("%s is not a YAML file: %s" % (path, error))
    if not isinstance(loaded, dict):
        raise UserError("%s holds no configuration tree (KEY: value, without aliases)" % path)
    _merge(config, path, lambda: config.merge_from_other_cfg(CN(loaded)))


def _merge_options(config, opts):
    if len(opts) % 2:
        raise UserError("the overrides at the end of the command are not pairs of KEY VALUE: %s" % " ".join(opts))
    known = set(_flat(config))
    for key, value in zip(opts[::2], opts[1::2]):
        if key not in known:
            raise UserError(_unknown_key("the command line", key, known))
        _merge(config, "the command line", functools.partial(config.merge_from_list, [key, value]))


def _refuse_empty(config, source):
    empty = [key for key, value in _flat(config).items() if value is None]
    if empty:
        raise UserError("%s: %s has no value" % (source, empty[0]))


def _merge(config, source, merge):
    """Run `merge()` and turn what yacs raises into a UserError that names the source of the key."""
    known = set(_flat(config))
    try:
        merge()
    except KeyError as error:  # "Non-existent config key: A.B"
        raise UserError(_unknown_key(source, str(error.args[0]).split(": ")[-1], known))
    except ValueError as error:  # "Type mismatch (...) with values (0.1 vs. 1) for config key: A.B"
        raise UserError(_wrong_type(source, str(error)))
    except (AttributeError, AssertionError, TypeError, RecursionError, MemoryError) as error:
        raise UserError("%s: %s" % (source, str(error) or "a value is nested too deeply"))
    _refuse_empty(config, source)


def _unknown_key(source, key, known):
    near = difflib.get_close_matches(key, known, n=1)
    return "%s: unknown config key %s%s" % (source, key, "; did you mean %s?" % near[0] if near else "")


def _wrong_type(source, message):
    """Say in the user's terms what yacs says as "Type mismatch (...) with values (0.1 vs. 1) for config key: A.B"."""
    key = message.split("config key: ")[-1]
    defaults = _flat(_C)
    if key not in defaults:
        return "%s: %s should be a group of keys" % (source, key)
    value = message.split(" vs. ")[-1].split(") for config key")[0]
    wanted = defaults[key]
    return "%s: %s should be of type %s, like %r, not %s" % (source, key, type(wanted).__name__, wanted, value)


def _flat(node, prefix=""):
    """Return {dotted key: value} of a tree, nodes left out."""
    flat = {}
    for key, value in node.items():
        flat.update(_flat(value, prefix + key + ".") if isinstance(value, CN) else {prefix + key: value})
    return flat


def unread_settings(config):
    """Return the dotted keys that differ from their defaults although nothing reads them."""
    flat, defaults = _flat(config), _flat(_C)
    return [key for key in sorted(defaults) if flat[key] != defaults[key]
            and (key in UNREAD or key.split(".")[0] in UNREAD)]

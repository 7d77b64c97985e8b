"""The configuration tree: every key with its default, the checks, and reading a YAML file and KEY VALUE pairs into it.

`cfg` is one global tree, as in upstream. The keys and defaults are upstream's; a value has to have the type of its
default (a list and a tuple count as the same), so a float is written with a point: `OPTIM.BASE_LR 1.0`.
"""
import functools
import os

import yaml
from yacs.config import CfgNode

from common import checkpoint, outputs, ranges
from common.cli import UserError
from pycls.datasets.augment import parse_spec

_C = CfgNode()
cfg = _C

# ---------------------------------------------------------------- MODEL
_C.MODEL = CfgNode()

# Family of networks; effnet is the one there is
_C.MODEL.TYPE = ""

# Number of classes
_C.MODEL.NUM_CLASSES = 10

# Loss; cross_entropy (against soft targets) is the one there is
_C.MODEL.LOSS_FUN = "cross_entropy"

# Activation: relu, silu, or swish, which is another name of silu
_C.MODEL.ACTIVATION_FUN = "relu"

# Let ReLU overwrite its input (SiLU never does: its gradient needs the input)
_C.MODEL.ACTIVATION_INPLACE = True

# ---------------------------------------------------------------- EfficientNet
_C.EN = CfgNode()

# Width of the stem
_C.EN.STEM_W = 32

# Blocks in each stage
_C.EN.DEPTHS = []

# Output width of each stage
_C.EN.WIDTHS = []

# Width inside the blocks of each stage, as a multiple of the block's input width
_C.EN.EXP_RATIOS = []

# Stride of the first block of each stage
_C.EN.STRIDES = []

# Kernel size of the depth-wise convolutions of each stage (odd)
_C.EN.KERNELS = []

# Squeeze-and-excitation width, as a fraction of the block's input width (not of the expanded width)
_C.EN.SE_R = 0.25

# Width of the head
_C.EN.HEAD_W = 1280

# Probability of dropping a block's branch, the same in every block
_C.EN.DC_RATIO = 0.0

# Dropout before the classifier
_C.EN.DROPOUT_RATIO = 0.0

# ---------------------------------------------------------------- Batch normalisation
_C.BN = CfgNode()

# Added to the variance
_C.BN.EPS = 1e-5

# Weight of the newest batch in the moving averages (PyTorch's meaning)
_C.BN.MOM = 0.1

# Recompute the statistics from training batches after each epoch; evaluation and checkpoints then hold these
_C.BN.USE_PRECISE_STATS = True

# Pictures to recompute them from, over all ranks
_C.BN.NUM_SAMPLES_PRECISE = 8192

# Start the last BN of a residual block at zero; EfficientNet's blocks mark none, so it changes nothing here
_C.BN.ZERO_INIT_FINAL_GAMMA = False

# Give the BN tensors a weight decay of their own
_C.BN.USE_CUSTOM_WEIGHT_DECAY = False
_C.BN.CUSTOM_WEIGHT_DECAY = 0.0

# ---------------------------------------------------------------- Optimizer
_C.OPTIM = CfgNode()

# Peak learning rate, for the total batch
_C.OPTIM.BASE_LR = 0.1

# Schedule over the epochs: cos, exp, lin or steps
_C.OPTIM.LR_POLICY = "cos"

# Where the schedule ends, as a fraction of BASE_LR
_C.OPTIM.MIN_LR = 0.0

# steps: the 0-based epochs where a new rate begins (the first is 0), and the factor at each
_C.OPTIM.STEPS = []
_C.OPTIM.LR_MULT = 0.1

# Number of epochs
_C.OPTIM.MAX_EPOCH = 200

# SGD
_C.OPTIM.MOMENTUM = 0.9
_C.OPTIM.DAMPENING = 0.0
_C.OPTIM.NESTEROV = True

# L2 penalty on every tensor, BN and biases too
_C.OPTIM.WEIGHT_DECAY = 5e-4

# Linear warm-up: factor at the start, and how many epochs it takes (0: none)
_C.OPTIM.WARMUP_FACTOR = 0.1
_C.OPTIM.WARMUP_EPOCHS = 0

# Exponential moving average of the weights: update it after every so many updates (0: no average; newer pycls uses 32), with
# the weight EMA_ALPHA * TRAIN.BATCH_SIZE / MAX_EPOCH * period for the newest weights
_C.OPTIM.EMA_UPDATE_PERIOD = 0
_C.OPTIM.EMA_ALPHA = 1e-5

# ---------------------------------------------------------------- Training
_C.TRAIN = CfgNode()

# Kind of data set (imagenet: one folder of pictures for each class), and the part of it to train on
_C.TRAIN.DATASET = ""
_C.TRAIN.SPLIT = "train"

# Pictures of an update, over all ranks
_C.TRAIN.BATCH_SIZE = 128

# Batches that an update is computed in, one after the other: their gradients are added up
_C.TRAIN.ACCUMULATE = 1

# Side of the training crop, and of the evaluation crop
_C.TRAIN.IM_SIZE = 224

# Continue from the newest checkpoint in OUT_DIR, when there is one
_C.TRAIN.AUTO_RESUME = True

# Weights to start from (a file)
_C.TRAIN.WEIGHTS = ""

# Weights to start from, but for the classifier, which starts anew (a file)
_C.TRAIN.PRETRAINED = ""

# Mixed precision as upstream has it: autocast with a dynamic loss scale. The same as OPT_LEVEL O1 with LOSS_SCALE 0
_C.TRAIN.MIXED_PRECISION = False

# Precision, with apex's meaning: O0 float32, O1 mixed, O2 half weights with float32 BN and master weights
_C.TRAIN.OPT_LEVEL = "O0"

# Factor on the loss in O1 and O2, 0 for one that adapts
_C.TRAIN.LOSS_SCALE = 0.0

# Share of the target that is spread evenly over the classes
_C.TRAIN.LABEL_SMOOTHING = 0.0

# Mixup: parameter of the Beta distribution (0: no mixup)
_C.TRAIN.MIXUP_ALPHA = 0.0

# Standard deviation of the colour jitter along the principal components of RGB
_C.TRAIN.PCA_STD = 0.1

# Further augmentation: "", AutoAugment, or RandAugment with its parameters, such as RandAugment_N2_M0.5
_C.TRAIN.AUGMENT = ""

# Stop each epoch after so many steps (0: train on everything)
_C.TRAIN.MAX_STEPS = 0

# Write a checkpoint every so many steps too, besides the one after each epoch (0: only that one)
_C.TRAIN.SAVE_STEPS = 0

# Checkpoints to keep: checkpoint.pth.tar, the one before it as checkpoint.pth.tar.1, and so on
_C.TRAIN.KEEP_CHECKPOINTS = 2

# ---------------------------------------------------------------- Evaluation
_C.TEST = CfgNode()

# Kind of data set, and the part of it to evaluate on
_C.TEST.DATASET = ""
_C.TEST.SPLIT = "val"

# Pictures in a step, over all ranks
_C.TEST.BATCH_SIZE = 200

# Length of a picture's short side before the central crop of TRAIN.IM_SIZE is taken
_C.TEST.IM_SIZE = 256

# Evaluate on the images of so many steps (0: on all)
_C.TEST.MAX_STEPS = 0

# Weights to evaluate (a file, or a folder that holds model.pyth)
_C.TEST.WEIGHTS = ""

# ---------------------------------------------------------------- Data loader
_C.DATA_LOADER = CfgNode()

# Processes that read pictures, for each rank
_C.DATA_LOADER.NUM_WORKERS = 8

# Upstream's; nothing reads it: batches for a device always go through page-locked memory
_C.DATA_LOADER.PIN_MEMORY = True

# Resize pictures in floating point, as upstream, and not in bytes: less than 1 of 255 apart, slower, four times as much to send
_C.DATA_LOADER.RESIZE_IN_FLOAT = False

# ---------------------------------------------------------------- cuDNN
_C.CUDNN = CfgNode()

# Measure which algorithm is fastest for each shape (CUDA only)
_C.CUDNN.BENCHMARK = True

# ---------------------------------------------------------------- Timing
_C.PREC_TIME = CfgNode()

# Steps that are dropped, and steps that are measured (0: no timing at the start of training)
_C.PREC_TIME.WARMUP_ITER = 3
_C.PREC_TIME.NUM_ITER = 30

# ---------------------------------------------------------------- The rest
# A note on the run
_C.DESC = ""

# Log the configuration and the model
_C.VERBOSE = True

# Number of ranks
_C.NUM_GPUS = 1

# Where checkpoints and logs go
_C.OUT_DIR = "/tmp"

# File in OUT_DIR that the effective configuration is written to
_C.CFG_DEST = "config.yaml"

# Seed of the weights and of every random draw
_C.RNG_SEED = 1

# Log to stdout, or to OUT_DIR/stdout.log (file)
_C.LOG_DEST = "stdout"

# Log every so many steps
_C.LOG_PERIOD = 10

# What a number may be; of a list, each of its numbers.
RANGES = {
    "MODEL.NUM_CLASSES": ranges.size,
    "EN.STEM_W": ranges.size, "EN.DEPTHS": ranges.size, "EN.WIDTHS": ranges.size, "EN.EXP_RATIOS": ranges.positive,
    "EN.STRIDES": ranges.size, "EN.KERNELS": ranges.size, "EN.SE_R": ranges.positive, "EN.HEAD_W": ranges.size,
    "EN.DC_RATIO": ranges.share, "EN.DROPOUT_RATIO": ranges.share,
    "BN.EPS": ranges.positive, "BN.MOM": ranges.fraction, "BN.NUM_SAMPLES_PRECISE": ranges.size,
    "BN.CUSTOM_WEIGHT_DECAY": ranges.natural,
    "OPTIM.BASE_LR": ranges.natural, "OPTIM.MIN_LR": ranges.natural, "OPTIM.STEPS": ranges.count, "OPTIM.LR_MULT": ranges.natural,
    "OPTIM.MAX_EPOCH": ranges.size, "OPTIM.MOMENTUM": ranges.fraction, "OPTIM.DAMPENING": ranges.fraction,
    "OPTIM.WEIGHT_DECAY": ranges.natural, "OPTIM.WARMUP_FACTOR": ranges.natural, "OPTIM.WARMUP_EPOCHS": ranges.count,
    "OPTIM.EMA_UPDATE_PERIOD": ranges.count, "OPTIM.EMA_ALPHA": ranges.natural,
    "TRAIN.BATCH_SIZE": ranges.size, "TRAIN.ACCUMULATE": ranges.size, "TRAIN.IM_SIZE": ranges.size,
    "TRAIN.LOSS_SCALE": ranges.natural, "TRAIN.LABEL_SMOOTHING": ranges.share, "TRAIN.MIXUP_ALPHA": ranges.natural,
    "TRAIN.PCA_STD": ranges.natural, "TRAIN.MAX_STEPS": ranges.count, "TRAIN.SAVE_STEPS": ranges.count,
    "TRAIN.KEEP_CHECKPOINTS": checkpoint.KEPT,
    "TEST.BATCH_SIZE": ranges.size, "TEST.IM_SIZE": ranges.size, "TEST.MAX_STEPS": ranges.count,
    "DATA_LOADER.NUM_WORKERS": ranges.workers,
    "PREC_TIME.WARMUP_ITER": ranges.count, "PREC_TIME.NUM_ITER": ranges.count,
    "NUM_GPUS": ranges.whole(1, 1024), "RNG_SEED": ranges.seed, "LOG_PERIOD": ranges.size,
}

# Keys that configuration files of pycls hold and that mean nothing here: taken with a note, and ignored. The collective
# library follows the device, its address MASTER_ADDR and MASTER_PORT; weights are local files; EfficientNet needs no
# key of another family; the rest pycls itself had retired.
IGNORED_KEYS = (
    "DIST_BACKEND", "HOST", "PORT", "PORT_RANGE", "DOWNLOAD_CACHE", "MEM", "MEM.RELU_INPLACE", "MODEL.DEPTH",
    "OPTIM.GAMMA", "PREC_TIME.BATCH_SIZE", "PREC_TIME.ENABLED", "TRAIN.EVAL_PERIOD", "TRAIN.CHECKPOINT_PERIOD",
    "RESNET", "RESNET.TRANS_FUN", "RESNET.NUM_GROUPS", "RESNET.WIDTH_PER_GROUP", "RESNET.STRIDE_1X1",
    "ANYNET", "ANYNET.STEM_TYPE", "ANYNET.STEM_W", "ANYNET.BLOCK_TYPE", "ANYNET.DEPTHS", "ANYNET.WIDTHS",
    "ANYNET.STRIDES", "ANYNET.BOT_MULS", "ANYNET.GROUP_WS", "ANYNET.SE_ON", "ANYNET.SE_R",
    "REGNET", "REGNET.STEM_TYPE", "REGNET.STEM_W", "REGNET.BLOCK_TYPE", "REGNET.STRIDE", "REGNET.SE_ON",
    "REGNET.SE_R", "REGNET.DEPTH", "REGNET.W0", "REGNET.WA", "REGNET.WM", "REGNET.GROUP_W", "REGNET.BOT_MUL",
)
for _key in IGNORED_KEYS:
    _C.register_deprecated_key(_key)

_DEFAULTS = _C.clone()
_DEFAULTS.freeze()


def reset_cfg():
    """Put every key back to its default."""
    cfg.defrost()
    cfg.merge_from_other_cfg(_DEFAULTS)


def load_cfg(path, opts=()):
    """Merge the YAML file `path`, then the words KEY VALUE KEY VALUE … of `opts`, over the defaults; check and freeze.

    Raises UserError for a file that is not there or not YAML, an unknown key, a value of another type, an odd number
    of words, and a combination that cannot work.
    """
    if not os.path.isfile(path):
        raise UserError("--cfg %s: no such file; configs/dds_baselines/effnet holds some" % path)
    if not path.endswith((".yaml", ".yml")):
        raise UserError("--cfg %s: has to be a YAML file, with the ending .yaml" % path)  # yacs would run a .py
    reset_cfg()
    _merge(path, lambda: _merge_file(path))
    late = [word for word in opts if word.startswith("--")]
    if late:
        raise UserError("%s stands after KEY VALUE pairs; options come before them" % late[0])
    if len(opts) % 2:
        raise UserError("the words after the options have to be pairs KEY VALUE, and one is left over: %s" % opts[-1])
    _merge("command line", lambda: cfg.merge_from_list(list(opts)))
    check_cfg()
    cfg.freeze()


def _merge_file(path):
    with open(path, encoding="utf-8") as stream:
        text = stream.read()
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
        raise ValueError("aliases (*name) are not taken: a short file could stand for any size")
    cfg.merge_from_other_cfg(CfgNode.load_cfg(text))


def from_text(text):
    """Take the configuration that another process has read, checked and dumped."""
    reset_cfg()
    cfg.merge_from_other_cfg(CfgNode.load_cfg(text))
    cfg.freeze()


def _merge(source, merge):
    try:
        merge()
    except Exception as error:  # yacs: KeyError, ValueError and AssertionError; PyYAML its own
        words = " ".join(str(error).strip("'\"").split())
        if "Type mismatch" in words:
            words += "; write a value of the type of the default: floats with a point, booleans as True or False"
        raise UserError("%s: %.500s" % (source, words or "not a configuration"))


def check_cfg():
    """Raise UserError when keys contradict one another or ask for something that there is not."""
    complaint = ranges.complaint({key: functools.reduce(getattr, key.split("."), cfg) for key in RANGES}, RANGES, lists=True)
    if complaint:
        raise UserError(complaint)
    for checks in (_model_checks, _optimizer_checks, _data_checks, _run_checks):
        for holds, complaint in checks():
            if not holds:
                raise UserError(complaint)


def _model_checks():
    lengths = {len(cfg.EN[key]) for key in ("DEPTHS", "WIDTHS", "EXP_RATIOS", "STRIDES", "KERNELS")}
    return [
        (cfg.MODEL.TYPE == "effnet", "MODEL.TYPE %r: has to be effnet" % cfg.MODEL.TYPE),
        (cfg.MODEL.LOSS_FUN == "cross_entropy", "MODEL.LOSS_FUN %r: has to be cross_entropy" % cfg.MODEL.LOSS_FUN),
        (cfg.MODEL.ACTIVATION_FUN.lower() in ("relu", "silu", "swish"),
         "MODEL.ACTIVATION_FUN %r: choose relu, silu or swish" % cfg.MODEL.ACTIVATION_FUN),
        (lengths != {0} and len(lengths) == 1,
         "EN.DEPTHS, WIDTHS, EXP_RATIOS, STRIDES and KERNELS have to hold one entry for each stage"),
        (all(kernel % 2 for kernel in cfg.EN.KERNELS), "EN.KERNELS %s: kernel sizes have to be odd" % cfg.EN.KERNELS),
        (min([cfg.EN.STEM_W] + list(cfg.EN.WIDTHS[:-1])) * cfg.EN.SE_R >= 1,
         "EN.SE_R %s: has to leave at least 1 channel of EN.STEM_W and EN.WIDTHS" % cfg.EN.SE_R),
    ]


def _optimizer_checks():
    optim = cfg.OPTIM
    return [
        (optim.LR_POLICY in ("cos", "exp", "lin", "steps"),
         "OPTIM.LR_POLICY %r: choose cos, exp, lin or steps" % optim.LR_POLICY),
        (not optim.STEPS or optim.STEPS[0] == 0, "OPTIM.STEPS %s: the first has to be 0" % optim.STEPS),
        (optim.LR_POLICY != "steps" or optim.STEPS, "OPTIM.LR_POLICY steps: OPTIM.STEPS is empty"),
        (optim.LR_POLICY != "exp" or optim.MIN_LR > 0, "OPTIM.LR_POLICY exp: OPTIM.MIN_LR has to be above 0"),
        (not optim.NESTEROV or (optim.MOMENTUM > 0 and optim.DAMPENING == 0),
         "OPTIM.NESTEROV True: OPTIM.MOMENTUM has to be above 0 and OPTIM.DAMPENING 0.0"),
    ]


def _data_checks():
    parse_spec(cfg.TRAIN.AUGMENT)
    splits = ("train", "val")
    return [
        (cfg.TRAIN.SPLIT in splits, "TRAIN.SPLIT %r: choose train or val" % cfg.TRAIN.SPLIT),
        (cfg.TEST.SPLIT in splits, "TEST.SPLIT %r: choose train or val" % cfg.TEST.SPLIT),
        (cfg.TRAIN.DATASET == "imagenet", "TRAIN.DATASET %r: has to be imagenet" % cfg.TRAIN.DATASET),
        (cfg.TEST.DATASET == "imagenet", "TEST.DATASET %r: has to be imagenet" % cfg.TEST.DATASET),
        (cfg.TRAIN.IM_SIZE <= cfg.TEST.IM_SIZE, "TRAIN.IM_SIZE %d, TEST.IM_SIZE %d: the evaluation crop (TRAIN.IM_SIZE) cannot be "
         "larger than the resized picture (TEST.IM_SIZE)" % (cfg.TRAIN.IM_SIZE, cfg.TEST.IM_SIZE)),
    ]


def _run_checks():
    return [
        (cfg.TRAIN.BATCH_SIZE % (cfg.NUM_GPUS * cfg.TRAIN.ACCUMULATE) == 0, "TRAIN.BATCH_SIZE %d: is the total of NUM_GPUS %d "
         "ranks times TRAIN.ACCUMULATE %d, so it has to be a multiple of that"
         % (cfg.TRAIN.BATCH_SIZE, cfg.NUM_GPUS, cfg.TRAIN.ACCUMULATE)),
        (cfg.TEST.BATCH_SIZE % cfg.NUM_GPUS == 0, "TEST.BATCH_SIZE %d: is the total of NUM_GPUS %d ranks, so it has to be a "
         "multiple of that" % (cfg.TEST.BATCH_SIZE, cfg.NUM_GPUS)),
        (cfg.TRAIN.OPT_LEVEL in ("O0", "O1", "O2"), "TRAIN.OPT_LEVEL %r: choose O0, O1 or O2" % cfg.TRAIN.OPT_LEVEL),
        (not (cfg.TRAIN.MIXED_PRECISION and cfg.TRAIN.OPT_LEVEL != "O0"),
         "TRAIN.MIXED_PRECISION True and TRAIN.OPT_LEVEL %s: give one of the two" % cfg.TRAIN.OPT_LEVEL),
        (not (cfg.TRAIN.WEIGHTS and cfg.TRAIN.PRETRAINED), "TRAIN.WEIGHTS and TRAIN.PRETRAINED: give one of the two"),
        (cfg.LOG_DEST in ("stdout", "file"), "LOG_DEST %r: choose stdout or file" % cfg.LOG_DEST),
        (_is_file_name(cfg.CFG_DEST), "CFG_DEST %r: has to be the name of a file without its folder" % cfg.CFG_DEST),
    ]


def _is_file_name(text):
    return bool(text) and os.path.basename(text) == text not in (".", "..")


def step_batch_size():
    """Return the images of a rank in a training step."""
    return cfg.TRAIN.BATCH_SIZE // cfg.NUM_GPUS // cfg.TRAIN.ACCUMULATE


def dump_cfg():
    """Write the effective configuration to OUT_DIR/CFG_DEST."""
    path = os.path.join(cfg.OUT_DIR, cfg.CFG_DEST)
    outputs.note(path)
    with outputs.writing(path), open(path, "w") as file:
        cfg.dump(stream=file)

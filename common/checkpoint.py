"""Checkpoints: written atomically, read without running code in them, in every layout that upstream has used."""
import contextlib
import copy
import inspect
import io
import itertools
import os
import pickle
import types
import warnings
import zipfile

import torch

from common import cli, entries, outputs, ranges
from common.cli import TrainingStopped, UserError

# What a checkpoint may consist of where PyTorch's own weights_only loading is not there (before 1.13), or knows less.
_SAFE_GLOBALS = {
    ("collections", "OrderedDict"), ("collections", "defaultdict"), ("builtins", "set"), ("torch", "Size"),
    ("torch._utils", "_rebuild_tensor"), ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter"),
    ("numpy", "dtype"), ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"), ("_codecs", "encode"),
}
_SAFE_GLOBALS.update(("torch", kind + "Storage") for kind in
                     "Double Float Half BFloat16 Long Int Short Char Byte Bool".split())
_SAFE_GLOBALS.update(("torch", kind) for kind in "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split())

# Where files keep the weights, and a moving average of them: upstream's, pycls', torchvision's references' and timm's names.
_OWN_KEYS = ("state_dict", "model_state", "model")
_EMA_KEYS = ("ema_state", "state_dict_ema", "model_ema")
EMA_CHOICES = ("auto", "true", "false")

KEPT = ranges.whole(1, 100)  # --keep-checkpoints

# --- writing ----------------------------------------------------------------------------------------------------------

def save(state, path, copy_to=(), keep=1):
    """Write `state` to `path` so that whenever the machine stops, either the old file or the new one is there, whole.

    `copy_to`: further paths for the same file, complete before `path` itself changes. `keep`: how many files stay, the older ones as
    `kept_paths` says. Raises TrainingStopped, with the old files as they were, for values that are not finite, and where it cannot be
    written (disk full, no permission).
    """
    state, content, paths = _on_cpu(state, {}), io.BytesIO(), list(copy_to) + [path]
    bad = entries.not_finite(state)
    if bad:
        where = " after step %(step)d of epoch %(epoch)d" % state if "step" in state else ""
        raise TrainingStopped("%s is not written: %s is not finite%s; a lower learning rate may help" % (path, bad, where))
    # First to memory: an exception that comes out of a write reaches the destructor of PyTorch's zip writer, which ends the
    # process in PyTorch 1.8 and hides the reason in later ones.
    torch.save(state, content)
    with outputs.writing(path, len(content.getbuffer()) * len(paths)):
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        outputs.note(*paths + kept_paths(path, keep))
        with contextlib.ExitStack() as parts:
            for target in paths:
                _write_part(content, target, parts)
            _shift([path] + kept_paths(path, keep))
            for target in paths:
                _rename(target + ".part", target)


def _write_part(content, path, parts):
    with cli.new_file(path + ".part") as stream:
        parts.callback(_remove, path + ".part")
        stream.write(content.getbuffer())
        stream.flush()
        os.fsync(stream.fileno())


def _remove(path):
    with contextlib.suppress(OSError):
        os.remove(path)


def kept_paths(path, keep):
    """Return where `keep` - 1 checkpoints before the one at `path` stay, the newest first."""
    return ["%s.%d" % (path, number) for number in range(1, keep)]


def _shift(paths):
    """Give each file, the newest first, the name of the one before it; the newest has its own too, until the new one takes its place."""
    for newer, older in zip(paths[-2::-1], paths[:0:-1]):
        if os.path.exists(newer):
            _remove(older)
            try:
                os.link(newer, older)
            except OSError:  # a file system without hard links
                os.replace(newer, older)


def load_newest(path, tell):
    """Return (content, file) of the checkpoint at `path`, or where that is damaged or gone, after `tell`ing so, of the newest kept one;
    ({}, "") where there is none. Raises UserError where none can be read."""
    files = [path] + list(itertools.takewhile(os.path.exists, kept_paths(path, 1000)))
    if not any(map(os.path.lexists, files)):
        return {}, ""
    for newer, older in zip(files, files[1:]):
        try:
            return load(newer), newer
        except UserError as error:
            tell("%s: going on with the one before, %s" % (error, older))
    return load(files[-1]), files[-1]


def _on_cpu(value, copies):
    """Return `value` with every tensor of another device as a copy on the CPU, one for each place in memory (`copies`): no reader
    then needs the device, or its plug-in."""
    if torch.is_tensor(value):
        if value.device.type == "cpu":
            return value
        key = (value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if key not in copies:
            copies[key] = value.detach().cpu()
        return copies[key]
    if isinstance(value, dict):
        copied = copy.copy(value)  # keeps its kind, and the versions in a state_dict's _metadata
        copied.update((key, _on_cpu(entry, copies)) for key, entry in value.items())
        return copied
    return type(value)(_on_cpu(entry, copies) for entry in value) if type(value) in (list, tuple) else value


def _rename(source, target):
    os.replace(source, target)
    folder = os.open(os.path.dirname(os.path.abspath(target)), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# --- reading ----------------------------------------------------------------------------------------------------------

def load(path):
    """Return the dictionary that the checkpoint file holds, on the CPU. Raises UserError for a file that is missing, incomplete, or
    not plain data (a pickle that names anything else than tensors and containers is refused, and none of it is run)."""
    if not os.path.isfile(path):
        raise UserError("no weights file %s" % path)
    content = _content(path)
    if not isinstance(content, dict):
        raise UserError("%s holds no model weights: it is of the type %s, not a dictionary" % (path, type(content).__name__))
    return content


def _content(path):
    try:
        _check_size(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on old formats, which are fine
            return parse(path)
    except PermissionError as error:
        raise UserError("%s cannot be read: %s" % (path, error.strerror))
    except Exception as error:  # a damaged file can lead an unpickler anywhere
        # "global" is what PyTorch and _SafeUnpickler call a name that they refuse.
        if isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower():
            raise UserError("%s is not a checkpoint of tensors: it holds code or objects that are not plain data, and was not run" % path)
        raise UserError("%s is truncated or no PyTorch checkpoint (%s)" % (path, str(error).split("\n")[0].split(". ")[0] or type(error).__name__))


def _check_size(path):
    """Raise ValueError where a file would grow when it is read. PyTorch compresses nothing; a small file that does may fill the memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
        if claimed > os.path.getsize(path):
            raise ValueError("its parts are said to hold %d bytes, the file has %d" % (claimed, os.path.getsize(path)))


def parse(file):
    """Return what the file of a checkpoint, a path or a stream, holds, without running anything in it. Raises what an unpickler does."""
    has_weights_only = "weights_only" in inspect.signature(torch.load).parameters
    if has_weights_only:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if "npu" not in str(error):
                raise
    options = {"weights_only": False} if has_weights_only else {}
    return torch.load(file, map_location="cpu", pickle_module=_SAFE_PICKLE, **options)


def _rebuild_npu_tensor(*description):
    """Return the plain tensor that an Ascend plug-in before PyTorch 2.1 has written, from (storage, offset, size, stride, requires_grad,
    hooks, format on the device): the values are on the CPU, in the usual order, so the format is nothing to us."""
    return torch._utils._rebuild_tensor_v2(*description[:6])


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if name == "_rebuild_npu_tensor":  # the plug-ins have had it in several modules
            return _rebuild_npu_tensor
        if (module, name) == ("torch_npu.npu._format", "Format"):
            return int
        if (module, name) in (("builtins", "getattr"), ("__builtin__", "getattr")):  # Python 3.11.2 writes a Format with it
            return lambda *_: None
        if (module, name) not in _SAFE_GLOBALS:
            raise pickle.UnpicklingError("GLOBAL %s.%s is refused" % (module, name))
        return super().find_class(module, name)


# Stands in for the pickle module, for PyTorch versions whose torch.load has no weights_only.
_SAFE_PICKLE = types.SimpleNamespace(__name__="safe_pickle", Unpickler=_SafeUnpickler,
                                     load=lambda stream, **options: _SafeUnpickler(stream, **options).load())


def weights(content, source="the file", use_ema="auto"):
    """Return the state_dict inside a loaded checkpoint, without the `module.` of DistributedDataParallel.

    Knows a bare state_dict, and one under a key of upstream's (see `weights_key`).
    """
    key = weights_key(content, source, use_ema)
    content = content if key is None else content[key]
    if not any(torch.is_tensor(value) for value in content.values()):
        raise UserError("%s holds no model weights (wanted: a state_dict, or one under the key state_dict)" % source)
    entries.check_weights(content, source)
    return dict((key[len("module."):] if key.startswith("module.") else key, value) for key, value in content.items())


def weights_key(content, source="the file", use_ema="auto"):
    """Return the key of a loaded checkpoint under which the weights to take lie, None for a bare state_dict.

    Where a moving average of the weights lies beside them, `use_ema` true or false says which; auto takes the one with the smaller
    recorded error (pycls' test_err and ema_err; one that is not there counts as 100), on a tie the network's own.
    """
    own, average = (next((key for key in keys if isinstance(content.get(key), dict)), None)
                    for keys in (_OWN_KEYS, _EMA_KEYS))
    if use_ema == "true" and average is None:
        raise UserError("%s holds no moving average of the weights (--use_ema)" % source)
    if use_ema == "auto" and own and average:
        ema_err, test_err = (content[key] if content.get(key) in ranges.natural else 100 for key in ("ema_err", "test_err"))
        use_ema = "true" if ema_err < test_err else "false"
    return average if use_ema == "true" or own is None else own


def describe(content, source, use_ema="auto"):
    """Return a line for the log that says which weights of a loaded checkpoint are taken, '' where there is no choice."""
    key = weights_key(content, source, use_ema)
    choice = sum(isinstance(content.get(name), dict) for name in _OWN_KEYS + _EMA_KEYS)
    return "the weights are those under the key %s of %s" % (key, source) if choice > 1 else ""


def load_weights(model, content, source, use_ema="auto", new_classifier=False):
    """Load the weights in `content` (see `weights`) into `model`, with `new_classifier` all but the classifier's; every key and shape
    has to fit. Returns `describe`'s line.

    Only `num_batches_tracked` may be missing, as in files from before PyTorch 0.4.1. `source` is the file's name, for the
    UserError that says what does not fit, or is not finite.
    """
    state, own = weights(content, source, use_ema), model.state_dict()
    classifier = list(own)[-1].rpartition(".")[0] + "."  # the module of the last entry
    for key in own:
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, own[key])
        if new_classifier and key.startswith(classifier):
            state[key] = own[key]
    complaint = _misfit(own, state, classifier)
    if complaint:
        raise UserError("%s is not a checkpoint of this network: %s" % (source, complaint))
    bad = entries.not_finite(state)
    if bad:
        raise UserError("%s holds weights that are not finite numbers (first: %s); take a checkpoint from before" % (source, bad))
    model.load_state_dict(state)
    return describe(content, source, use_ema)


def _misfit(own, state, classifier):
    """Say in a few words how the keys and shapes of `state` differ from those of `own`; None when they agree. `classifier`: how the
    classifier's keys begin."""
    parts = []
    for what, keys in (("missing", [key for key in own if key not in state]),
                       ("unexpected", [key for key in state if key not in own])):
        if keys:
            parts.append("%d keys %s (first: %s)" % (len(keys), what, keys[0]))
    for key in own:
        if key in state and (own[key].shape != state[key].shape or own[key].is_floating_point() > state[key].is_floating_point()):
            parts.append("%s is %s in the file and %s in the network" % (key, _described(state[key]), _described(own[key]))
                         + key.startswith(classifier) * " (a training with --new_classifier takes weights of other classes)")
            break
    return "; ".join(parts) or None


def _described(tensor):
    shape = "x".join(str(size) for size in tensor.shape) or "a scalar"
    return shape if tensor.is_floating_point() else "%s of %s" % (shape, tensor.dtype)

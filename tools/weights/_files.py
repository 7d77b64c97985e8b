"""Weights files: checkpoints and safetensors, read and written, with what is known of them."""
import contextlib
import json
import os
from collections import namedtuple

import torch

from checkout import git
from common import checkpoint, cli, data, folders, outputs, records
from weights import _layouts, _networks

# network: a _networks.Network; state: {our key: float32 tensor}; notes: {name: text}, as in the metadata of a safetensors file;
# package: whose key names the file has, or None.
Weights = namedtuple("Weights", "network state notes package")


def add_flags(parser, verb="read"):
    """Add what all verbs have: the file, and what it does not say of itself."""
    add = parser.add_argument
    add("checkpoint", metavar="CKPT",
        help="the weights to %s: a checkpoint of any model here, upstream's file, or .safetensors" % verb)
    add("--network", choices=_networks.NAMES, metavar="NAME",
        help="which network, where the file does not show it: " + ", ".join(_networks.NAMES))
    add("--use-ema", choices=checkpoint.EMA_CHOICES, default="auto",
        help="of weights that lie beside their moving average, take the average")
    add("--classes", metavar="PATH",
        help="names of the classes: a file with one a line, or the data set's folder; without it those that the file holds")


def read(args):
    """Return the Weights of args.checkpoint, whose keys and shapes all fit. Raises UserError where they do not."""
    path = args.checkpoint
    content, notes = _content(path)
    state = dict((key, value.float() if value.is_floating_point() else value)
                 for key, value in checkpoint.weights(content, path, args.use_ema).items())
    network, package = _network(content, state, notes, args)
    if package:
        state = _layouts.from_package(state, network, package)
    own = _networks.build(network)
    checkpoint.load_weights(own, state, path)
    notes = dict(_known_of(content, path, args.use_ema), **notes)
    if args.classes:
        notes["classes"] = json.dumps(_class_names(args.classes))
    return Weights(network, dict(own.state_dict()), notes, package)


def module(weights):
    """Return the network with these weights, in evaluation mode."""
    model = _networks.build(weights.network)
    model.load_state_dict(weights.state)
    return model


def view_of(weights, size=None):
    """Return the _networks.View at `size` pixels; without it at what the file or its records tell, or the recipe's."""
    recipe = json.loads(weights.notes.get("recipe", "{}"))
    of_hrnet = recipe.get("config", {}).get("MODEL", {}).get("IMAGE_SIZE", [None])[0]
    said = weights.notes.get("image_size") or recipe.get("image_size") or recipe.get("input_size") or of_hrnet
    return _networks.view_of(weights.network, size or (int(said) if said else None))


def _content(path):
    if not path.endswith(".safetensors"):
        return checkpoint.load(path), {}
    if not os.path.isfile(path):
        raise cli.UserError("no weights file %s" % path)
    safe = _safetensors()
    try:
        with safe.safe_open(path, "pt") as file:
            content, notes = dict((key, file.get_tensor(key)) for key in file.keys()), file.metadata() or {}
    except Exception as error:  # its errors have no common class that is promised
        raise cli.UserError("%s is truncated or no safetensors file (%s)" % (path, error))
    return content, notes if notes.get("network") in _networks.NAMES else {}  # of other programs' notes nothing is known


def _network(content, state, notes, args):
    """Return (Network, the package whose key names these are, or None)."""
    if content.get("architecture") == "EfficientNet":
        raise cli.UserError("%s is of timm's own EfficientNet, which FixRes adapts: timm takes what is under `model` as it is"
                            % args.checkpoint)
    found = _layouts.found(state)
    if found and args.network in (None, found[0].name):
        return found
    if not found and not args.network and notes:
        return _networks.known(notes["network"], _networks.classes_of(state), json.loads(notes.get("options", "{}"))), None
    network = _networks.recognised(content, state, args.network)
    if network is None:
        raise cli.UserError("%s: no network here has these keys and shapes (first: %s); --network NAME says what does not fit"
                            % (args.checkpoint, next(iter(state))))
    return network, None


def _class_names(path):
    if os.path.isdir(path):
        return data.class_names(next((each for each in (os.path.join(path, "val"), os.path.join(path, "train"))
                                      if os.path.isdir(each)), path))
    try:
        return [line.strip() for line in folders.read(path).decode().split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise cli.UserError("--classes %s cannot be read: %s" % (path, folders.why(error)))


def class_names(weights):
    """Return a name for each output, its number where no name is known. Raises UserError for more names than outputs."""
    outputs, names = weights.network.classes, json.loads(weights.notes.get("classes", "[]"))
    if len(names) > outputs:
        raise cli.UserError("%d names of classes, but the network has %d outputs" % (len(names), outputs))
    return names + [str(number) for number in range(len(names), outputs)]


# --- what is known of weights -----------------------------------------------------------------------------------------

def _known_of(content, path, use_ema):
    """Return {name: text} of what a checkpoint, and the records beside it, say of the training."""
    found = {"epoch": content.get("epoch"), "accuracy": _accuracy(content, path, use_ema), "seed": content.get("seed"),
             "recipe": _recipe(path)}
    names = content.get("classes", _names_beside(path, content))
    if isinstance(names, (list, tuple)):
        found["classes"] = json.dumps([str(name) for name in names])
    return dict((name, str(value)) for name, value in found.items() if isinstance(value, (int, float, str)))


def _names_beside(path, content):
    """Return the names of the classes for bare weights of a run, which HRNet's best ones are: those in the run's checkpoint."""
    beside = os.path.join(os.path.dirname(os.path.abspath(path)), "checkpoint.pth.tar")
    if checkpoint.weights_key(content, path) is None and os.path.isfile(beside):
        with contextlib.suppress(cli.UserError):  # a damaged one
            return checkpoint.load(beside).get("classes")
    return None


def _accuracy(content, path, use_ema):
    """Return the top-1 accuracy in per cent of the weights in a checkpoint, None where it says nothing."""
    results, is_average = content.get("results") or {}, checkpoint.weights_key(content, path, use_ema) == "ema_state"
    errors = [content.get("ema_err" if is_average else "test_err"), content.get("best_err1"), (content.get("error_history") or [None])[-1]]
    said = [results.get("val.top1"), content.get("perf"), content.get("best_acc1")] + [100.0 - each for each in errors if each is not None]
    if content.get("accuracy") is not None:  # FixRes', a share
        said.append(100.0 * content["accuracy"])
    return next((float(value) for value in said if value is not None), None)


def _recipe(path):
    """Return the parameters of the run as JSON, from the records beside the checkpoint; None where there are none."""
    beside = os.path.join(os.path.dirname(os.path.abspath(path)), "metrics.jsonl")
    if not os.path.isfile(beside):
        return None
    found = [record["data"] for record in records.read(beside) if record.get("step") == "PARAMETER"]
    return json.dumps(found[-1], sort_keys=True) if found else None


def notes_for(weights, layout):
    """Return the metadata of a safetensors file in a layout (our names, or a package's)."""
    network, view = weights.network, view_of(weights)
    turned = view.channels == "BGR" and layout in _layouts.PACKAGES
    said = {"format": "pt", "model": network.model, "network": network.name, "layout": layout, "num_classes": str(network.classes),
            "options": json.dumps(network.options, sort_keys=True), "image_size": str(view.size),
            "commit": git(_networks.ROOT, "rev-parse", "HEAD") or "unknown",
            "channels": "RGB" if turned else view.channels, "mean": json.dumps(view.mean[::-1] if turned else view.mean),
            "std": json.dumps(view.std[::-1] if turned else view.std)}
    return dict(weights.notes, **said)


# --- writing ----------------------------------------------------------------------------------------------------------

def write(path, content, notes):
    """Write a state dict as safetensors with `notes` where the path ends so, else `content` as a PyTorch file; atomically."""
    if not path.endswith(".safetensors"):
        return checkpoint.save(content, path)
    content = dict((key, value.contiguous().clone()) for key, value in content.items())  # it takes no shared memory
    packed = _safetensors().torch.save(content, notes)
    with new_file(path) as part, open(part, "wb") as stream:
        stream.write(packed)


@contextlib.contextmanager
def new_file(path):
    """Give the name to write to, which becomes `path` where that went well; else nothing is left of it. Raises TrainingStopped
    where it cannot be written."""
    with outputs.writing(path):
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        try:
            yield path + ".part"
            os.replace(path + ".part", path)
        finally:
            with contextlib.suppress(OSError):
                os.remove(path + ".part")


def upstream_form(weights):
    """Return what upstream's own evaluation reads: a checkpoint dictionary, for HRNet the bare state dict."""
    network, state = weights.network, weights.state
    if network.model == "HRNet":
        return state
    forms = {"ResNet50": ({"arch": network.name, "state_dict": state}, lambda top1: {"best_acc1": torch.tensor(top1)}),
             "GENet": ({"arch": "GENET", "state_dict": state, "network": network.options},
                       lambda top1: {"error_history": [100.0 - top1]}),
             "EfficientNet-B3": ({"model_state": state}, lambda top1: {"test_err": 100.0 - top1}),
             "FixRes": ({"model": dict(("module." + key, value) for key, value in state.items()),
                         "architecture": _networks.FIXRES.get(network.name)}, lambda top1: {"accuracy": top1 / 100})}
    content, with_accuracy = forms[network.model]
    known = with_accuracy(float(weights.notes["accuracy"])) if "accuracy" in weights.notes else {}
    return dict(content, epoch=int(weights.notes.get("epoch", 0)), **known)


def _safetensors():
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise cli.UserError(".safetensors files need the package safetensors: pip install safetensors")
    return safetensors

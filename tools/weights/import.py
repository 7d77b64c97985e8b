"""Make a checkpoint that the scripts take (--pth_path) of weights from elsewhere: timm, torchvision, upstream, safetensors.

The key names say where the weights come from, and keys and shapes which network they are of. Weights of timm's tf_ networks, which
pad otherwise, have the keys of those without tf_, so that nobody can tell them apart here: do not import them.

Example: weights.py import efficientnet_b3.safetensors --out=efficientnet_b3.pyth
"""
import argparse

from common import cli
from weights import _files, _layouts


def add_flags(parser):
    """Add the verb's flags to its parser."""
    _files.add_flags(parser, "import")
    parser.add_argument("--out", metavar="FILE", required=True, help="the checkpoint to write")
    for name in ("mean", "std"):
        parser.add_argument("--" + name, metavar="R,G,B", type=_three_numbers,
                            help="%s of values in [0, 1] that the weights were trained with, where not this network's" % name)


def _three_numbers(text):
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3:
        raise argparse.ArgumentTypeError("%r are not three numbers such as 0.5,0.5,0.5" % text)
    return values


def run(args):
    """Write the checkpoint in upstream's form, which every script reads."""
    if args.out.endswith(".safetensors"):
        raise cli.UserError("the scripts read PyTorch files; name it otherwise than %s" % args.out)
    weights = _files.read(args)
    if args.mean or args.std:
        weights = weights._replace(state=_layouts.renormalised(weights.state, weights.network, args.mean, args.std))
    _files.write(args.out, _files.upstream_form(weights), {})
    network, origin = weights.network, ", from " + weights.package if weights.package else ""
    cli.print_line("wrote %s: %s of %s, %d classes%s" % (args.out, network.name, network.model, network.classes, origin))

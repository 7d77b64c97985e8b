"""Write weights for other programs: safetensors, torchvision, timm, or upstream's own.

--format says whose key names the file gets: safetensors, ours, which are upstream's; torchvision or timm, those with which their
network of the same name loads it strictly and gives the same logits; upstream, the form that upstream's evaluation reads. Where the
networks differ, what can be folded into the weights is: EfficientNet's reads BGR here and RGB there, and the BatchNorm constants
may differ. What cannot be folded is refused. A file named .safetensors also says what it holds: model, network, classes, pictures,
accuracy, recipe, commit; any other name gives a PyTorch file.

Example: weights.py export test/output/0/model_best.pth.tar --format=timm --out=resnet50.safetensors
"""
from common import cli
from weights import _files, _layouts


def add_flags(parser):
    """Add the verb's flags to its parser."""
    _files.add_flags(parser, "export")
    parser.add_argument("--format", choices=("safetensors",) + _layouts.PACKAGES + ("upstream",), default="safetensors",
                        help="whose key names (default: %(default)s, ours)")
    parser.add_argument("--out", metavar="FILE", required=True, help="the file to write: .safetensors, or a PyTorch file")


def run(args):
    """Write the file, and say how it is loaded."""
    if args.format == "safetensors" and not args.out.endswith(".safetensors"):
        raise cli.UserError("--format=safetensors: name the file .safetensors, not %s" % args.out)
    if args.format == "upstream" and args.out.endswith(".safetensors"):
        raise cli.UserError("--format=upstream is a PyTorch file; name it otherwise than %s" % args.out)
    weights = _files.read(args)
    network, notes = weights.network, _files.notes_for(weights, args.format)
    if args.format == "upstream":
        content = _files.upstream_form(weights)
    elif args.format in _layouts.PACKAGES:
        content = _layouts.for_package(weights.state, network, args.format)
    else:
        content = weights.state
    _files.write(args.out, content, notes)
    cli.print_line("wrote %s: %s, %d classes%s" % (args.out, network.name, network.classes, _loading(network, args.format)))
    cli.print_line("pictures: {channels}, mean {mean}, std {std}, {image_size} pixels".format(**notes))


def _loading(network, layout):
    if layout not in _layouts.PACKAGES:
        return ""
    name = _layouts.counterpart(network, layout)
    built = "timm.create_model(%r, num_classes=%d)" if layout == "timm" else "torchvision.models.%s(num_classes=%d)"
    return "; loads into " + built % (name, network.classes)

"""Print the parameters and the multiply-adds of the networks, by name.

Multiply-adds are those of convolutions and linear layers for one picture, of the size of the network's evaluation or of --image-size;
GFLOPs are multiply-adds / 1024^3, as in HRNet's tables. The table is Markdown.

Example: weights.py networks hrnet_w18 resnet50
"""
from HRNet.lib.model_stats import model_stats
from common import cli
from weights import _networks


def add_flags(parser):
    """Add the verb's flags to its parser."""
    parser.add_argument("networks", metavar="NAME", nargs="*", type=_networks.known, default=[_networks.known(name) for name in _networks.NAMES],
                        help="which networks; without a name, all: " + ", ".join(_networks.NAMES))
    parser.add_argument("--image-size", metavar="PIXELS", type=cli.positive_int, help="pixels of a side (default: as in the evaluation)")


def run(args):
    """Print a line for each network."""
    cli.print_line("| network | pixels | parameters | multiply-adds | GFLOPs |\n| --- | --- | --- | --- | --- |")
    for network in args.networks:
        size = args.image_size or _networks.view_of(network).size
        stats = model_stats(_networks.skeleton(network), size, size)
        cli.print_line("| {} | {} | {:,} | {:,} | {:.2f} |".format(network.name, size, stats.parameters, stats.multiply_adds,
                                                                  stats.giga_multiply_adds))

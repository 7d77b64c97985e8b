#!/usr/bin/env python3
"""Print the parameters and the multiply-adds of networks.

    python tools/model_stats.py HRNet/experiments/*.yaml
    python tools/model_stats.py ResNet50:resnet:resnet50
    python tools/model_stats.py --image_size 300 DIRECTORY:MODULE:CALLABLE

A network is named by a YAML file of HRNet/experiments, or by DIRECTORY:MODULE:CALLABLE, where calling CALLABLE of MODULE,
imported from DIRECTORY, without arguments returns the network. The table that is printed is Markdown.
"""
import importlib
import os
import sys
from argparse import Namespace

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

from HRNet.lib.model_stats import model_stats  # noqa: E402
from common import cli  # noqa: E402


def build(spec):
    """Return the network named by a YAML file of HRNet or by DIRECTORY:MODULE:CALLABLE. Raises UserError for another text."""
    if spec.endswith((".yaml", ".yml")):
        return _from_yaml(spec)
    words = spec.split(":")
    if len(words) != 3 or not os.path.isdir(os.path.join(ROOT, words[0])):
        raise cli.UserError("%s is neither a YAML file of HRNet/experiments nor DIRECTORY:MODULE:CALLABLE" % spec)
    sys.path.insert(0, os.path.join(ROOT, words[0]))
    try:
        return getattr(importlib.import_module(words[1]), words[2])()
    except (ImportError, AttributeError) as error:
        raise cli.UserError("%s: %s" % (spec, error))


def _from_yaml(path):
    sys.path.insert(0, os.path.join(ROOT, "HRNet"))
    from lib.config import new_config, update_config
    from lib.models import build_model
    config = new_config()
    update_config(config, Namespace(cfg=path, modelDir="", logDir="", dataDir="", testModel="", opts=[]))
    return build_model(config)


def main():
    parser = cli.Parser(description="Count parameters and multiply-adds. A network is a YAML file of HRNet/experiments or "
                                    "DIRECTORY:MODULE:CALLABLE, such as ResNet50:resnet:resnet50.")
    parser.add_argument("network", nargs="+", help="which networks")
    parser.add_argument("--image-size", type=cli.positive_int, default=224, help="height and width of the image in pixels")
    args = parser.parse_args()
    print("| network | parameters | multiply-adds | / 1024³ |\n|---|---|---|---|")
    for spec in args.network:
        stats = model_stats(build(spec), args.image_size, args.image_size)
        print("| {} | {:,} | {:,} | {:.2f} |".format(os.path.basename(spec), stats.parameters, stats.multiply_adds,
                                                    stats.giga_multiply_adds), flush=True)


if __name__ == "__main__":
    cli.run(main)

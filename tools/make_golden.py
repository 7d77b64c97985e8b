#!/usr/bin/env python3
"""Make the golden numbers of a model again (ci/golden/MODEL.json), by running a checkout of upstream's code that you have fetched.

What goes in (inputs, settings, notes) is taken from the golden file that is there, and so is the form; every number that comes out is
computed anew, with the weights and inputs of ci/fill.py. docs/golden.md says what each entry is.

    git clone https://github.com/BayesWatch/pytorch-GENet upstream
    git -C upstream checkout 3fbf99fb6934186004ffb5ea5c0732e0e976d5b2
    python tools/make_golden.py GENet --upstream=upstream --output=GENet.json

Exit status: 0 written; 2 wrong usage, or a checkout that is not upstream's at the commit of the port.
"""
import argparse
import contextlib
import importlib
import json
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [path for path in (os.path.join(ROOT, "tools"), ROOT, os.path.join(ROOT, "ci")) if path not in sys.path]
from common import cli, device  # noqa: E402
from golden import _entries, _upstream  # noqa: E402

FORMS = os.path.join(ROOT, "ci", "golden")


def parser():
    p = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument
    add("model", choices=models(), metavar="MODEL", help="one of " + ", ".join(models()))
    add("--upstream", required=True, metavar="DIR", help="a checkout of upstream's repository, at the commit of the port")
    add("--output", metavar="FILE", help="where the numbers go (default: MODEL.json in this folder)")
    add("--only", type=names, metavar="ENTRIES", help="only these entries, with commas: variants, variants.*.train_losses, losses, ...")
    add("--variants", type=names, metavar="ARCHS", help="only these networks, with commas, by their `arch` or how it begins (default: all)")
    add("--any-commit", action="store_true", help="take another commit, changed files or a folder without git, and say so in the file")
    return p


def names(text):
    """argparse type: words with commas."""
    return [word for word in text.split(",") if word]


def models():
    """Return the models that have a module in tools/golden/, by the names of their golden files."""
    files = sorted(name[:-len(".json")] for name in os.listdir(FORMS) if name.endswith(".json"))
    return [name for name in files if os.path.exists(os.path.join(ROOT, "tools", "golden", module_name(name) + ".py"))]


def module_name(model):
    """Return the name of a model's module in tools/golden/."""
    return model.lower().replace("-", "_")


def main():
    """Make the file; return nothing."""
    args = parser().parse_args()
    maker = importlib.import_module("golden." + module_name(args.model))
    path = args.output or args.model + ".json"
    if os.path.isdir(path) or not os.access(os.path.dirname(os.path.abspath(path)), os.W_OK):
        raise cli.UserError("--output=%s is no file that can be written" % path)
    with open(os.path.join(FORMS, args.model + ".json"), encoding="utf-8") as stream:
        form = json.load(stream)
    device.import_torchvision()  # upstream imports it too, and beside a CPU build of PyTorch it needs our help
    upstream = _upstream.Upstream(args.upstream, maker.SOURCE, args.any_commit).open()
    with contextlib.redirect_stdout(sys.stderr):  # upstream's modules print
        made, count = _entries.make(form, maker, upstream, args.only, args.variants)
    made.update(upstream.versions(form))
    made["made_by"] = dict(upstream.origin(), not_made=dict(maker.NOT_MADE))
    with open(path, "w", encoding="utf-8") as stream:
        json.dump(made, stream, indent=1, ensure_ascii=False)
        stream.write("\n")
    print("%s: %d results from %s" % (path, count, upstream))


if __name__ == "__main__":
    cli.run(main)

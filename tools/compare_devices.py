#!/usr/bin/env python3
"""Compare training steps on a device with float64 on the CPU, layer by layer from the same inputs.

The model's own program takes golden steps (ci/golden). What every layer makes of its inputs, and of the gradients that reach it, is
computed again in float64; each error stands beside a bound that follows from the precision. Prints the first layer outside its bound
and the worst layers, and draws error by layer where there is an --output-path.

    python tools/compare_devices.py --model=HRNet --devices=cpu,npu:0 --opt-level=O2 --steps=5
    python tools/compare_devices.py --model=HRNet --devices=npu:0 --dump=there.pt     # on one machine, or in one environment
    python tools/compare_devices.py --model=HRNet --devices=cpu --against=there.pt    # on, or in, another

Exit status: 0 every layer is inside its bound, 1 one is not, 2 wrong usage.
"""
import argparse
import contextlib
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [path for path in (os.path.join(ROOT, "tools"), ROOT) if path not in sys.path]
from common import cli, device as devices, precision  # noqa: E402
from comparison import _dumps, _golden, _layers, _picture, _proof, _steps  # noqa: E402


def parser():
    p = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument
    add("--model", required=True, choices=_golden.MODELS)
    add("--devices", default="cpu", help="what to compare with float64: cpu, gpu, npu:0, several separated by commas (default cpu)")
    add("--opt-level", choices=precision.OPT_LEVELS, default="O0", help="mixed precision (default O0: fp32)")
    add("--amp-dtype", choices=precision.DTYPES, help="half precision of O1 and O2; without it fp16 on npu and gpu, bf16 on cpu")
    add("--steps", type=cli.positive_int, default=1, help="training steps, each compared from where the device was (default 1)")
    add("--recipe", default="", help="the golden training whose name begins so (default: the first)")
    add("--worst", type=cli.natural_int, default=10, help="layers in the table (default 10)")
    add("--output-path", metavar="DIR", help="where a picture for each device goes")
    add("--dump", metavar="FILE", help="write what the last device's layers did, for --against")
    add("--against", metavar="FILE", help="also compare with a dump, of another machine or environment")
    return p


def main():
    args = parser().parse_args()
    recipe = recipe_of(args.model, args.recipe)
    other = _dumps.load(args.against) if args.against else None
    names = args.devices.split(",")
    for name in names:
        devices.resolve(name.partition(":")[0])
    make_place(args.output_path, args.dump)
    outside = 0
    for name in names:
        trace, rows = compared(recipe, name, args.opt_level, args.amp_dtype, args.steps)
        outside += show("%s, %s, %s at %s" % (args.model, recipe.name, name, trace.level), rows, args.worst)
        print("losses: %s" % " ".join("%.9g" % loss for loss in trace.losses), flush=True)
        if args.output_path:
            _picture.write(os.path.join(args.output_path, "layers_%s_%s.png" % (args.model, name.replace(":", "_"))),
                           {trace.level: rows}, "%s on %s" % (args.model, name))
        if other:
            show("%s and %s" % (name, args.against), _dumps.apart(trace, other), args.worst)
    if args.dump:
        _dumps.save(trace, args.dump)
    sys.exit(cli.EXIT_FAILED if outside else 0)


def make_place(folder, dump):
    """Make the folder of the pictures, and the file of the dump, where they are wanted. Raises UserError where that cannot be."""
    try:
        if folder:
            os.makedirs(folder, exist_ok=True)
        if dump:
            open(dump, "ab").close()
    except OSError as error:
        raise cli.UserError("cannot write %s: %s" % (error.filename, error.strerror))


def recipe_of(model, name):
    """Return the first Recipe of a model whose name begins with `name`. Raises UserError where there is none."""
    found = [recipe for recipe in _golden.recipes(model) if recipe.name.startswith(name)]
    if not found:
        raise cli.UserError("--recipe %s: %s has %s" % (name, model, "; ".join(recipe.name for recipe in _golden.recipes(model))))
    return found[0]


def compared(recipe, device, level, dtype, steps):
    """Return (_steps.Trace, [_layers.Row]) of steps on a device. Raises UserError where the level cannot run there."""
    with contextlib.redirect_stdout(sys.stderr):
        trace = _steps.run(recipe, device, level, dtype, steps, watch="all")
    if trace.level != level:
        raise cli.UserError(trace.note)
    return trace, list(_layers.compare(trace))


def show(title, rows, count):
    """Print the first row outside its bound and the worst rows; return how many are outside."""
    outside = [row for row in rows if not row.error <= row.bound]
    print("%s: %d comparisons, %d outside their bound" % (title, len(rows), len(outside)))
    for row in outside[:1]:
        print("first outside: %s, %s of step %d: error %.3g, bound %.3g" % (row.layer, row.phase, row.step, row.error, row.bound))
    print("%4s  %-44s %-20s %10s %10s" % ("step", "layer", "phase", "error", "bound"))
    for row in _proof.worst(rows, count):
        print("%4d  %-44s %-20s %10.3g %10.3g" % (row.step, row.layer, row.phase, row.error, row.bound))
    return len(outside)


if __name__ == "__main__":
    cli.run(main)

"""Measure the shape of the production Python, and fail when a limit of the house is broken.

    python ci/measure_style.py

Prints a table with a line for each room: `common`, each model, `tools`. A function inside a function counts as part of it and on
its own. Nesting counts if, for, while, with and try. Each broken limit is a line, and the exit status is then 1.
"""
import ast
import glob
import os
import statistics
import sys
from collections import namedtuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

from common import cli  # noqa: E402

ANY = float("inf")
# What is measured: (how a line says it, the most in common/, the most in a model and in tools/).
LIMITS = {"room": ("%g lines in all", 5125, ANY), "file": ("a file of %g lines", 300, ANY),
          "median": ("a median function of %g lines", 7.5, ANY),  # "under 8": a median is a whole number or a half
          "function": ("a function of %g lines", 60, 72), "required": ("%g required parameters", 5, 6),
          "nesting": ("nesting of %g", 3, ANY), "undocumented": ("%g docstring missing", 0, ANY)}
OVERRIDES = ("forward", "state_dict", "load_state_dict")  # PyTorch's documentation says what they do.
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try)

Value = namedtuple("Value", "path line name what number")
Row = namedtuple("Row", "room files lines longest_file functions median longest_function required nesting undocumented")


def measure(root):
    """Return a Row for each room below `root`; what is longest, largest or deepest is a pair (name, number)."""
    rows = []
    for room, values in _rooms(root):
        found = {what: [(each.name, each.number) for each in values if each.what == what] for what in LIMITS}
        most = {what: max(pairs or [("", 0)], key=lambda pair: pair[1]) for what, pairs in found.items()}
        rows.append(Row(room, len(found["file"]), most["room"][1], most["file"], len(found["function"]), most["median"][1],
                        most["function"], most["required"], most["nesting"], len(found["undocumented"])))
    return rows


def broken(root):
    """Return a line `BROKEN: path:line name: what, allowed N` for each limit that is broken below `root`."""
    found = []
    for room, values in _rooms(root):
        for path, line, name, what, number in values:
            words, in_common, elsewhere = LIMITS[what]
            allowed = in_common if room == "common" else elsewhere
            if number > allowed:
                found.append("BROKEN: %s:%d %s: %s, allowed %g" % (path, line, name, words % number, allowed))
    return found


def _rooms(root):
    models = [path.split(os.sep)[-3] for path in _found(root, "*", "test", "train_full_1p.sh")]
    for room in ["common"] + models + ["tools"]:
        paths = [path for path in _found(root, room, "**", "*.py") if "/test/output/" not in path]
        values = [value for path in paths for value in _values(root, path)]
        if values:
            lines = sum(each.number for each in values if each.what == "file")
            median = float(statistics.median([each.number for each in values if each.what == "function"] or [0]))
            yield room, values + [Value(room, 1, room, "room", lines), Value(room, 1, room, "median", median)]


def _found(root, *pattern):
    # glob passes over hidden folders.
    return sorted(os.path.relpath(path, root) for path in glob.glob(os.path.join(glob.escape(root), *pattern), recursive=True))


def _values(root, path):
    with open(os.path.join(root, path), encoding="utf-8") as stream:
        source = list(stream)
    yield Value(path, len(source), os.path.basename(path), "file", len(source))
    for node, name, public in _definitions(ast.parse("".join(source), path)):
        start = node.lineno
        while not source[start - 1].lstrip().startswith(("def ", "async ", "class ")):
            start += 1  # Python 3.7 counts from the decorator, and has no end_lineno.
        if isinstance(node, FUNCTIONS):
            end = getattr(node, "end_lineno", None) or max(getattr(each, "lineno", 0) for each in ast.walk(node))
            yield Value(path, start, name, "function", end - start + 1)
            yield Value(path, start, name, "required", _required(node.args))
            yield Value(path, start, name, "nesting", _nesting(node, source))
        if public and node.name not in OVERRIDES and not ast.get_docstring(node):
            yield Value(path, start, name, "undocumented", 1)


def _definitions(node, inside="", public=True):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FUNCTIONS + (ast.ClassDef,)):
            setter = any(isinstance(each, ast.Attribute) and each.attr in ("setter", "deleter") for each in child.decorator_list)
            visible = public and not setter and not child.name.startswith("_")
            yield child, inside + child.name, visible
            yield from _definitions(child, inside + child.name + ".", visible and isinstance(child, ast.ClassDef))
        else:
            yield from _definitions(child, inside, public)


def _required(args):
    positional = getattr(args, "posonlyargs", []) + args.args
    required = positional[:len(positional) - len(args.defaults)]
    required += [arg for arg, default in zip(args.kwonlyargs, args.kw_defaults) if default is None]
    return sum(arg.arg not in ("self", "cls") for arg in required)


def _nesting(node, source):
    deeper = isinstance(node, BLOCKS) and not source[node.lineno - 1].lstrip().startswith("elif")
    return deeper + max([_nesting(child, source) for child in ast.iter_child_nodes(node)] or [0])


def main():
    parser = cli.Parser(description="Measure the shape of the production Python, and fail when a limit of the house is broken.")
    parser.add_argument("root", nargs="?", default=ROOT, help="the repository")
    root = parser.parse_args().root
    rows = measure(root)
    if not rows:
        raise cli.UserError("%s: no Python file of common/, a model or tools/ is there" % root)
    cells = [Row._fields] + [["%s %d" % cell if isinstance(cell, tuple) else "%s" % cell for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cells)]
    print("\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells))
    found = broken(root)
    print("\n".join(found or ["all limits of the house are kept"]))
    sys.exit(cli.EXIT_FAILED if found else 0)


if __name__ == "__main__":
    cli.run(main)

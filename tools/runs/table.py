"""Print runs as rows of the models' READMEs, each beside what is published, with a verdict on its accuracy.

NAME, Acc@1, FPS (images/s of all ranks over steady steps), Epochs, AMP_Type and Torch_Version, from report.json; the same of the
publication on as many devices of the kind; and whether the accuracy is within the band of common/references.json, or why it cannot be
compared.

Example: runs.py table ResNet50/test/output/0 GENet/test/output/0 --format=csv
"""
import csv
import json
import sys

from common import cli
from runs import _runs

_FORMS = {"Acc@1": "%.3f", "FPS": "%.3f"}


def add_flags(parser):
    """Add the verb's flags to its parser."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="output paths, or their report.json")
    parser.add_argument("--format", choices=sorted(_WRITERS), default="markdown", help="of the table [%(default)s]")


def run(args):
    """Print the table."""
    _WRITERS[args.format]([line_of(each) for each in _runs.read(args.runs)])


def line_of(run):
    """Return the line of a Run, {column: value}: its row, the published one, the band, the verdict."""
    found = _runs.reference(run)
    line = dict(_runs.row(run))
    line.update(("published " + name, value) for name, value in _runs.published_row(found).items() if name != "NAME")
    return dict(line, band="%g to %g" % tuple(found["band"]) if found else None, verdict=found["verdict"] if found else "nothing published")


def shown(column, value):
    """Return a value as text; - for what was not measured or is not published."""
    if value is None:
        return "-"
    return _FORMS.get(column.replace("published ", ""), "%s") % value


def _markdown(lines):
    rows = [list(lines[0]), ["---"] * len(lines[0])] + [[shown(*cell).replace("|", "\\|") for cell in line.items()] for line in lines]
    for row in rows:
        cli.print_line("| %s |" % " | ".join(row))


def _csv(lines):
    writer = csv.DictWriter(sys.stdout, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)


def _json(lines):
    cli.print_line(json.dumps(lines, indent=2, ensure_ascii=False))


_WRITERS = {"markdown": _markdown, "csv": _csv, "json": _json}

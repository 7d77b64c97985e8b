"""Write a page on one or more runs: one HTML file that needs no network, for a desk or a phone, light or dark.

What ran, the result beside the published one, curves; of a run with --predictions also the worst classes, what they are taken for, and
the validation pictures that the network is most wrong about; of several runs a comparison, with linearity: images/s of N ranks over N
times those of one.

Example: runs.py page ResNet50/test/output/0 --out run.html
"""
import io
import os
import re
import shlex

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from common import cli
from common.cli import UserError
from runs import _answers, _runs, curves

_INK = "#010203"  # what matplotlib draws in it is drawn in the text colour of the page
_STYLE = {"svg.fonttype": "none", "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _INK, "xtick.color": _INK,
          "ytick.color": _INK, "legend.frameon": False, "axes.facecolor": "none", "figure.facecolor": "none", "font.size": 10.0}


def add_flags(parser):
    """Add the verb's flags to its parser."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="output paths")
    parser.add_argument("--reference", action="store_true", help="also draw the published accuracy, and its band, into the curves of top-1")
    parser.add_argument("--out", metavar="FILE.html", help="the page to write (default: page.html in the first run's output path)")


def run(args):
    """Write the page, and say where it is."""
    found = _runs.read(args.runs)
    references = [_runs.reference(each) for each in found]
    if args.reference and not any(references):
        raise UserError("--reference: nothing is published on %s" % ", ".join(each.name for each in found))
    out = args.out or os.path.join(found[0].folder, "page.html")
    text = _template().render(runs=[content(*pair) for pair in zip(found, references)], comparison=comparison(found),
                              panels=panels(found, [each for each in references if each] if args.reference else []))
    with _runs.new_file(out) as stream:
        stream.write(text.encode())
    cli.print_line("page: %s" % out)


def _template():
    loader = jinja2.FileSystemLoader(os.path.dirname(os.path.abspath(__file__)))
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True,
                              undefined=jinja2.StrictUndefined).get_template("page.html")


# --- what is said of a run --------------------------------------------------------------------------------------------

def content(run, reference):
    """Return what the template shows of a Run: name, facts and results (lists of lines), command, answers."""
    published = _runs.published_row(reference)
    results = [(name, _number(value), _number(published[name])) for name, value in list(_runs.row(run).items())[1:]]
    others = [("Best Acc@1", "val.best_top1"), ("Acc@5", "val.top5"), ("Validation loss", "val.loss"), ("Training loss", "train.loss_mean"),
              ("Waiting for data (%)", "train.data_wait"), ("Unreadable images", "bad_images")]
    results += [(name, _number(run.summary[key]), "") for name, key in others if run.summary.get(key) is not None]
    return {"name": run.name, "facts": facts(run), "results": results, "reference": reference, "finished": bool(run.summary),
            "command": " ".join(map(shlex.quote, run.report.get("case", {}).get("command") or [])), "answers": _answers.read(run),
            "waited_for": waited_for(run)}


def facts(run):
    """Return (name, value) of what ran where, as far as it is known."""
    case, host, parameters = run.report.get("case", {}), run.report.get("host", {}), run.parameters
    logged = [record for record in run.records if record.get("datetime")]
    said = [("Case", case.get("name")), ("Device", parameters.get("device_type")), ("Ranks", parameters.get("world_size")),
            ("Batch size", case.get("images_per_step")), ("Precision", parameters.get("opt_level_run")),
            ("Training images", parameters.get("train_images")), ("Seed", parameters.get("seed")),
            ("PyTorch", parameters.get("torch")), ("Python", host.get("python")), ("System", host.get("system")),
            ("Commit", case.get("commit")), ("Began", logged[0]["datetime"].partition(".")[0] + " UTC" if logged else None),
            ("Duration (s)", run.report.get("duration_sec")), ("Output path", os.path.abspath(run.folder))]
    return [(name, _number(value)) for name, value in said if value is not None]


def waited_for(run):
    """Return of each rank that the others have waited for (records.Recorder.step) the cells of a line: rank, host, in how many per cent of
    the lines of the log, by how many per cent its steps took longer than the median rank's, and its wait for data in per cent of them."""
    found = {}
    for record in run.records:
        data = record.get("data") or {}
        if data.get("train.slowest_time") and data.get("train.median_time"):
            found.setdefault((data["train.slowest_rank"], data.get("train.slowest_host")), []).append(data)
    total, lines = sum(map(len, found.values())), []
    for (rank, host), times in sorted(found.items(), key=lambda item: -len(item[1])):
        own, median, waited = (sum(each.get("train." + name) or 0 for each in times)
                               for name in ("slowest_time", "median_time", "slowest_data_time"))
        cells = [rank, host or "", 100.0 * len(times) / total, 100.0 * (own / median - 1), 100.0 * waited / own]
        lines.append([("%.1f" % cell if isinstance(cell, float) else str(cell), cell) for cell in cells])
    return lines


def _number(value):
    if isinstance(value, float):
        return "%.3f" % value if abs(value) >= 0.01 or not value else "%.3g" % value
    return "not measured" if value is None else str(value)


def comparison(found):
    """Return the lines that compare several Runs, [] of one: of each cell what is shown and what it is sorted by."""
    lines = []
    for run in found if len(found) > 1 else ():
        row, ranks = _runs.row(run), run.parameters.get("world_size")
        cells = [run.name, run.parameters.get("device_type"), ranks, run.report.get("case", {}).get("images_per_step"), row["AMP_Type"],
                 row["Epochs"], row["Acc@1"], row["FPS"], linearity(run, found), run.summary.get("train.data_wait")]
        lines.append([("-" if cell is None else _number(cell), "" if cell is None else cell) for cell in cells])
    return lines


def linearity(run, found):
    """Return the images/s of a Run of N ranks over N times those of the first run of one rank of its like in `found`; None without."""
    def like(each):
        network = each.report.get("case", {}).get("network")
        return (re.sub(r"_ID\d+", "", network) if network else each.parameters.get("arch"), each.parameters.get("device_type"),
                each.parameters.get("opt_level_run"))

    single = [each.summary["train.total_ips"] for each in found
              if each.parameters.get("world_size") == 1 and like(each) == like(run) and each.summary.get("train.total_ips")]
    ranks, rate = run.parameters.get("world_size"), run.summary.get("train.total_ips")
    return rate / (ranks * single[0]) if single and ranks and rate else None


# --- curves -----------------------------------------------------------------------------------------------------------

def panels(found, references):
    """Return the SVG of each panel of the trainings among the Runs, [] without one; `references` are drawn into that of top-1."""
    drawn = {run.name: curves.curves_of(run.records) for run in found}
    drawn = {name: curve for name, curve in drawn.items() if any(steps or epochs[1:] for steps, epochs in curve.values())}
    with matplotlib.rc_context(_STYLE):
        return [_svg(panel, drawn, references) for panel in curves.PANELS if drawn]


def _svg(panel, drawn, references):
    figure = Figure(figsize=(6, 3.4))
    axis = figure.add_subplot()
    for reference in references if panel == "top1" else ():
        axis.axhspan(*reference["band"], color="tab:green", alpha=0.25)
        axis.axhline(reference["top1"], color="tab:green", linewidth=1, label="published")
    curves.draw_panel(axis, panel, drawn)
    figure.tight_layout()
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue().partition("<svg")[2].replace(_INK, "currentColor")
    for before in ('id="', "url(#", 'xlink:href="#'):  # several pictures are one document here
        text = text.replace(before, before + panel + "-")
    return Markup('<svg role="img" aria-label="%s"' % curves.PANELS[panel][0] + text)

"""Draw the curves of one or more trainings: loss, top-1, learning rate, images/s and waiting over the epochs.

Reads metrics.jsonl, the DLLogger records that every training leaves in its output path. Thin lines are single steps,
thick ones whole epochs; solid is training, dashed is validation. What a run did not record is left out.

Example: runs.py curves ResNet50/test/output/0 --out curves.png
"""
import argparse
import os

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

from common import cli, records  # noqa: E402
from common.cli import UserError  # noqa: E402
from runs import _runs  # noqa: E402

# panel -> (label of its axis, names of its training and of its validation metric; of several names the first recorded)
PANELS = {
    "loss": ("loss", ("train.loss",), ("val.loss",)),
    "top1": ("top-1 (%)", ("train.top1",), ("val.top1",)),
    "lr": ("learning rate", ("lr", "train.lr"), ()),
    "speed": ("images/s", ("train.total_ips",), ()),
    "wait": ("waiting for data (%)", ("train.data_wait",), ()),
}
METRICS = {name for _, train, val in PANELS.values() for name in train + val}


# --- records to curves ------------------------------------------------------------------------------------------------

def read_curves(path):
    """Return {metric: (steps, epochs)} of a record file; each is a list of (epoch, value) in ascending order.

    `steps` come from records of iterations, `epochs` from summaries of epochs, which lie at the epoch's end. Where an
    interrupted run was resumed, the newer of two records of a step counts. Raises UserError where there is none.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError("%s cannot be read: it is no file" % path)
    try:
        curves = curves_of(records.read(path))
    except OSError as error:
        raise UserError("%s cannot be read: %s" % (path, error.strerror))
    if not curves:
        raise UserError("%s holds no DLLogger record of a training (wanted: lines `DLLL {...}` with %s)"
                        % (path, ", ".join(sorted(METRICS))))
    return curves


def curves_of(found):
    """Return what `read_curves` does, of records; {} where none is of a training."""
    logged, curves = _runs.logged(found), {}
    steps_per_epoch = _runs.count_steps(logged)
    for record in logged:
        level, epoch = _runs.place_of(record["step"], steps_per_epoch)
        for metric in METRICS.intersection(record["data"]):
            # Of an epoch the mean is drawn: the number of that name is its last batch's.
            value = record["data"].get(metric + "_mean" if level else metric, record["data"][metric])
            if _runs.is_number(value):
                curves.setdefault(metric, ({}, {}))[level][epoch] = value
    return {metric: tuple(sorted(level.items()) for level in levels) for metric, levels in curves.items()}


# --- curves to a picture ----------------------------------------------------------------------------------------------

def draw(runs):
    """Return a figure of `runs`: {name: curves}. Each run has a colour; a single one has two, for training and validation."""
    figure, axes = plt.subplots(3, 2, figsize=(11, 10))
    for panel, axis in zip(PANELS, axes.flat):
        draw_panel(axis, panel, runs)
    axes.flat[-1].set_axis_off()
    figure.suptitle(list(runs)[0] if len(runs) == 1 else "%d runs" % len(runs))
    figure.tight_layout()
    return figure


def draw_panel(axis, panel, runs):
    """Draw one of PANELS."""
    palette = plt.get_cmap("tab10" if len(runs) <= 10 else "viridis", max(10, len(runs)))
    for number, (name, curves) in enumerate(runs.items()):
        if len(runs) == 1:
            draw_run(axis, panel, curves, (palette(0), palette(1)), "")
        else:
            draw_run(axis, panel, curves, (palette(number), palette(number)), name)
    finish_panel(axis, panel)


def draw_run(axis, panel, curves, colours, name):
    """Add the curves of one run to one panel; `colours` are those of training and of validation."""
    _, train, val = PANELS[panel]
    for metrics, side, colour, style in ((train, "train", colours[0], "-"), (val, "val", colours[1], "--")):
        steps, epochs = next((curves[metric] for metric in metrics if metric in curves), ([], []))
        if panel == "lr" and steps:
            epochs = []  # a schedule has no noise that an average over the epoch would take away
        label = " ".join(word for word in (name, side if val else "") if word)
        if steps:
            axis.plot(*zip(*steps), color=colour, **({"linewidth": 0.8, "alpha": 0.35} if epochs else {"label": label}))
        if epochs:
            axis.plot(*zip(*epochs), linestyle=style, color=colour, marker="o", markersize=3, label=label)


def finish_panel(axis, panel):
    """Label a panel that holds all its curves, and bound its scale."""
    axis.set_ylabel(PANELS[panel][0])
    axis.set_xlabel("epochs")
    axis.grid(alpha=0.3)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not axis.lines:
        axis.text(0.5, 0.5, "not recorded", transform=axis.transAxes, ha="center", va="center", color="grey")
        axis.set_yticks([])
    elif panel == "top1":
        bottom, top = axis.get_ylim()
        axis.set_ylim(max(bottom, -2), min(top, 102))
    elif panel in ("lr", "speed", "wait"):
        axis.set_ylim(0, 1.1 * max(max(line.get_ydata()) for line in axis.lines) or 1)
    if any(line.get_label() and not line.get_label().startswith("_") for line in axis.lines):
        axis.legend(fontsize="small")


# --- the command ------------------------------------------------------------------------------------------------------

def picture_path(text):
    """argparse type: the path of a picture in a format that matplotlib writes."""
    suffixes = sorted(plt.Figure().canvas.get_supported_filetypes())
    if _suffix(text) not in suffixes:
        raise argparse.ArgumentTypeError("%r does not end in one of .%s" % (text, ", .".join(suffixes)))
    return text


def _suffix(path):
    return os.path.splitext(path)[1].lower()[1:]


def add_flags(parser):
    """Add the verb's flags to its parser."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="output paths, or record files; several are drawn into one picture")
    parser.add_argument("--out", metavar="PICTURE", type=picture_path,
                        help="the picture to write, its suffix says the format (default: curves.png beside the first run's records)")


def run(args):
    """Draw the picture, and say where it is."""
    paths = list(dict.fromkeys(map(_runs.metrics_of, args.runs)))
    curves = dict(zip(_runs.names_of(paths), map(read_curves, paths)))
    out = args.out or os.path.join(os.path.dirname(paths[0]), "curves.png")
    with _runs.new_file(out) as stream:
        draw(curves).savefig(stream, dpi=120, format=_suffix(out))
    cli.print_line("curves: %s" % out)

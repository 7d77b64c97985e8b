"""tools/runs.py: what a run has left becomes curves, a page, rows of a table and TensorBoard's events."""
import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from common import records
from common.cli import UserError
from conftest import ROOT, assert_bad_input, environment

sys.path.append(os.path.join(ROOT, "tools"))
from runs import _runs, curves  # noqa: E402


def run_tool(verb, *options):
    """Return the finished `tools/runs.py VERB`."""
    command = [sys.executable, os.path.join(ROOT, "tools", "runs.py"), verb] + [str(option) for option in options]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=300,
                          env=environment())


class Main(object):
    is_main = True


def write_run(path, epochs=3, first=0, append=False, scale=1.0):
    """Write the records of a training with 4 steps an epoch, of which every second is recorded."""
    recorder = records.Recorder(str(path), Main(), append=append)
    recorder.parameters({"lr": 0.1})
    for epoch in range(first, epochs):
        for step in (0, 2):
            recorder.log((epoch, step), {"train.loss": scale * (10 - epoch - step / 4), "lr": 0.1, "train.data_time": 0})
        recorder.log((epoch,), {"train.loss": 77.0, "train.loss_mean": scale * (9 - epoch), "val.loss": 1.0, "val.top1": 10.0 * epoch,
                                "train.total_ips": 100.0 if epoch else None})
    recorder.log((), {"train.loss": 1.0, "val.top1": 5.0})
    return path


# --- curves -----------------------------------------------------------------------------------------------------------

def test_curves_of_a_run(tmp_path):
    """Steps lie within their epoch, summaries at its end; what was not measured and the summary of the run are no points."""
    found = curves.read_curves(str(write_run(tmp_path / "m")))
    assert found["train.loss"][0] == [(0, 10), (0.5, 9.5), (1, 9), (1.5, 8.5), (2, 8), (2.5, 7.5)]
    assert found["train.loss"][1] == [(1, 9), (2, 8), (3, 7)]
    assert found["val.top1"] == ([], [(1, 0), (2, 10), (3, 20)])
    assert found["train.total_ips"][1] == [(2, 100), (3, 100)]
    assert set(found) == {"train.loss", "val.loss", "val.top1", "train.total_ips", "lr"}


def test_curves_of_other_writers(tmp_path):
    """Iterations counted from 1, NaN, half lines, other words: as NVIDIA's code writes them and killed runs leave them."""
    lines = [{"type": "LOG", "step": [0, 10], "data": {"train.loss": 4.0, "train.lr": 0.5}},
             {"type": "LOG", "step": [0, 20], "data": {"train.loss": float("nan")}},
             {"type": "LOG", "step": [1, 10, 3], "data": {"val.loss": 2.0, "val.top1": "none"}},
             {"type": "LOG", "step": ["before"], "data": {"val.top1": 70.0}},
             {"type": "METADATA", "metric": "val.top1", "metadata": {}}, ["DLLL"]]
    text = "noise\n" + "".join("DLLL %s\n" % json.dumps(line) for line in lines) + 'DLLL {"type": "LOG", "st'
    (tmp_path / "m").write_text(text)
    assert curves.read_curves(str(tmp_path / "m")) == {
        "train.loss": ([(0.5, 4.0)], []), "train.lr": ([(0.5, 0.5)], []), "val.loss": ([(1.5, 2.0)], []),
        "val.top1": ([], [(0, 70.0)])}


def test_curves_of_a_resumed_run(tmp_path):
    """Where a resumed run repeats steps, its records take the place of the interrupted run's: time never goes back."""
    write_run(tmp_path / "m", epochs=2, scale=5.0)
    write_run(tmp_path / "m", epochs=3, first=1, append=True)
    found = curves.read_curves(str(tmp_path / "m"))
    assert found["train.loss"][1] == [(1, 45), (2, 8), (3, 7)]


def test_a_figure_of_several_runs(tmp_path):
    """Each run is in the legend under the part of its path that differs, and a panel without records says so."""
    paths = [str(write_run(tmp_path / name)) for name in ("a", "b")]
    names = _runs.names_of([path[:-1] + name for path, name in zip(paths, ("slow/0/metrics.jsonl", "fast/0/metrics.jsonl"))])
    assert names == ["slow", "fast"]
    runs = {name: curves.read_curves(path) for name, path in zip(names, paths)}
    del runs["slow"]["lr"], runs["fast"]["lr"]
    loss, top1, rate, speed = curves.draw(runs).axes[:4]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["slow train", "slow val", "fast train", "fast val"]
    assert [text.get_text() for text in speed.get_legend().get_texts()] == ["slow", "fast"]
    assert [text.get_text() for text in rate.texts] == ["not recorded"]
    assert list(top1.lines[0].get_xdata()) == [1, 2, 3]


def test_the_picture_is_written_beside_the_records(tmp_path):
    """By default curves.png in the folder of the first file, nothing else; --out names another, in the suffix' format."""
    first, second = write_run(tmp_path / "a b.jsonl"), write_run(tmp_path / "b.jsonl")
    done = run_tool("curves", first)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(str(tmp_path))) == ["a b.jsonl", "b.jsonl", "curves.png"]
    assert Image.open(str(tmp_path / "curves.png")).size[0] > 1000
    assert run_tool("curves", first, second, "--out", tmp_path / "x.svg").returncode == 0
    assert b"<svg" in (tmp_path / "x.svg").read_bytes()


def test_records_that_cannot_be_drawn(tmp_path):
    """Missing and empty files, no records, wrong suffix, no place for the picture: one line, status 2; an old picture stays."""
    (tmp_path / "empty").write_text("")
    (tmp_path / "text").write_text("loss 3\n")
    (tmp_path / "curves.png").write_text("old")
    good = write_run(tmp_path / "good")
    for name in ("none", "text", "."):
        with pytest.raises(UserError, match=str(tmp_path / name)):
            curves.read_curves(str(tmp_path / name))
    assert_bad_input(run_tool("curves", good, tmp_path / "empty"), tmp_path / "empty", "no DLLogger record")
    assert_bad_input(run_tool("curves", good, "--out", "x.exe"), "x.exe", ".png")
    assert_bad_input(run_tool("curves", good, "--out", tmp_path / "no" / "x.png"), tmp_path / "no")
    assert (tmp_path / "curves.png").read_text() == "old" and len(os.listdir(str(tmp_path))) == 4

"""tools/runs.py: what a run has left becomes curves, a page, rows of a table and TensorBoard's events."""
import argparse
import contextlib
import csv
import fcntl
import glob
import html
import io
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image

from common import cli, data, distributed, records, report, transforms
from common.cli import UserError
from common.predictions import Predictions
from conftest import MODELS, ROOT, assert_bad_input, block, environment, run_script, script_command, write_images

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
sys.path.append(os.path.join(ROOT, "tools"))
from runs import _runs, curves, page  # noqa: E402
import verbs  # noqa: E402

Done = namedtuple("Done", "returncode stdout stderr")
SMALL = ("--arch=resnet18", "--image_size=32", "--batch_size=8", "--workers=0", "--opt_level=O0", "--device=cpu")


def run_tool(verb, *options):
    """Return what `tools/runs.py VERB` ends with, as a finished process has it (ci/test_tools.py runs the program itself)."""
    stdout, stderr, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            verbs.run("runs", "", [verb] + [str(option) for option in options])
        except (UserError, SystemExit) as error:
            status = cli.EXIT_BAD_INPUT if isinstance(error, UserError) else error.code
            stderr.write(str(error) if isinstance(error, UserError) else "")
    return Done(status, stdout.getvalue(), stderr.getvalue())


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
    os.mkfifo(str(tmp_path / "pipe"))
    assert_bad_input(run_tool("curves", tmp_path / "pipe"), "pipe cannot be read: it is no file")
    os.remove(str(tmp_path / "pipe"))
    assert_bad_input(run_tool("curves", good, "--out", "x.exe"), "x.exe", ".png")
    assert_bad_input(run_tool("curves", good, "--out", tmp_path / "no" / "x.png"), tmp_path / "no")
    assert (tmp_path / "curves.png").read_text() == "old" and len(os.listdir(str(tmp_path))) == 4


# --- a run that was made for the page ---------------------------------------------------------------------------------

def on_terminal(command):
    """Return the status of a command, and what it shows on a terminal of 120 columns."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=its, stderr=its, env=environment())
    os.close(its)
    screen = b""
    with contextlib.suppress(OSError), open(ours, "rb", buffering=0) as stream:  # the other end is closed
        while True:
            screen += stream.read(4096)
    return process.wait(), screen.decode(errors="replace")


@pytest.fixture(scope="module")
def watched(tiny_imagenet, tmp_path_factory):
    """The output path of a small training with --predictions and --tensorboard, and what it has shown on a terminal."""
    out = tmp_path_factory.mktemp("runs") / "a $b" / "one"
    status, screen = on_terminal(script_command(
        "ResNet50/test/train_full_1p.sh", "--data_path=%s" % tiny_imagenet, "--output_path=%s" % out, *SMALL, "--train_epochs=2",
        "--max_steps=3", "--learning_rate=1e-6", "--seed=5", "--predictions", "--tensorboard"))
    assert status == 0, screen
    return out, screen


@pytest.fixture(scope="module")
def trained(watched):
    return watched[0]


@pytest.fixture(scope="module")
def evaluated(trained, tiny_imagenet):
    """The output path of an evaluation of its weights, on two ranks."""
    out = trained.parent / "two"
    block(run_script("ResNet50/test/train_eval_8p.sh", "--data_path=%s" % tiny_imagenet, "--output_path=%s" % out, *SMALL,
                     "--pth_path=%s" % (trained / "checkpoint.pth.tar"), "--device_list=0,1", "--predictions"))
    return out


def predictions(out):
    with np.load(str(out / "predictions.npz"), allow_pickle=False) as found:
        return dict(found)


def test_progress_on_a_terminal(watched):
    """A terminal shows one line that is updated in place, and no lines of steps; the log has these, and nothing of that line; other lines
    and the result block are on both."""
    out, screen = watched
    log = (out / "train_0.log").read_bytes().decode()
    assert re.findall(r"Epoch: \[(\d)\]\[0/3\]", log) == ["0", "1"] and "Test: [0/" in log and log.count("waited for data") == 2
    assert not re.search("[\r\x1b\x1e]|it/s|step/s", log)
    assert "Epoch: [" not in screen and "Test: [" not in screen and "\x1e" not in screen
    # A line of a step is left out where the last one was shown a moment ago; that of an evaluation's batch never is.
    lines = re.findall(r"\revaluation (\d)/3: +(\d+)%[^\r]* (\d)/6 \[[^\]\r]*, loss \d+\.\d+", screen)
    assert [(batch, steps) for batch, _, steps in lines] == [(batch, steps) for steps in "36" for batch in "123"], screen
    assert screen.count("waited for data") == 2 and "\r\x1b[K------------------ Final result" in screen


def test_predictions_are_each_picture_once(trained, evaluated, tiny_imagenet):
    """One rank and two write the same of every validation picture, in the data set's order, and it gives the run's top-1 and loss."""
    one, two = predictions(trained), predictions(evaluated)
    assert one["index"].tolist() == list(range(20)) and one["target"].tolist() == [number // 5 for number in range(20)]
    assert one["names"].tolist() == ["n%08d" % number for number in range(4)] and str(one["root"]) == str(tiny_imagenet / "val")
    assert (np.diff(one["shares"]) <= 0).all() and (one["shares"].sum(1) < 1.0001).all()
    for name in ("index", "target", "names", "root"):
        assert (one[name] == two[name]).all()
    assert np.allclose(one["loss"], two["loss"], rtol=1e-3) and np.allclose(one["shares"], two["shares"], atol=1e-4)
    report = json.loads((trained / "report.json").read_text())
    assert 100 * np.mean(one["classes"][:, 0] == one["target"]) == pytest.approx(report["summary"]["val.top1"])
    assert {"predictions.npz", "report.json"} <= set((trained / ".run.files").read_text().split())


def test_predictions_pass_over_what_cannot_be_read(tmp_path):
    """With --skip_bad_images the others keep their places in the data set; of fewer than five classes the rest is empty."""
    write_images(tmp_path / "val", classes=2, per_class=3)
    broken = sorted((tmp_path / "val" / "n00000000").iterdir())[1]
    broken.write_bytes(b"no picture")
    rank = distributed.Rank(0, 1, 0, torch.device("cpu"))
    dataset = data.ImageFolder(str(tmp_path / "val"), transforms.eval_transform(32, 32), 2)
    batches = data.device_batches(dataset, data.EvalBatches(6, 2, rank), 0, rank, skip_bad_images=True)
    said = Predictions()
    said.path = str(tmp_path / "predictions.npz")
    for _, target in batches:
        said.add(torch.stack([torch.zeros(len(target)), target.float() * 9 - 4], 1), target)
    said.write(batches, rank)
    found = predictions(tmp_path)
    assert found["index"].tolist() == [0, 2, 3, 4, 5] and found["target"].tolist() == [0, 0, 1, 1, 1]
    assert found["classes"][:, 0].tolist() == [0, 0, 1, 1, 1] and (found["shares"][:, 2:] == 0).all()
    assert sorted(os.listdir(str(tmp_path))) == ["predictions.npz", "val"]


def test_predictions_without_records(tmp_path, monkeypatch):
    """Defect: an evaluation without records wrote predictions.npz into the current folder, over whatever lay there."""
    monkeypatch.chdir(tmp_path)
    rank, asked = distributed.Rank(0, 1, 0, torch.device("cpu")), argparse.Namespace(predictions=True)
    with pytest.raises(cli.UserError, match="--predictions writes beside the records"):
        records.start("", rank, asked, argparse.Namespace(opt_level="O0"))


# --- page -------------------------------------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# What the test puts into the page: errors are collected from the start, the rest is looked at when all is loaded.
ERRORS = "<script>var errors = []; onerror = m => errors.push(m); console.error = m => errors.push(m)</script>"
PROBE = """<script>addEventListener("load", () => {
  const table = document.querySelector("table.sortable"), column = () => [...table.tBodies[0].rows].map(row => row.cells[%d].textContent);
  const button = table.querySelectorAll("th button")[%d], orders = [column()];
  for (let i = 0; i < 2; i++) { button.click(); orders.push(column()); }
  const seen = {errors: errors, orders: orders, images: [...document.images].map(image => image.naturalWidth),
                svg: document.querySelectorAll("svg").length, tables: document.querySelectorAll("table.sortable").length,
                wide: document.documentElement.scrollWidth - innerWidth};
  document.body.innerHTML = "<pre id=seen></pre>";
  document.getElementById("seen").textContent = JSON.stringify(seen);
});</script>"""


def seen(page, folder, column, width=1200):
    """Return what headless Chromium sees of a page: errors, a column of its first table before and after two clicks on its head,
    widths of the images, number of curves, by how much it is wider than the window."""
    text = page.read_text(encoding="utf-8").replace("<head>", "<head>" + ERRORS)
    probed = folder / "probed.html"
    probed.write_text(text.replace("</body>", PROBE % (column, column) + "</body>"), encoding="utf-8")
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--user-data-dir=%s" % (folder / "profile"),
               "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=%d,900" % width, "--enable-logging=stderr", "--dump-dom",
               probed.as_uri()]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=300)
    assert "CONSOLE" not in done.stderr, done.stderr
    return json.loads(html.unescape(re.search('<pre id="seen">(.*?)</pre>', done.stdout, re.S).group(1)))


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_page_in_a_browser(trained, tmp_path):
    """Nothing is complained of, the five curves and all pictures are there without a network, the table of classes sorts, by numbers,
    up and down, and a phone need not scroll sideways."""
    done = run_tool("page", trained, "--out", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    found = predictions(trained)
    wrong = int((found["classes"][:, 0] != found["target"]).sum())
    desk = seen(tmp_path / "page.html", tmp_path, column=2)
    assert desk["errors"] == [] and desk["svg"] == 5 and desk["tables"] == 2
    assert len(desk["images"]) == min(20, wrong) and min(desk["images"]) > 50
    right = [float(text) for text in desk["orders"][0]]
    assert [[float(text) for text in order] for order in desk["orders"][1:]] == [sorted(right), sorted(right, reverse=True)]
    assert seen(tmp_path / "page.html", tmp_path, column=2, width=500)["wide"] <= 0


def test_a_page_says_what_ran(trained, evaluated, tmp_path):
    """Command, commit, device, versions and verdict; of several runs a comparison. Nothing in it is fetched, and what comes from
    outside is escaped."""
    out = tmp_path / "<i>.html"
    assert run_tool("page", trained, evaluated, "--out", out).returncode == 0
    text = html.unescape(out.read_text(encoding="utf-8"))
    assert "python3 -u main.py" in text and "not comparable: arch is resnet18, the reference's resnet50" in text
    assert "two: worst classes" in text and torch.__version__ in text and "n00000003" in text
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]', text) and "@import" not in text
    report = json.loads((trained / "report.json").read_text())
    assert (report["case"]["commit"] or "Case") in text and report["reference"]["verdict"].startswith("not comparable")
    assert not glob.glob(str(tmp_path / "*.part"))
    assert run_tool("page", evaluated).returncode == 0
    assert "page.html" in (evaluated / ".run.files").read_text().splitlines()


def test_pictures_that_are_gone(trained, tmp_path):
    """A page is written without the pictures where the data set is not there any more, and says so; so it is of a run that was cut off."""
    shutil.copy(str(trained / "metrics.jsonl"), str(tmp_path))
    found = dict(predictions(trained), root=str(tmp_path / "no <such>"))
    np.savez(str(tmp_path / "predictions.npz"), **found)
    assert run_tool("page", tmp_path).returncode == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Not shown: " in text and "no &lt;such&gt;" in text and "<such>" not in text and "<img" not in text


def test_what_is_no_run(tmp_path):
    """No run, a damaged report or predictions.npz, no place for the page, nothing published: one line, status 2, and no page."""
    write_run(tmp_path / "metrics.jsonl")
    assert_bad_input(run_tool("page", tmp_path / "none"), "none", "metrics.jsonl")
    assert_bad_input(run_tool("page", tmp_path, "--out", tmp_path / "no" / "page.html"), "no/page.html")
    assert_bad_input(run_tool("page", tmp_path, "--reference"), "nothing is published")
    (tmp_path / "predictions.npz").write_text("no archive")
    assert_bad_input(run_tool("page", tmp_path), "predictions.npz")
    (tmp_path / "report.json").write_text("[1]")
    assert_bad_input(run_tool("table", tmp_path), "report.json")
    assert sorted(os.listdir(str(tmp_path))) == ["metrics.jsonl", "predictions.npz", "report.json"]


def made_up(name, ranks=1, rate=100.0, device="npu", network="GENET", level="O2"):
    parameters = {"world_size": ranks, "device_type": device, "opt_level_run": level}
    return _runs.Run(name, ".", [], parameters, {"train.total_ips": rate}, {"case": {"network": network}})


def test_whom_the_others_waited_for():
    """Of each rank that was the slowest: how often, by how much, and what of it was waiting for data; the most frequent one first."""
    def step(rank, own, waited):
        return {"type": "LOG", "step": [0, 1], "data": {"train.slowest_rank": rank, "train.slowest_host": "h%d" % rank, "train.median_time": 1.0,
                                                        "train.slowest_time": own, "train.slowest_data_time": waited}}
    run = made_up("two", 2)._replace(records=[step(0, 1.1, 0.0), step(1, 2.0, 1.0), step(1, 4.0, 2.0), {"data": {"train.loss": 1.0}}, {}])
    assert [[shown for shown, _ in line] for line in page.waited_for(run)] == [
        ["1", "h1", "66.7", "200.0", "50.0"], ["0", "h0", "33.3", "10.0", "0.0"]]
    assert page.waited_for(made_up("one")) == []


def test_linearity():
    """Images/s of N ranks over N times those of one rank of the same network, kind of device and precision; none without such a run."""
    runs = [made_up("one"), made_up("eight", 8, 600.0), made_up("gpu", 8, 600.0, device="cuda"), made_up("other", 2, 50.0, level="O0"),
            made_up("1p", 1, 50.0, network="ResNet50_for_PyTorch"), made_up("8p", 8, 320.0, network="ResNet50_ID0095_for_PyTorch")]
    assert [page.linearity(run, runs) for run in runs] == [1.0, 0.75, None, None, 1.0, 0.8]


# --- table ------------------------------------------------------------------------------------------------------------

def full_run(**changes):
    """Return a report.json of ResNet50's full training on eight NPUs, with `changes` of its parameters and its summary."""
    parameters = {"arch": "resnet50", "image_size": 224, "train_images": 1281167, "max_steps": None, "device_type": "npu",
                  "opt_level_run": "O2", "torch": "2.1.0"}
    measured = {"val.top1": 76.5, "epochs": 90, "train.total_ips": 12000.0}
    for name, value in changes.items():
        (parameters if name in parameters else measured)[name.replace("val_", "val.")] = value
    case = {"network": "ResNet50_ID0095_for_PyTorch", "name": "ResNet50_ID0095_for_PyTorch_bs4096_8p_acc", "kind": "train", "ranks": 8}
    return {"case": case, "parameters": parameters, "summary": measured}


@pytest.mark.parametrize("changes, verdict", [
    ({}, "within the band"), ({"val_top1": 76.0}, "below the band"), ({"val_top1": 78.0}, "above the band"),
    ({"val_top1": None}, "not measured"), ({"epochs": 1}, "not comparable: epochs is 1, the reference's 90"),
    ({"train_images": 1000}, "not comparable: train_images is 1000, the reference's 1281167"),
    ({"max_steps": 9}, "not comparable: max_steps is 9, the reference's not given")])
def test_verdict(changes, verdict):
    """A full run's accuracy is compared with the band; one that trained otherwise is not, and it says why."""
    found = report.compared(full_run(**changes))
    assert found["verdict"] == verdict and found["published"]["images_per_second"] == 11898.83


def test_verdict_of_settings():
    """What a model with a configuration was given as KEY VALUE counts; what nothing is published on has no reference."""
    run = {"case": {"network": "EfficientNet-B3", "kind": "train", "ranks": 2}, "summary": {"epochs": 100, "val.top1": 77.5},
           "parameters": {"train_images": 1281167, "opts": ["TRAIN.IM_SIZE", "32"]}}
    found = report.compared(run)
    assert found["verdict"] == "not comparable: TRAIN.IM_SIZE is 32, the reference's not given" and found["published"] is None
    run["parameters"]["opts"] = ["OUT_DIR", "x"]
    assert report.compared(run)["verdict"] == "within the band"
    run["case"]["kind"] = "eval"
    assert report.compared(run) is None


def test_references():
    """Bands hold their figure and say why they are so wide; published rows are those of the models' pages."""
    with open(os.path.join(ROOT, "common", "references.json")) as stream:
        entries = json.load(stream)
    pages = "".join(open(os.path.join(ROOT, model, "README.md"), encoding="utf-8").read() for model in MODELS)
    assert len(entries) > len(MODELS)
    for entry in entries:
        assert entry["band"][0] < entry["top1"] < entry["band"][1] and len(entry["reason"]) > 40
        for row in entry["published"]:
            assert row["source"] and all(str(row[name]) in pages for name in ("top1", "images_per_second") if row[name])


def test_table(tmp_path):
    """Markdown, CSV and JSON have the row, the published one and the verdict; what was not measured is -, empty and null."""
    (tmp_path / "report.json").write_text(json.dumps(full_run(**{"train.total_ips": None})))
    texts = {form: run_tool("table", tmp_path / "report.json", "--format=" + form).stdout for form in ("markdown", "csv", "json")}
    line, = json.loads(texts["json"])
    assert line["Acc@1"] == 76.5 and line["FPS"] is None and line["published Acc@1"] == 76.702 and line["verdict"] == "within the band"
    assert list(line)[:6] == ["NAME", "Acc@1", "FPS", "Epochs", "AMP_Type", "Torch_Version"] and line["Epochs"] == 90
    assert next(csv.DictReader(texts["csv"].splitlines())) == {name: "" if value is None else str(value) for name, value in line.items()}
    head, rule, row = texts["markdown"].splitlines()
    assert row.startswith("| ResNet50_ID0095_for_PyTorch_bs4096_8p_acc | 76.500 | - | 90 | O2 | 2.1.0 | 76.702 | 11898.830 |")
    assert head.count("|") == rule.count("|") == row.count("|") == 14


# --- TensorBoard ------------------------------------------------------------------------------------------------------

def scalars(folder):
    """Return {name: [(step, value)]} of the events in a folder."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {name: [(event.step, event.value) for event in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_events_of_an_old_run(trained, tmp_path):
    """The events that are made from the records are those of --tensorboard: the same names, steps and values; never twice."""
    done = run_tool("tensorboard", trained, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    live = scalars(trained / "tensorboard")
    assert scalars(tmp_path) == live and {"train.loss", "val.top1", "lr"} <= set(live)
    assert [step for step, _ in live["val.top1"]] == [2, 5], "the last step of each epoch of three"
    assert_bad_input(run_tool("tensorboard", trained), "events already")
    assert any(name.startswith("tensorboard/") for name in (trained / ".run.files").read_text().splitlines())


def test_events_of_a_resumed_run(tmp_path):
    """What the interrupted run wrote after its checkpoint is not shown; what it wrote before, the last epoch's result too, is."""
    pytest.importorskip("tensorboard")
    place = namedtuple("Place", "steps_in_epoch resumed epoch step")
    events = records.Events(str(tmp_path), place(4, False, 0, 0))
    for step in ((0, 0), (0, 2), (0,), (1, 0), (1, 2), ()):
        events.write(step, {"x": 1.0, "y": None})
    events = records.Events(str(tmp_path), place(4, True, 1, 0))
    for step in ((1, 0), (1,)):
        events.write(step, {"x": 2.0})
    assert scalars(tmp_path) == {"x": [(0, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (7, 2.0)]}

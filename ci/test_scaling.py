"""tools/benchmark.py scaling: its model of steps and all-reduces, what it reads from a run, and what it says."""
import os
import sys

import pytest
import torch
import torch.distributed as dist

from common import checkpoint, cli, records
from conftest import ROOT

sys.path.append(os.path.join(ROOT, "tools"))
import verbs  # noqa: E402
from benchmarks import _alpha_beta, _pinned, scaling  # noqa: E402
from test_documents import commands_in, read  # noqa: E402

# 8 devices a machine; 10 GB/s between machines, 100 inside of one; 20 and 2 microseconds a hop.
NETWORK = _alpha_beta.Network(8, 10e9, 100e9, 20e-6, 2e-6)
WORK = _alpha_beta.Work(0.004, 0.0001, [1e6, 25e6, 25e6], True)


def said(capsys, *words):
    """Return the lines that the verb prints."""
    verbs.run("benchmarks", "", ["scaling"] + list(words))
    return capsys.readouterr().out.splitlines()


def cells(lines):
    """Return the rows of the Markdown table among the lines, each a dictionary."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [dict(zip(rows[0], row)) for row in rows[2:]]


# --- the model --------------------------------------------------------------------------------------------------------

def test_buckets_are_pytorchs():
    """The gradients are divided as DistributedDataParallel divides them, for ResNet50-like and for odd sizes."""
    generator = torch.Generator().manual_seed(1)
    for count, largest in ((160, 600000), (3, 10), (40, 9000000)):
        shapes = [int(size) for size in torch.randint(1, largest, (count,), generator=generator)]
        tensors = [torch.empty(size) for size in reversed(shapes)]
        found = dist._compute_bucket_assignment_by_size(tensors, [2 ** 20, 25 * 2 ** 20], [False] * count)
        found = found[0] if isinstance(found, tuple) else found  # newer ones also tell the limits
        wanted = [4 * sum(len(tensors[number]) for number in bucket) for bucket in found]
        assert _alpha_beta.buckets_of([4 * size for size in shapes]) == wanted


def test_time_of_an_all_reduce():
    """By hand: one device, two in a machine, a ring over machines for much data, trees over many machines for little."""
    assert _alpha_beta.all_reduce(1e9, 1, NETWORK) == (0.0, "ring")
    assert _alpha_beta.all_reduce(1e9, 2, NETWORK)[0] == pytest.approx(1e9 / 100e9 + 2 * 2e-6)
    seconds, way = _alpha_beta.all_reduce(1e9, 16, NETWORK)
    assert way == "ring" and seconds == pytest.approx(2 * 15 / 16 * (1e9 / 10e9 + 2 * 20e-6 + 14 * 2e-6))
    seconds, way = _alpha_beta.all_reduce(1000, 4096, NETWORK)
    assert way == "tree" and seconds == pytest.approx(2 * 1000 / 10e9 + 2 * (9 * 20e-6 + 7 * 2e-6))


def test_what_backward_hides():
    """A long backward hides all but the last bucket; a short one, or none, as much as it can."""
    times = [_alpha_beta.all_reduce(bucket, 64, NETWORK)[0] for bucket in WORK.buckets]
    assert _alpha_beta.waiting(10.0, 64, WORK, NETWORK) == pytest.approx(times[-1])
    assert _alpha_beta.waiting(0.0, 64, WORK, NETWORK) == pytest.approx(sum(times))
    assert _alpha_beta.waiting(10.0, 64, WORK._replace(overlaps=False), NETWORK) == pytest.approx(sum(times))
    assert _alpha_beta.waiting(10.0, 1, WORK, NETWORK) == 0.0


@pytest.mark.parametrize("overlaps", [True, False])
def test_steps_give_back_what_they_were_made_of(overlaps):
    """Points that the model has made, on unlike numbers of devices, give the work that it made them of."""
    work = WORK._replace(overlaps=overlaps)
    points = [(devices, batch, _alpha_beta.step(batch, devices, work, NETWORK)[0])
              for devices, batch in ((8, 256), (64, 300), (128, 512), (1, 32))]
    found = _alpha_beta.fit(points, WORK._replace(fixed=0, per_image=0, overlaps=overlaps), NETWORK)
    assert (found.fixed, found.per_image) == (pytest.approx(work.fixed), pytest.approx(work.per_image))
    one = _alpha_beta.fit(points[3:], work, NETWORK)
    assert (one.fixed, one.per_image) == (0.0, pytest.approx(points[3][2] / 32))


def test_a_line_that_is_none_of_compute():
    """Where larger batches seem to take less time, or a device less than none, the line goes through nothing for no image."""
    for points in ([(1, 8, 0.2), (1, 16, 0.1)], [(1, 8, 0.01), (1, 16, 0.1)], [(1, 8, 0.1), (1, 8, 0.12)]):
        found = _alpha_beta.fit(points, WORK, NETWORK)
        assert found.fixed == pytest.approx(0.0) and found.per_image > 0


def test_batches_at_which_something_binds():
    """Below the one batch a step waits for more than a twentieth of its time; from the other on, the devices ask for more than there is."""
    least = _alpha_beta.least_batch(64, WORK, NETWORK)
    for batch, is_bound in ((least - 1, True), (least, False)):
        seconds, waits = _alpha_beta.step(batch, 64, WORK, NETWORK)
        assert (waits > 0.05 * seconds) == is_bound
    starving = _alpha_beta.starving_batch(64, WORK, NETWORK, 40000)
    for batch, starves in ((starving - 1, False), (starving, True)):
        assert (8 * batch / _alpha_beta.step(batch, 64, WORK, NETWORK)[0] > 40000) == starves
    assert _alpha_beta.starving_batch(64, WORK, NETWORK, 10 ** 6) is None


# --- what it says -----------------------------------------------------------------------------------------------------

def write_run(path, level="O0", steps=6, wait=0.0, step_images=32, opts=()):
    """Write what a run of two ranks leaves: a network of 1010 parameters, steps of a second and of their wait for data."""
    state = {"module.weight": torch.zeros(10, 100), "module.bias": torch.zeros(10), "module.running_mean": torch.zeros(7)}
    checkpoint.save({"state_dict": state, "step_images": step_images, "global_batch": 32, "epoch": 1}, str(path / "checkpoint.pth.tar"))
    log = records.JsonLines(str(path / "metrics.jsonl"), False)
    log.log("PARAMETER", {"world_size": 2, "lr": 0.1, "opt_level_run": level, "opts": list(opts)})
    for step in range(steps):
        log.log((0, step), {"train.step_time": 9.0 if step < 2 else 1.0 + wait, "train.data_time": wait})
    log.flush()
    return str(path)


def test_a_run_is_read(tmp_path):
    """Ranks, images, steady steps without their wait for data, sizes of gradients without statistics, and the rate by any name."""
    one = scaling.Measured(write_run(tmp_path))
    assert (one.point, one.sizes, one.rate, one.global_batch, one.fed) == ((2, 16, 1.0), [4000, 40], 0.1, 32, None)
    starved = scaling.Measured(write_run(tmp_path, "O2", wait=3.0, opts=["TRAIN.LR", "0.4"]))
    assert (starved.point, starved.sizes, starved.rate, starved.fed) == ((2, 16, 1.0), [2000, 20], 0.4, 8.0)
    accumulated = scaling.Measured(write_run(tmp_path, step_images=8))
    assert accumulated.point == (2, 16, 4.0)


def test_the_table_of_a_run(tmp_path, capsys):
    """Images per second, epoch time, the rate that goes with the batch; what binds; the advice where the batch is too large for it."""
    path = write_run(tmp_path)
    lines = said(capsys, path, "--devices=1,1024", "--images=32000", "--markdown")
    one, many = cells(lines)
    assert (one["images/s"], one["efficiency %"], one["epoch s"], one["bound by"]) == ("16", "100.0", "2000.0", "devices")
    assert (many["global batch"], many["learning rate by the linear rule"]) == ("16384", "51.2")
    assert "above 8192 images" in lines[-1]
    held = cells(said(capsys, path, "--devices=16", "--input=64", "--markdown"))[0]
    assert (held["images/s"], held["bound by"], held["efficiency %"]) == ("128", "input", "50.0")
    slow = cells(said(capsys, path, "--devices=1024", "--bandwidth=50", "--latency=20000", "--markdown"))[0]
    assert slow["bound by"] == "communication" and float(slow["efficiency %"]) < 95


def test_published_figures(capsys):
    """docs/benchmarks.md: its commands foretell what its table says, and that is as near to what was published as it says."""
    page = read("docs/benchmarks.md")
    found = [line.split()[3:] for line in commands_in(page) if " scaling " in line and "--gradient" in line]
    rates = [float(cells(said(capsys, "--markdown", *words))[0]["images/s"]) for words in found]
    assert all("{:,.0f} images/s".format(rate) in page for rate in rates)
    in_minutes = 70 * scaling.IMAGENET / rates[0] / 60, 90 * scaling.IMAGENET / rates[1] / 60
    assert ["%.2f" % (wanted / found) for found, wanted in zip(in_minutes + (11899,), (0.22, 60, rates[2]))] == ["0.92", "1.08", "0.85"]


@pytest.mark.parametrize("words, line", [
    ([], "a RUN is wanted"), (["nosuch"], "nosuch is neither the output path of a training"), (["8x400=57400"], "give --gradient"),
    (["8x0=57400", "--gradient=1"], "above 0"), (["8x1=57400", "--gradient=1000"], "would take .* more than the measured step's"),
    (["RUN"], "of no steps but the first")])
def test_bad_input(tmp_path, words, line):
    """One line says what is wrong, and what would be right."""
    words = [write_run(tmp_path, steps=1) if word == "RUN" else word for word in words]
    with pytest.raises(cli.UserError, match=line):
        verbs.run("benchmarks", "", ["scaling"] + words)


@pytest.mark.parametrize("flag", ["--bandwidth=0", "--latency=x", "--input=inf", "--devices=8,0", "--devices="])
def test_bad_numbers(flag, capsys):
    """Numbers that a network or a machine cannot have are refused, with the flag."""
    with pytest.raises((SystemExit, cli.UserError)):
        verbs.run("benchmarks", "", ["scaling", "8x400=57400", flag])


# --- against this machine ---------------------------------------------------------------------------------------------

def test_two_ranks_are_compared_with_what_one_foretells():
    """Rounds that behave as the model says are told as foretold, by either clock; the CPU's seconds are not those of the wall."""
    def pair(wall):
        return wall, wall / 2
    hop, bandwidth, sizes = 0.0005, 1e9, [4 * 2 ** 20] * 3
    small, large = [2 * hop + size / bandwidth for size in (0, _pinned.LARGE - _pinned.SMALL)]
    waits = 4 * hop + sum(sizes) / bandwidth
    rounds = [[pair(alone), pair(alone + waits), pair(small), pair(large)] for alone in (0.1, 0.2, 0.3)]
    lines = _pinned.report("GENet", sizes, rounds)
    assert len(lines) == 3 and "12.6 MB in 2 buckets" in lines[0]
    assert all("1.000 (1.000 to 1.000)" in line for line in lines[1:])
    assert "500 microseconds a hop, 1.00 GB/s" in lines[1] and "250 microseconds a hop, 2.00 GB/s" in lines[2]


@pytest.mark.slow
def test_pinned_ranks(capsys):
    """The command of docs/benchmarks.md, for a round: three processes train GENet, and their seconds are there."""
    lines = said(capsys, "--measure=GENet", "--rounds=1")
    assert len(lines) == 3 and lines[0].startswith("GENet, 8 images a rank, 1 rounds") and "foretold / measured" in lines[2]

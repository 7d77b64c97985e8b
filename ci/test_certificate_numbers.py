"""The certificate's numbers: each kind of defect is caught, and the layer or the value that it is in is named."""
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
import torch

from conftest import CI, ROOT, assert_bad_input, environment, running_in, wait_until

sys.path.insert(0, os.path.join(ROOT, "tools"))
from certificate import numbers  # noqa: E402
from comparison import _golden, _layers, _proof, _steps  # noqa: E402

GENET, LEVELS = "GENet", {level[0]: level for level in _proof.LEVELS}
_made = {}  # of the worker: the float64 references


@pytest.fixture(scope="module")
def worker():
    """A process for the models' programs: they set what belongs to a process. (It keeps the references from test to test.)"""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield lambda function, *arguments: pool.apply(function, arguments)


# --- what the worker does ---------------------------------------------------------------------------------------------

def prove(model, level, defect=None):
    """Return [(what, passed, note)] of one step of the first recipe on the CPU, with a defect."""
    torch.set_num_threads(1)
    recipe = _golden.recipes(model)[0]
    references = _made.setdefault(model, _proof.References(recipe, steps=1))
    findings, _ = _proof.of_device(recipe, references, "cpu", *LEVELS[level], mutate=defect and DEFECTS[defect])
    return [(finding.what, finding.passed, finding.note) for finding in findings]


def scaled_convolution(model, optimizer, amp):
    with torch.no_grad():
        model.block2.layer[0].conv2.weight.mul_(1.001)


def other_momentum(model, optimizer, amp):
    model.block3.layer[1].bn2.momentum = 0.11


def no_masters(model, optimizer, amp):
    halves = dict((master, parameter) for parameter, master in amp._masters.values())
    for group in optimizer.param_groups:
        group["params"] = [halves.get(parameter, parameter) for parameter in group["params"]]
    amp._masters.clear()


DEFECTS = {"scaled convolution": scaled_convolution, "other momentum": other_momentum, "no masters": no_masters}


def prove_upstream(model, defect=None):
    """Return [(what, passed)] of upstream's values with a defect that the whole code has, the CPU's float64 too."""
    torch.set_num_threads(1)
    recipe = _golden.recipes(model)[0]
    with defect and COMMON_DEFECTS[defect]() or contextlib.suppress():
        findings = list(_proof.of_schedules(model)) + list(_proof.of_upstream(recipe, _proof.References(recipe, steps=1)))
    return [(finding.what, finding.passed) for finding in findings]


@contextlib.contextmanager
def late_schedule():
    """ResNet50's rate of an epoch is the next one's."""
    from weights import _networks
    _networks._reach("ResNet50")
    import recipe
    original = recipe.learning_rate
    recipe.learning_rate = lambda epoch, *others: original(epoch + 1, *others)
    yield
    recipe.learning_rate = original


@contextlib.contextmanager
def scaled_convolutions():
    """Every convolution gives 1.001 of its result."""
    original = torch.nn.Conv2d.forward
    torch.nn.Conv2d.forward = lambda layer, images: 1.001 * original(layer, images)
    yield
    torch.nn.Conv2d.forward = original


COMMON_DEFECTS = {"late schedule": late_schedule, "scaled convolutions": scaled_convolutions}


# --- defects ----------------------------------------------------------------------------------------------------------

def failed(findings):
    return [finding[0] for finding in findings if finding[1] is False]


@pytest.mark.parametrize("level", ["O0", "O2"])
def test_a_sound_device_passes(worker, level):
    """Nothing is reported where nothing is wrong: the mutations below are what is caught."""
    findings = worker(prove, GENET, level)
    assert not failed(findings)
    assert {"%s, forward" % level, "%s, losses" % level} <= {what for what, _, _ in findings}


def test_a_scaled_convolution_is_named(worker):
    """A convolution's weights times 1.001 leave its bound, and no layer before or behind it does."""
    findings = worker(prove, GENET, "O0", "scaled convolution")
    assert "O0, forward" in failed(findings) and "O0, logits" not in failed(findings)  # those come before the defect
    note, = [note for what, _, note in findings if what == "O0, forward"]
    assert note.startswith("block2.layer.0.conv2 first leaves its bound, in step 0; 1 of ")


def test_another_momentum_is_named(worker):
    """BatchNorm's momentum of 0.11 shows in the running statistics of the layer that has it, and nowhere else."""
    findings = worker(prove, GENET, "O0", "other momentum")
    of_layers = [(what, note) for what, passed, note in findings if passed is False and "first leaves" in note]
    (what, note), = of_layers
    assert what.startswith("O0, running_") and note.startswith("block3.layer.1.bn2 first leaves its bound, in step 0; 2 of ")


def test_missing_masters_are_named(worker):
    """O2 that updates half weights is caught by what the optimizer moves, and by the updates of the layers."""
    findings = worker(prove, GENET, "O2", "no masters")
    assert "O2, what the optimizer moves" in failed(findings)
    note, = [note for what, passed, note in findings if what.startswith("O2, update of ") and passed is False]
    assert note.startswith("conv1 first leaves its bound, in step 0")


def test_an_off_by_one_in_the_schedule_is_named(worker):
    """A rate that is one epoch early is caught by the tables, and by the rate that the program trains with."""
    findings = worker(prove_upstream, "ResNet50", "late schedule")
    assert {"schedule 1p full", "schedule upstream full", "learning rate"} <= set(failed(findings))
    assert "state keys" not in failed(findings)


def test_a_defect_of_the_whole_code_is_seen_by_upstreams_values(worker):
    """What the reference does wrong as well, no comparison with it can show; the golden losses do."""
    assert not failed(worker(prove_upstream, GENET))
    assert failed(worker(prove_upstream, GENET, "scaled convolutions")) == ["1 losses in float64"]


# --- the parts --------------------------------------------------------------------------------------------------------

def test_rounding_has_the_mantissa_of_the_type():
    """`rounded` keeps what fits, loses half a unit in the last place at most, and neither overflows nor flushes."""
    values = torch.tensor([1.0, 1 + 2.0 ** -12, 3e7, -2.5], dtype=torch.float64)
    kept = _layers.rounded(values, torch.float16)
    assert float(kept[0]) == 1 and torch.isfinite(kept).all()
    assert float(((kept - values).abs() / values.abs()).max()) <= 2.0 ** -11
    assert torch.equal(_layers.rounded(values, torch.float64), values)


def test_every_recipe_is_a_program_of_the_repository():
    """Each training of the golden files that a program can repeat has one, with the rate and the losses of upstream."""
    for model in _golden.MODELS:
        for recipe in _golden.recipes(model):
            assert os.path.isfile(os.path.join(ROOT, recipe.words[0])) and len(recipe.losses) == 5 and recipe.rate > 0
            words = _steps._words(recipe, recipe.words[1:], "cpu", "O1", None, "/nowhere") if "calibrate" not in recipe.name and (
                "finetune" not in recipe.words[0]) else []
            assert not words or any("O1" in word for word in words)


def compare_devices(*options):
    return subprocess.run([sys.executable, os.path.join(ROOT, "tools", "compare_devices.py"), "--model=EfficientNet-B3"] + list(options),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, env=environment(), timeout=600)


def test_the_program_compares_and_keeps_what_it_saw(tmp_path):
    """A dump of one run is compared with another run; the picture is drawn; losses of the same step are the same."""
    dump = str(tmp_path / "there.pt")
    first = compare_devices("--devices=cpu", "--dump=" + dump, "--output-path=" + str(tmp_path))
    assert first.returncode == 0, first.stdout + first.stderr[-2000:]
    assert ", 0 outside their bound" in first.stdout and (tmp_path / "layers_EfficientNet-B3_cpu.png").exists()
    again = compare_devices("--against=" + dump, "--worst=1")
    assert again.returncode == 0, again.stdout + again.stderr[-2000:]
    assert "cpu and %s" % dump in again.stdout and again.stdout.count(", 0 outside their bound") == 2
    assert [line for line in first.stdout.splitlines() if line.startswith("losses")] == [
        line for line in again.stdout.splitlines() if line.startswith("losses")]


@pytest.mark.parametrize("options, words", [(["--recipe=nothing"], "--recipe nothing"), (["--devices=abacus"], "abacus"),
                                            (["--against=%s" % os.path.join(CI, "golden", "GENet.json")], "GENet.json"),
                                            (["--dump=/dev/null/x"], "/dev/null/x"), (["--output-path=/dev/null/x"], "/dev/null/x")])
def test_mistakes_are_one_line(options, words):
    """What cannot be compared ends with status 2 and says why in a line."""
    done = compare_devices(*options)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


def killed(task):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_a_check_that_fails():
    """A recipe's process that is killed, as by the kernel for its memory, does not hold up the certificate. Defect: it did for ever."""
    check, = numbers.in_a_process(1, killed, ("cpu", "GENet", 0))
    assert check.passed is False and check.figure == "its process was killed"


@pytest.mark.parametrize("option", ["--output_path=/dev/null/x", "--data_path=/dev/null/x"])
def test_folders_that_cannot_be(option, tmp_path):
    """One line and status 2. Defect: a traceback, and a certificate of runs that found no data."""
    done = subprocess.run([sys.executable, os.path.join(ROOT, "tools", "certify.py"), "--output-path=%s" % (tmp_path / "out"), option],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, env=environment(), timeout=100)
    assert_bad_input(done, option)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_run_outlives_the_certificate(tmp_path, sent):
    """Whatever ends the program ends it at once, and the runs of its stages with it. Defect: they went on for minutes."""
    code = ("import os, sys; sys.path[:0] = %r; import certify\n"
            "from certificate import _scripts\n"
            "def stage(case, number, seconds):\n"
            "    process = _scripts.start([sys.executable, '-c', 'import time; time.sleep(600)', case.output_path], case.output_path)\n"
            "    print('started', flush=True)\n"
            "    return _scripts.finish(process, case.output_path)\n"
            "certify.run_stage = stage\n"
            "certify.cli.run(lambda: certify.main(['--stages=2', '--output-path=%s']))"
            % ([os.path.join(ROOT, "tools"), ROOT], tmp_path / "certificate"))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment())
    assert process.stdout.readline() == b"started\n" and len(running_in(tmp_path)) == 2
    process.send_signal(sent)
    assert process.wait(timeout=60) == -sent
    wait_until(lambda: not running_in(tmp_path), timeout=60)
    process.stdout.close()


def test_recipes_are_found_in_the_background():
    """A certificate that is a background job of a script, where SIGINT is ignored, finds the recipes. Defect: an exception of bash's."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert _golden.recipes("ResNet50")
    finally:
        signal.signal(signal.SIGINT, handler)

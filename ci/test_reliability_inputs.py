"""Bad input of every kind ends in one line and status 2: numbers, checkpoints, the environment, files that mean harm."""
import argparse
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
import zipfile

import pytest
import torch

from common import checkpoint, cli, distributed, environment, flags, network, optimizer, precision, progress, ranges, records
from conftest import ROOT, environment as child_environment, load_script, script_command

VERSION = torch.__version__[:3] if torch.__version__[:3] in ("1.5", "1.8") else "2.x"


# --- numbers ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("allowed, good, bad", [
    (ranges.size, ["1", "08", "1000000000"], ["0", "-1", "1.5", "x", "", "nan", "1" + "0" * 30, "9" * 5000]),
    (ranges.count, ["0"], ["-1"]), (ranges.seed, ["0", str(2 ** 32 - 1)], [str(2 ** 32), "1" + "0" * 30]),
    (ranges.natural, ["0", "1e30", ".5"], ["-1", "nan", "inf", "1e999", "-1e-9"]), (ranges.positive, ["1e-9"], ["0", "-0.0", "inf"]),
    (ranges.fraction, ["0", "1"], ["1.01", "-0.01"]), (ranges.share, ["0", "0.99"], ["1"]), (ranges.port, ["65535"], ["0", "65536"])])
def test_a_range_takes_what_is_in_it(allowed, good, bad):
    """A number is in its range or is refused with words that state the range."""
    for text in good:
        assert allowed(text) == float(text)
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="is not %s" % allowed):
            allowed(text)


def test_a_range_is_a_test_of_values_too():
    """What yacs or a checkpoint gives may be of any type."""
    assert 1 in ranges.size and True not in ranges.size and 1.0 not in ranges.size and "1" not in ranges.natural and None not in ranges.natural
    table = {"a": ranges.size, "b": ranges.share}
    assert ranges.complaint({"a": [1, 2], "b": 0}, table, lists=True) is None and ranges.complaint({}, table) is None
    assert "a [1]" in ranges.complaint({"a": [1]}, table) and "b None" in ranges.complaint({"b": None}, table)
    assert ranges.complaint({"a": (1, 0)}, table, lists=True) == "a (1, 0): has to be an integer from 1 to 1000000000"
    assert ranges.complaint({"b": float("nan")}, table) == "b nan: has to be a number of at least 0 and below 1"


PROGRAMS = ("ResNet50/main.py", "GENet/train.py", "HRNet/tools/train.py", "HRNet/tools/valid.py",
            "FixRes/main_resnet50_scratch.py", "FixRes/main_finetune.py", "FixRes/main_evaluate_imnet.py")


@pytest.fixture(params=PROGRAMS)
def parser(request):
    """The parser of a program."""
    return load_script(request.param).parser()


def test_every_number_has_a_range(parser):
    """A flag that takes a number says from where to where, in its type, and so --help shows it. Defect: `type=float` took -1, nan and
    1e999, and a seed of 10**30 ended in a traceback."""
    for action in parser._actions:
        assert action.type not in (int, float) or action.choices, action.option_strings
        if isinstance(action.type, ranges.Range):
            assert action.help and action.type.in_help() in " ".join(parser.format_help().split()), action.option_strings
            assert action.default is None or action.default in action.type or isinstance(action.default, str), action.option_strings


@pytest.mark.parametrize("words", [["--=5"], ["--lr=-1"], ["--learning-rate=1e999"], ["--seed=1" + "0" * 30], ["--no_such=a\nb"],
                                   ["--device-list=0,1,x"], ["--workers=99999999999"], ["--profile-steps=²:³"], ["--profile-steps=5:4"],
                                   ["--master-port=0"]])
def test_a_bad_number_is_one_line(parser, words, capsys):
    """Status 2 and one line, whatever stands in the word."""
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--cfg=x"] * any("--cfg" in action.option_strings for action in parser._actions) + words)
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(lines) == 1 and lines[0].endswith("(see --help)")


def test_help_has_nothing_that_says_nothing(parser, parsed_by_shell):
    """Where the upper bound of a number is but a guard against slips, --help says `of at least`, and the error still says the bound. Where
    there is no default, or a switch is off, --help says none. Defect: `(default: None)` behind most flags."""
    words = " ".join(parser.format_help().split())
    assert not re.search(r"\(default: (None|False|)\)", words) and "(default: 0)" in words, words
    _, _, shell = parsed_by_shell([["--help"]])[0]
    for shown in (shell, parser.format_help()):
        assert "1000000000" not in shown and "an integer of at least 1" in " ".join(shown.split()), shown
    assert "an integer from 1 to 1000000000" in parsed_by_shell([["--batch_size=10000000000"]])[0][1]


def test_a_file_name_has_no_folder():
    """Security: a name that is joined to the output folder does not lead out of it."""
    assert cli.file_name("checkpoint") == "checkpoint"
    for text in ("", ".", "..", "../x", "/etc/x", "a/b", "a\nb", "a\0"):
        with pytest.raises(argparse.ArgumentTypeError):
            cli.file_name(text)


def test_numbers_in_the_environment(monkeypatch):
    """NODE_RANK=abc is bad input, not a traceback."""
    monkeypatch.delenv("NODE_RANK", raising=False)
    assert environment.number("NODE_RANK", 3) == 3
    monkeypatch.setenv("NODE_RANK", "2")
    assert environment.number("NODE_RANK", 3) == 2
    monkeypatch.setenv("NODE_RANK", "abc")
    with pytest.raises(cli.UserError, match="NODE_RANK: 'abc' is not an integer from 0"):
        environment.number("NODE_RANK", 3)


# --- machines and launchers -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("changed, complaint", [
    ({"WORLD_SIZE": "x"}, "WORLD_SIZE: 'x'"), ({"RANK": "2"}, "RANK: '2' is not an integer from 0 to 1"), ({"RANK": "-1"}, "RANK"),
    ({"LOCAL_RANK": "5"}, "LOCAL_RANK"), ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE"), ({"MASTER_ADDR": ""}, "not MASTER_ADDR"),
    ({"MASTER_ADDR": "no.such.host.invalid"}, "no.such.host.invalid of the first machine is not known"), ({"MASTER_PORT": "0"}, "MASTER_PORT"),
    ({"MASTER_ADDR": "x" * 300}, "is not known")])
def test_a_launcher_s_environment_is_checked(changed, complaint, monkeypatch):
    """What a launcher says is bad input like any other; defect: tracebacks, or minutes of silence over an unknown address."""
    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "2"}
    for name, value in dict(launched, **changed).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(cli.UserError, match=complaint):
        distributed.layout("cpu", [0, 1])


def test_an_unknown_address_is_said_at_once():
    """--addr of a machine that no name server knows: said before 1800 seconds of waiting."""
    with pytest.raises(cli.UserError, match="no.such.host.invalid of the first machine is not known"):
        distributed.layout("cpu", [0], nnodes=2, node_rank=1, addr="no.such.host.invalid", port=29500)


# --- the shell --------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def parsed_by_shell(tmp_path_factory):
    """f([words of a command, ...], script, environment): a list of (status, stderr, VARIABLE=value lines) of test.sh's parser, all in one
    Bash; what follows the parsing is left out."""
    folder = tmp_path_factory.mktemp("shell")
    (folder / "test").mkdir()
    script = folder / "test" / "case.sh"
    script.write_text("""source %s/common/test.sh
on_one_device "a case"
defaults batch_size=8 workers=1
while IFS= read -r -d '' count; do
    words=()
    for ((i = 0; i < count; i++)); do IFS= read -r -d '' word; words+=("$word"); done
    status=0
    (parse "${words[@]}"; forward --D=deterministic
     printf '%%s\\n' "$batch_size" "$image_size" "$data_path" "$device_id" "${flags[@]}") >out 2>err || status=$?
    printf '%%s\\0' "$status" "$(<err)" "$(<out)"
done
""" % shlex.quote(ROOT))

    def parse(commands, **environment):
        words = b"".join(b"%d\0" % len(command) + b"".join(os.fsencode(word) + b"\0" for word in command) for command in commands)
        done = subprocess.run(["bash", str(script)], input=words, cwd=str(folder), stdout=subprocess.PIPE, check=True,
                              env=dict(os.environ, LC_ALL="C.UTF-8", **environment))
        fields = done.stdout.split(b"\0")[:-1]
        assert len(fields) == 3 * len(commands)
        assert not (folder / "harm").exists(), "a word was run"
        return [(int(status), os.fsdecode(err), os.fsdecode(out)) for status, err, out in zip(*[iter(fields)] * 3)]
    return parse


def test_the_shell_reads_decimal_numbers(parsed_by_shell):
    """Defect: Bash's arithmetic took 048 for an octal number, and 08 for none."""
    odd = os.fsdecode(b"/data/\xff $HOME 'a\"b'")
    status, err, out = parsed_by_shell([["--batch_size=08", "--image-size=048", "--data_path=" + odd, "--device_id=007"]])[0]
    assert (status, err) == (0, "") and out == "8\n48\n%s\n7" % odd


def test_a_switch_may_be_off(parsed_by_shell):
    """--deterministic=0 is no --deterministic; defect: it was passed on, for it was not empty."""
    commands = [["--deterministic=0"], ["--deterministic", "--deterministic=0"], ["--deterministic=1"], ["--deterministic"]]
    assert [out.endswith("--D") for _, _, out in parsed_by_shell(commands)] == [False, False, True, True]


HARM = "$(touch harm)"
BAD_WORDS = ["--", "--=5", "-", "--batch_size", "--batch_size=", "--batch_size=0", "--batch_size=-1", "--batch_size=1e3", "--batch_size=1\n2",
             "--batch_size=" + "9" * 40, "--seed=1" + "0" * 30, "--seed=4294967296", "--learning_rate=-1", "--learning_rate=1e999",
             "--learning_rate=nan", "--data_path=a\nb", "--data_path=a\x1b[2J", "--device_id=../x", "--device_id=1024", "--workers=99999",
             "--profile_steps=a:b", "--a[%s]=1" % HARM, "--batch_size=a[%s]" % HARM, "--image_size=%s" % HARM, "--`touch harm`=1",
             "--device_id=x[%s]" % HARM, "--deterministic=2", "--device=npu|gpu", "--opt_level=.*", "--accumulate=0x10", "--=", "---", "--_x=1"]


def test_the_shell_refuses_in_one_line(parsed_by_shell):
    """Every bad word is status 2 and one line; nothing in a word is run."""
    for word, (status, err, _) in zip(BAD_WORDS, parsed_by_shell([[word] for word in BAD_WORDS])):
        assert status == 2 and len(err.splitlines()) == 1 and "error: " in err and "line " not in err, (word, err)


def test_the_shell_checks_its_environment(parsed_by_shell, tmp_path):
    """Security: ASCEND_DEVICE_ID becomes the name of a folder. Defect: a path in it was taken."""
    for value in ("../../tmp/x", "a[%s]" % HARM, "-1", ""):
        status, err, _ = parsed_by_shell([[]], ASCEND_DEVICE_ID=value)[0]
        assert (status == 0 and not value) or (status == 2 and "ASCEND_DEVICE_ID=" in err and len(err.splitlines()) == 1), (value, err)
    assert parsed_by_shell([[]], ASCEND_DEVICE_ID="07")[0][2].endswith("\n7")
    for name in ("bash", "dirname", "basename"):
        (tmp_path / name).symlink_to(shutil.which(name))
    assert parsed_by_shell([[]], PATH=str(tmp_path))[0][:2] == (2, "case.sh: error: there is no python3 on the PATH")


@pytest.mark.parametrize("version, complaint", [(None, "No module named 'torch'; install it, or all that .*requirements.* lists"),
                                                ("1.4.0a0", "older than 1.5"), ("1.5.0", ""), ("1.10.2", ""), ("2.13.0+cpu", "")])
def test_a_python_without_a_usable_torch_is_named(version, complaint, tmp_path, monkeypatch):
    """A python3 without PyTorch, or with one that is too old, is said before anything is started. Defect: a traceback."""
    (tmp_path / "version.py").write_text("__all__ = ['__version__']\n__version__ = %r\n" % version)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: version and types.SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    with pytest.raises(cli.UserError, match=complaint) if complaint else contextlib.suppress():
        environment.check_packages()


@pytest.mark.parametrize("program, module, requirements", [
    ("ResNet50/main.py", "torch", "ResNet50/2.x_requirements.txt"), ("GENet/train.py", "torch", "GENet/2.x_requirements.txt"),
    ("HRNet/tools/train.py", "yacs", "HRNet/%s_requirements.txt" % VERSION),
    ("EfficientNet-B3/tools/test_net.py", "yacs", "EfficientNet-B3/%s_requirements.txt" % VERSION),
    ("HRNet/test/train_eval_1p.sh", "yacs", "HRNet/%s_requirements.txt" % VERSION),
    ("FixRes/test/train_full_1p.sh", "numpy", "FixRes/2.x_requirements.txt"), ("tools/weights.py export", "torch", "tools/requirements.txt")])
def test_a_package_that_is_not_installed(program, module, requirements, tmp_path, tiny_imagenet):
    """A Python that lacks a package is bad input: one line names the package and the file that lists it, and nothing is touched. Defect:
    only a missing PyTorch was said, and by scripts alone; the rest were tracebacks."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules[%r] = None\n" % module)
    (tmp_path / "w.pth").write_text("no weights are read")
    command = [sys.executable] + program.split()
    command[1] = os.path.join(ROOT, command[1])
    if program.endswith(".sh"):
        command = script_command(program, "--device=cpu", "--data_path=%s" % tiny_imagenet, "--output_path=%s" % (tmp_path / "out"))
        command += ["--pth_path=%s" % (tmp_path / "w.pth")] if "eval" in program else []
    done = subprocess.run(command, env=child_environment(PYTHONPATH=str(tmp_path)), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert module in done.stderr and done.stderr.endswith("; install it, or all that %s lists\n" % os.path.join(ROOT, requirements)), done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("program", ["ResNet50/main.py", "GENet/train.py", "FixRes/main_finetune.py"])
def test_an_interpreter_without_docstrings_or_the_folder_of_the_program(program):
    """PYTHONOPTIMIZE=2 and PYTHONSAFEPATH are a user's to set: --help is there all the same. Defect: a traceback, and a module of the
    program's own that was not found."""
    done = subprocess.run([sys.executable, os.path.join(ROOT, program), "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=child_environment(PYTHONOPTIMIZE="2", PYTHONSAFEPATH="1", PYTHONDONTWRITEBYTECODE="1"))
    assert done.returncode == 0 and b"--device" in done.stdout and not done.stderr, done.stderr


def test_a_module_of_ours_that_cannot_be_imported():
    """A defect of this repository is a crash with its traceback, and not a package to install."""
    with pytest.raises(ImportError):
        cli.status_of(lambda: exec("from common.cli import no_such_name"), print)


# --- checkpoints ------------------------------------------------------------------------------------------------------

ALONE = distributed.Rank(0, 1, 0, torch.device("cpu"))


class Batches(object):
    """What a Progress asks of batches before the first step: an epoch of 6 steps of 2 images."""
    images, global_batch, step_images = 12, 2, 2

    def __len__(self):
        return 6


def training(folder, level="O0"):
    """Return (Progress, SGD) of a small network that has been trained for a step."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    model, sgd, amp = precision.initialize(model, optimizer.SGD(model.parameters(), 0.1, momentum=0.9), level, 2.0, torch.device("cpu"))
    model(torch.ones(2, 3)).sum().backward()
    sgd.step()
    parts = {"state_dict": model, "optimizer": sgd, "amp": amp}
    return progress.Progress(ALONE, "state_dict", parts, str(folder / "checkpoint.pth.tar"), None, constants={"seed": 1}), sgd


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What a checkpoint of such a training holds."""
    folder = tmp_path_factory.mktemp("saved")
    ours, _ = training(folder)
    ours.start_clock(Batches(), 3)
    ours.step = 2
    ours.save()
    return checkpoint.load(str(folder / "checkpoint.pth.tar"))


def with_entry(content, path, value):
    """Return a copy of nested dictionaries and lists in which the entry at `path` has another value."""
    if not path:
        return value(content) if callable(value) else value
    copied, key = content.copy(), next(iter(content)) if path[0] == "the first" else path[0]
    copied[key] = with_entry(content.get(key) if isinstance(content, dict) else content[key], path[1:], value)
    return copied


ODD = [None, "text", -3, 10 ** 30, 1.5, float("nan"), float("inf"), [1], {"a": 1}, True, torch.ones(2), torch.tensor(float("nan"))]
ODD_ENTRIES = [((name,), value) for name in ("epoch", "step", "seed", "global_batch", "train_images", "step_images") for value in ODD]
ODD_ENTRIES += [(("results",), value) for value in (None, "text", [1], {"val.top1": "text"}, {"val.top1": float("nan")},
                                                   {"a": torch.ones(2)}, {(1, 2): 3})]
ODD_ENTRIES += [(("classes",), value) for value in (None, "text", 3, [1], {"a": 1}, ["a", None], torch.ones(200, 2), [torch.ones(200, 2)])]
ODD_ENTRIES += [(("best_acc1",), value) for value in ("text", -3, 101, float("nan"), [1], torch.ones(2))]
ODD_ENTRIES += [(("tally",), value) for value in (None, "text", 3, [1], {}, {"batches": 1}, {"batches": 1, "recent": 3, "meters": []},
                                              {"batches": torch.ones(2), "recent": [], "meters": []},
                                              {"batches": 1, "recent": [["x"] * 4], "meters": []},
                                              {"batches": 1, "recent": [], "meters": [[float("nan"), 1, 1]] * 3})]
ODD_ENTRIES += [(("amp",), value) for value in (None, 3, {"scale": -1}, {"scale": float("nan")}, {"scale": "text"}, {"loss_scaler0": 3})]
ODD_ENTRIES += [(("optimizer",), value) for value in (None, 3, "text", [1], {}, {"state": {}, "param_groups": []})]
ODD_ENTRIES += [(("optimizer", "param_groups", 0, name), value) for name in ("lr", "momentum", "weight_decay")
                for value in ("text", -1, float("nan"), None)]
ODD_ENTRIES += [(("optimizer", "state", "the first", "momentum_buffer"), value) for value in
                (3 - 4, "text", [1], torch.ones(7), torch.ones(2, 3).to_sparse(), torch.ones(1).expand(2 ** 50))]
ODD_ENTRIES += [(("state_dict", "0.weight"), value) for value in
                (None, 3, "text", [1], torch.ones(2, 3).to_sparse(), torch.ones(2, 3, dtype=torch.int64), torch.ones(3, 2),
                 torch.tensor(1.0))]
if hasattr(torch.Tensor, "is_meta"):
    ODD_ENTRIES += [(("state_dict", "0.weight"), torch.ones(2, 3, device="meta"))]
ODD_ENTRIES += [(("state_dict", 5), torch.ones(1)), (("state_dict",), [1]), (("state_dict",), torch.ones(1)), (("epoch",), 4), (("step",), 7)]


@pytest.mark.parametrize("path, value", ODD_ENTRIES, ids=lambda value: " ".join(str(value).split())[:40])
def test_a_resume_refuses_odd_entries(saved, tmp_path, path, value):
    """Whatever is wrong in a checkpoint to go on from is said in one line that names the file; defect: tracebacks, or steps of the
    optimizer with numbers that do not fit."""
    ours, _ = training(tmp_path)
    content = with_entry(saved, path, value)
    with pytest.raises(cli.UserError) as raised:
        progress.choose_seed(None, content, ALONE)
        ours.resume(content, "odd.pth")
        ours.start_clock(Batches(), 3)
    assert "odd.pth" in str(raised.value) or "resume" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_resume_takes_what_is_right(saved, tmp_path):
    """The checks let through what a training writes, and what upstream's checkpoints hold: fewer entries, a best result in a tensor."""
    ours, sgd = training(tmp_path)
    ours.resume(dict(saved, best_acc1=torch.tensor(12.5)), "file")
    ours.start_clock(Batches(), 3)
    assert (ours.epoch, ours.step, ours.best) == (0, 2, 12.5) and len(sgd.state) == 4
    ours, _ = training(tmp_path)
    ours.resume({"state_dict": saved["state_dict"], "epoch": 2, "results": {"val.top1": None}}, "file")
    assert ours.start_clock(Batches(), 3) and ours.epoch == 2


def test_a_step_that_no_longer_means_the_same(saved, tmp_path):
    """Five steps of 2 images are no whole number of steps of 4; defect: images were seen twice."""
    ours, _ = training(tmp_path)
    ours.resume(dict(saved, step=5, step_images=1), "file")
    with pytest.raises(cli.UserError, match="5 steps of its epoch, 5 images; this run has 6 steps of 2 images"):
        ours.start_clock(Batches(), 3)


@pytest.mark.parametrize("content", [[1], torch.ones(3), 3, None, "text", (1, {"state_dict": {}})], ids=str)
def test_a_checkpoint_is_a_dictionary(content, tmp_path):
    """A list or a bare tensor as the file's content: said with the file's name."""
    path = tmp_path / "w.pth"
    torch.save(content, str(path))
    with pytest.raises(cli.UserError, match="w.pth holds no model weights: it is of the type"):
        checkpoint.load(str(path))


def test_an_average_of_weights_is_chosen_by_numbers():
    """The recorded errors of a file may be anything; one that is no number counts as 100."""
    content = {"model_state": {"a": torch.ones(1)}, "ema_state": {"a": torch.zeros(1)}}
    assert checkpoint.weights_key(dict(content, ema_err="text", test_err=None)) == "model_state"
    assert checkpoint.weights_key(dict(content, ema_err=5, test_err=[1])) == "ema_state"


class Claim(object):
    """Is pickled as a tensor of so many elements over the memory of one."""

    def __init__(self, elements):
        self.elements = elements

    def __reduce__(self):
        storage = torch.ones(1)
        storage = storage._typed_storage() if hasattr(storage, "_typed_storage") else storage.storage()
        return torch._utils._rebuild_tensor_v2, (storage, 0, (self.elements,), (1,), False, {})


@pytest.mark.parametrize("zipped", [True, False])
def test_a_tensor_larger_than_its_memory(zipped, tmp_path):
    """Security: a file that claims 2**60 elements is refused, not allocated."""
    path = tmp_path / "w.pth"
    torch.save({"state_dict": {"a": Claim(2 ** 60)}}, str(path), _use_new_zipfile_serialization=zipped)
    with pytest.raises(cli.UserError, match="w.pth"):
        checkpoint.weights(checkpoint.load(str(path)), str(path))["a"]


def test_no_advice_against_safety(tmp_path):
    """What PyTorch says of a file that is none, `Re-running torch.load with weights_only set to False will likely succeed`, is kept back."""
    (tmp_path / "w.pth").write_text("no weights")
    with pytest.raises(cli.UserError, match="w.pth is truncated or no PyTorch checkpoint") as raised:
        checkpoint.load(str(tmp_path / "w.pth"))
    assert "weights_only" not in str(raised.value)


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    """Security: a checkpoint whose parts are compressed may be any size in memory; PyTorch compresses none."""
    torch.save({"state_dict": {"a": torch.zeros(1 << 18)}}, str(tmp_path / "good.pth"), _use_new_zipfile_serialization=True)
    with zipfile.ZipFile(str(tmp_path / "good.pth")) as good, zipfile.ZipFile(str(tmp_path / "w.pth"), "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in good.infolist():
            bomb.writestr(entry.filename, good.read(entry))
    assert (tmp_path / "w.pth").stat().st_size < 1 << 16
    with pytest.raises(cli.UserError, match="w.pth is truncated or no PyTorch checkpoint .its parts are said to hold"):
        checkpoint.load(str(tmp_path / "w.pth"))


# --- sizes ------------------------------------------------------------------------------------------------------------

def test_a_size_that_cannot_fit_in_memory():
    """Said with its figure, before anything is allocated; defect: the allocator's traceback, or the kernel's killer."""
    flags.require_memory(512, 224)
    with pytest.raises(cli.UserError, match=r"8 images of 1000000 x 1000000 pixels take 89407.0 GiB in fp32, and this machine has"):
        flags.require_memory(8, 10 ** 6)


@pytest.mark.parametrize("make", [lambda: torch.nn.Linear(10 ** 7, 10 ** 9), lambda: torch.nn.Linear(10 ** 12, 10 ** 12)])
def test_a_network_that_cannot_fit_in_memory(make):
    """--num_classes or --width of a thousand millions: one line, before anything is trained."""
    with pytest.raises(cli.UserError, match="rank 0 is out of memory on cpu"):
        distributed.launch(lambda args, rank: make(), argparse.Namespace(), distributed.layout("cpu", [0]))


@pytest.mark.parametrize("arch, images, size, complaint", [
    ("resnet18", 1, 32, "BatchNorm cannot train on a batch of one image of 32 pixels"),
    ("alexnet", 4, 32, "size is too small"),
    ("resnet18", 2, 32, ""), ("resnet18", 1, 64, "")])
def test_a_network_that_cannot_train_on_such_batches(arch, images, size, complaint):
    """Said before the first record; defect: the traceback of a layer, in the first step. The network, and what is drawn after it, are as
    they were."""
    model = load_script("ResNet50/main.py").build_model(argparse.Namespace(
        arch=arch, num_classes=4, model_config="classic", zero_init_residual=False, normal_fc=False, fine_tuning=False))
    before, drawn = {name: value.clone() for name, value in model.state_dict().items()}, torch.random.get_rng_state()
    with pytest.raises(cli.UserError, match=complaint) if complaint else contextlib.suppress():
        network.place(model, torch.device("cpu"), images, size)
    assert torch.equal(drawn, torch.random.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_network_of_several_outputs():
    """That of torchvision's googlenet, which the loss does not take."""
    class Several(torch.nn.Module):
        def forward(self, images):
            return images, images
    with pytest.raises(cli.UserError, match="it gives a tuple, not one tensor"):
        network.place(Several(), torch.device("cpu"), 4, 8)


@pytest.mark.parametrize("arch", ["get_model", "list_models", "get_weight", "resnet", "__file__", "ResNet", "lru_cache"])
def test_what_is_no_network_of_torchvision(arch):
    """--arch names a network; defect: other functions of torchvision.models were called."""
    with pytest.raises(cli.UserError, match="no such network here or in torchvision.models"):
        load_script("ResNet50/main.py").torchvision_network(arch, num_classes=4)


# --- files that mean harm ---------------------------------------------------------------------------------------------

def test_a_planted_link_is_not_followed(tmp_path):
    """Security: whoever may write into the output folder cannot make us write through a link of theirs."""
    theirs = tmp_path / "theirs"
    theirs.write_text("precious")
    for name in ("checkpoint.pth.tar.part", "model_best.pth.tar.part", "metrics.jsonl.part"):
        (tmp_path / name).symlink_to(theirs)
    checkpoint.save({"a": torch.ones(1)}, str(tmp_path / "checkpoint.pth.tar"), [str(tmp_path / "model_best.pth.tar")])
    (tmp_path / "metrics.jsonl").write_bytes(b'DLLL {"type": "LOG", "step": [0, 1], "data": {}}\nDLLL {"type": "LOG", "step": ["x"]}\n\xff\n')
    records._forget_since(str(tmp_path / "metrics.jsonl"), 1, 0)
    assert theirs.read_text() == "precious" and checkpoint.load(str(tmp_path / "checkpoint.pth.tar")) == {"a": torch.ones(1)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pth.tar", "metrics.jsonl", "model_best.pth.tar", "theirs"]
    assert len(records.read(str(tmp_path / "metrics.jsonl"))) == 1

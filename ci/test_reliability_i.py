"""Bad input of every kind ends in one line and status 2: numbers, checkpoints, the environment, files that mean harm."""
import argparse
import importlib
import os
import sys

import pytest
import torch

from common import checkpoint, cli, distributed, environment, ranges

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


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
    assert ranges.complaint({"a": [1, 2], "b": None}, table) is None and ranges.complaint({}, table) is None
    assert ranges.complaint({"a": (1, 0)}, table) == "a (1, 0): has to be an integer from 1 to 1000000000"
    assert ranges.complaint({"b": float("nan")}, table) == "b nan: has to be a number of at least 0 and below 1"


PARSERS = [("ResNet50", "main"), ("GENet", "train"), ("HRNet/tools", "train"), ("FixRes", "main_finetune"), ("FixRes", "main_evaluate_imnet"),
           ("FixRes", "main_resnet50_scratch"), ("HRNet/tools", "valid")]


@pytest.fixture(params=PARSERS, ids=lambda pair: "%s-%s" % pair)
def parser(request, monkeypatch):
    """The parser of a program, and nothing of that program left in sys.modules."""
    before = dict(sys.modules)
    folder, name = request.param
    monkeypatch.syspath_prepend(os.path.join(ROOT, folder))
    sys.modules.pop(name, None)
    yield importlib.import_module(name).parser()
    for name in set(sys.modules) - set(before):
        if getattr(sys.modules[name], "__file__", None) and ROOT in os.path.abspath(sys.modules[name].__file__):
            del sys.modules[name]


def test_every_number_has_a_range(parser):
    """A flag that takes a number says from where to where, in its type, and so --help shows it. Defect: `type=float` took -1, nan and
    1e999, and a seed of 10**30 ended in a traceback."""
    for action in parser._actions:
        assert action.type not in (int, float) or action.choices, action.option_strings
        if isinstance(action.type, ranges.Range):
            assert action.help and str(action.type) in " ".join(parser.format_help().split()), action.option_strings
            assert action.default is None or action.default in action.type or isinstance(action.default, str), action.option_strings


@pytest.mark.parametrize("words", [["--=5"], ["--lr=-1"], ["--learning-rate=1e999"], ["--seed=1" + "0" * 30], ["--no_such=a\nb"], ["--device-list=0,1,x"],
                                   ["--workers=99999999999"], ["--profile-steps=²:³"], ["--profile-steps=5:4"], ["--master-port=0"]])
def test_a_bad_number_is_one_line(parser, words, capsys):
    """Status 2 and one line, whatever stands in the word."""
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--cfg=x"] * any("--cfg" in action.option_strings for action in parser._actions) + words)
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(lines) == 1 and lines[0].endswith("(see --help)")


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

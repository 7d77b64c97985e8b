"""Random input for what reads other people's words and files: each answer is a value or one line (hypothesis, with a fixed seed)."""
import argparse
import contextlib
import io
import json
import os
import pickle

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

import cifar
import test_reliability_inputs
from common import checkpoint, cli, progress, records, report
from conftest import ROOT, load_script
from lib.config import new_config, update_config
from pycls.core import command, config
from test_reliability_inputs import ALONE, PROGRAMS, Batches, training

parsed_by_shell = test_reliability_inputs.parsed_by_shell  # a fixture


def fuzzed(examples, **strategies):
    """Decorate a test that is called with so many random examples, the same ones each time."""
    settings = hypothesis.settings(max_examples=examples, derandomize=True, database=None, deadline=None,
                                   suppress_health_check=list(hypothesis.HealthCheck))
    return lambda test: settings(hypothesis.given(**strategies)(test))


@contextlib.contextmanager
def one_line():
    """What is done in here ends well, or as bad input in one line."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            yield
    except SystemExit as ended:
        assert ended.code == 0 or (ended.code == cli.EXIT_BAD_INPUT and len(told.getvalue().splitlines()) == 1), told.getvalue()
    except (cli.UserError, cli.TrainingStopped) as error:
        assert str(error).strip()


# --- words ------------------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(st.integers().map(str), st.floats().map(str), st.sampled_from(
    ["08", "0x10", "1e999", "-0", "1_0", "", "²", "９", "1" + "0" * 400, "[1,2", "[[1], 2]", "a:b", "3:5", "O1", "True", "none", "tcp://x:99999999"]))
TEXTS = st.one_of(NUMBERS, st.text(max_size=8), st.sampled_from(["../../x", "/etc/passwd", "$(id)", "`id`", "a;b", "a\nb", "\x1b[2J", "%s%n", "-"]))
PARSERS = {path: load_script(path).parser() for path in PROGRAMS}
PARSERS["EfficientNet-B3"] = command._parser("a program", trains=True)
FLAGS = {path: sorted(flag for action in parser._actions for flag in action.option_strings) for path, parser in PARSERS.items()}


@pytest.mark.parametrize("path", sorted(PARSERS))
def test_command_lines(path):
    """Flags of the program with values of any kind, flags that are none, values without flags."""
    @fuzzed(150, words=st.lists(st.one_of(st.builds("{}={}".format, st.sampled_from(FLAGS[path]), TEXTS), st.sampled_from(FLAGS[path]), TEXTS),
                                max_size=6))
    def check(words):
        with one_line():
            PARSERS[path].parse_args(words)
    check()


VALUES = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
                      lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)), max_leaves=8)
HRNET = os.path.join(ROOT, "HRNet", "experiments", "cls_hrnet_w18_sgd_lr5e-2_wd1e-4_bs32_x100.yaml")
B3 = os.path.join(ROOT, "EfficientNet-B3", "configs", "dds_baselines", "effnet", "EN-B3_dds_8gpu.yaml")


def keys(node, prefix=""):
    """Return the dotted keys of a tree, groups among them."""
    return [name for key, value in node.items() for name in [prefix + key] + (keys(value, prefix + key + ".") if hasattr(value, "items") else [])]


PAIRS = {name: st.lists(st.tuples(st.one_of(st.sampled_from(sorted(keys(tree))), st.text(max_size=5)),
                                  st.one_of(TEXTS, VALUES.map(repr))), max_size=4)
         for name, tree in (("HRNet", new_config()), ("EfficientNet-B3", config.cfg))}


def read_config(name, path, pairs=()):
    """Read a file and KEY VALUE pairs as the programs of a model do."""
    words = [word for pair in pairs for word in pair]
    if name == "HRNet":
        update_config(new_config(), argparse.Namespace(cfg=path, modelDir="", logDir="", dataDir="", testModel="", opts=words))
    else:
        config.load_cfg(path, words)


@pytest.mark.parametrize("name, path", [("HRNet", HRNET), ("EfficientNet-B3", B3)])
def test_pairs_of_the_configuration_trees(name, path):
    """KEY VALUE pairs: keys of the tree and others, values of any type, text that is no value."""
    @fuzzed(200, pairs=PAIRS[name])
    def check(pairs):
        with one_line():
            read_config(name, path, pairs)
    check()


DEEP = "a: " + "[" * 3000
BOMB = "a0: &a0 {b: 1}\n" + "".join("a%d: &a%d {%s}\n" % (n, n, ", ".join("k%d: *a%d" % (k, n - 1) for k in range(9))) for n in range(1, 9))
TEXT_OF_YAML = st.one_of(VALUES.map(json.dumps), st.text(), st.dictionaries(st.sampled_from(["MODEL", "TRAIN", "EN", "OPTIM", "WORKERS"]), VALUES,
                                                                            max_size=3).map(json.dumps),
                         st.sampled_from([DEEP, BOMB, "a: !!python/object/apply:os.system [id]", "!!python/name:os.system", "? [1]\n: 2", "1: 2",
                                          "MODEL: &x {EXTRA: *x}", "a: 1\0", "%YAML 9", "a: 0x" + "f" * 9000, "WORKERS: 9e999", "\ud800"]))


@pytest.mark.parametrize("name", ["HRNet", "EfficientNet-B3"])
def test_files_of_the_configuration_trees(name, tmp_path):
    """YAML of any content: tags, aliases that multiply, nesting, keys that are no text."""
    path = tmp_path / "c.yaml"

    @fuzzed(200, text=TEXT_OF_YAML)
    def check(text):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with one_line():
            read_config(name, str(path))
    check()


@fuzzed(15, commands=st.lists(st.lists(st.one_of(
    st.builds("--{}={}".format, st.sampled_from(
        "batch_size seed learning-rate device_list image_size data_path device profile_steps resume".split()), TEXTS),
    TEXTS, st.builds("--{}".format, TEXTS)), max_size=4), min_size=20, max_size=20))
def test_words_of_the_scripts(parsed_by_shell, commands):
    """Words of any kind to the scripts of test/: none of them is run, and a bad one is one line."""
    commands = [[word.replace("\0", "") for word in words] for words in commands]
    for words, (status, err, _) in zip(commands, parsed_by_shell(commands)):
        assert (status, len(err.splitlines())) in ((0, 0), (2, 1)), (words, status, err)


# --- files ------------------------------------------------------------------------------------------------------------

CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(["set", "cut", "insert", "end"]), st.binary(min_size=1, max_size=6)),
                   min_size=1, max_size=4)


def changed(content, changes):
    """Return bytes with some of them changed: at parts of the length set, cut out, put in, or all left out from there."""
    for place, how, new in changes:
        at = int(place * len(content))
        content = content[:at] + {"set": new + content[at + len(new):], "cut": content[at + len(new):], "insert": new + content[at:],
                                  "end": b""}[how]
    return content


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The bytes of a checkpoint in each of PyTorch's two formats, and what is in them."""
    path = tmp_path_factory.mktemp("saved") / "checkpoint.pth.tar"
    ours, _ = training(path.parent)
    ours.start_clock(Batches(), 3)
    ours.save()
    content, formats = checkpoint.load(str(path)), [path.read_bytes()]
    torch.save(content, str(path), _use_new_zipfile_serialization=False)
    return formats + [path.read_bytes()], content


def go_on(path, folder):
    """Do with a checkpoint's file what --resume does."""
    ours, _ = training(folder)
    content = checkpoint.load(str(path))
    progress.choose_seed(None, content, ALONE)
    ours.resume(content, str(path))
    ours.start_clock(Batches(), 3)


@pytest.mark.parametrize("form", [0, 1], ids=["zip", "before PyTorch 1.6"])
def test_damaged_checkpoints(saved, form, tmp_path):
    """Bytes of a checkpoint changed, cut, put in."""
    path = tmp_path / "w.pth"

    @fuzzed(150, changes=CHANGES)
    def check(changes):
        path.write_bytes(changed(saved[0][form], changes))
        with one_line():
            go_on(path, tmp_path)
    check()


TENSORS = st.sampled_from([torch.ones(2, 3), torch.ones(2), torch.ones(2, 3).to_sparse(), torch.ones(2, 3, dtype=torch.int8), torch.tensor(1.0),
                           torch.zeros(0), torch.ones(1).expand(10 ** 12)])


@fuzzed(300, entries=st.dictionaries(st.sampled_from(
    "epoch step seed results tally amp optimizer state_dict best_acc1 global_batch step_images classes".split()),
                                     st.one_of(VALUES, TENSORS, st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), TENSORS)), min_size=1))
def test_odd_checkpoints(saved, tmp_path_factory, entries):
    """Entries of a checkpoint replaced by values of any type."""
    folder = tmp_path_factory.getbasetemp()
    torch.save(dict(saved[1], **entries), str(folder / "odd.pth"))
    with one_line():
        go_on(folder / "odd.pth", folder)


@fuzzed(300, lines=st.lists(st.one_of(
    st.text(), VALUES.map(json.dumps), st.just("[" * 100000), st.fixed_dictionaries(
        {}, optional={"type": st.sampled_from(["LOG", "METADATA"]), "step": st.one_of(VALUES, st.just([]), st.just("PARAMETER")), "data": VALUES})
    .map(json.dumps)), max_size=5), prefix=st.sampled_from(["DLLL ", ""]), end=st.binary(max_size=4))
def test_odd_records(tmp_path_factory, lines, prefix, end):
    """Lines of any content where the records of a run should be: they are read, forgotten, and reported as not measured."""
    folder = tmp_path_factory.getbasetemp()
    path = folder / "metrics.jsonl"
    path.write_bytes("".join(prefix + line + "\n" for line in lines).encode("utf-8", "surrogatepass") + end)
    assert all(isinstance(record, dict) for record in records.read(str(path)))
    case = {"network": "n", "batch_size": 1, "ranks": 1, "suffix": "acc", "kind": "train"}
    if report.summary(str(path))[1] is not None:
        assert len(report.write(case, str(path), str(folder), 1.0)) == 5
    records._forget_since(str(path), 1, 1)
    records.read(str(path))


CIFAR = {"data": np.zeros((4, cifar.PIXELS), np.uint8), "labels": [0, 1, 2, 3], "filenames": [], "batch_label": "x"}


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_damaged_cifar_batches(protocol, tmp_path):
    """Bytes of a batch file changed, cut, put in; and pickles of anything."""
    path = tmp_path / "data_batch_1"
    good = pickle.dumps(CIFAR, protocol)

    @fuzzed(300, content=st.one_of(CHANGES.map(lambda changes: changed(good, changes)), VALUES.map(lambda value: pickle.dumps(value, protocol)),
                                   st.dictionaries(st.sampled_from(sorted(CIFAR)), VALUES).map(
                                       lambda value: pickle.dumps(dict(CIFAR, **value), protocol)),
                                   st.binary(max_size=40)))
    def check(content):
        path.write_bytes(content)
        with one_line():
            images, labels = cifar.read_batch(str(path))
            assert images.shape == (len(labels), 3, 32, 32)
    check()

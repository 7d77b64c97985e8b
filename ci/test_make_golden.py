"""tools/make_golden.py, run on stand-ins for upstream's checkouts: upstream's names and signatures, the ports' code behind them.

(ci/upstream_standins; none of upstream's code is in this repository.) As the ports reproduce upstream's numbers, what is made must be
the golden files' form, and their numbers.
"""
import copy
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import types

import pytest
from common import cli
from conftest import CI, ROOT, assert_bad_input, environment

sys.path.insert(0, os.path.join(ROOT, "tools"))
from golden import _entries, _upstream  # noqa: E402

STAND_INS = os.path.join(CI, "upstream_standins")
MODELS = sorted(os.listdir(STAND_INS))
# What the quick run makes: (networks, entries).
QUICK = {
    "EfficientNet-B3": ("EN-tiny", ["variants", "components"]),
    "FixRes": ("tf_efficientnet_b0_ap", ["variants", "lr_schedule", "distributed_sampler", "steps_per_epoch", "transforms",
                                         "resize_target_size", "transforms_v2", "accuracy"]),
    "GENet": ("wrn16-8_theta-minus", ["variants.*.state_dict", "variants.*.init", "variants.*.eval_logits", "optimizer", "lr_schedule",
                                      "transforms", "losses", "seeded_init"]),
    "HRNet": ("w18_small_v1", ["variants.*.state_dict", "variants.*.eval_calibrated", "variants.*.train_optimizer", "config_defaults",
                               "config_merged", "lr_schedule", "lr_schedule_port_actual", "init", "accuracy", "transforms"]),
    "ResNet50": ("resnet18", ["variants.*.state_dict", "variants.*.no_decay", "variants.*.init_std", "variants.*.train_accumulated",
                              "lr_schedule", "transforms", "losses", "accuracy", "meters", "log_lines"]),
}
NEEDS = {"EfficientNet-B3": ("cv2", "yacs"), "FixRes": ("timm",), "HRNet": ("yacs",)}
# Of these the stand-ins have their own: fewer configuration keys of other networks, shorter log lines, and what says where it was made.
OWN = ("EfficientNet-B3.config_defaults", "EfficientNet-B3.components.log_lines.lines", "made_with", "torch", "upstream.commit")
# Float32 that the files call chaotic or ill conditioned, and how far it is from float64: other CPUs round otherwise.
ROUGH = re.compile(r"deviation|runs\.\d\.train_losses\.|EfficientNet-B3\.variants\.\d\.eval_logits\.|train_float32_vs_float64|filled_float32|"
                   "unsteady")

# Floats that go in, by the end of their paths; in a configuration, by its capital letters.
SETTINGS = (r"[A-Z]\.[A-Z_]+", r"keys\.[A-Z_.]+", r"optimizer\.(lr|momentum|weight_decay)", r"setting\.(base_lr|override_lr)",
            r"train_losses\.\w+\.(lr_value|momentum|weight_decay)", r"\.rtol", r"runs\.\*\.lr", r"feed\.\*\.(loss|lr|top1_err|top5_err)",
            r"lr_schedule\.\w+\.(learning_rate|lr_decay_ratio)", r"lr_schedule\.\*\.(base_lr|flag)", r"(label_)?smoothing",
            r"updates_value_count\.\*\.\*", r"activation\.\*\.x\.\*", r"augment_ops\.\*\.(magnitude|value)", r"drop_connect\.\*\.ratio",
            r"lighting\.\*\.std", r"mixup\.\*\.alpha", r"cases\.\*\.len_factor")

# Pictures in which Pillow's versions are some levels of 255 apart, before and after the normalisation.
LEVELS = {r"augment_(ops|policies)": 2, "train_fixed_box": 0.02}


def make(*words, **options):
    return subprocess.run([sys.executable, os.path.join(ROOT, "tools", "make_golden.py")] + list(words), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=1800, env=environment(), **options)


def golden(model):
    with open(os.path.join(CI, "golden", model + ".json"), encoding="utf-8") as stream:
        return json.load(stream)


def read(path):
    with open(str(path), encoding="utf-8") as stream:
        return json.load(stream)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function: model, networks, entries (None: all) -> the file that the program makes of the model's stand-in."""
    def run(model, variants=None, only=None):
        if any(importlib.util.find_spec(name) is None for name in NEEDS.get(model, ())):
            pytest.skip("needs " + " and ".join(NEEDS[model]))
        path = tmp_path_factory.mktemp("golden") / "made.json"
        words = [model, "--upstream=" + os.path.join(STAND_INS, model), "--any-commit", "--output=%s" % path]
        done = make(*words + (["--variants=" + variants] if variants else []) + (["--only=" + ",".join(only)] if only else []))
        assert done.returncode == 0, done.stderr
        return read(path)
    return run


def wanted(model, variants=None, only=None):
    """Return the golden file, less the networks and the results that were not asked for and those that upstream cannot give."""
    maker, file = importlib.import_module("golden." + model.lower().replace("-", "_")), golden(model)
    if variants:
        file["variants"] = _entries.of_archs(file["variants"], variants.split(","))
    names = [(entry.path, entry.names) for entry in maker.ENTRIES if not _entries.is_named(entry, only)]
    for path, left_out in names + [(name.rpartition(".")[0], [name.rpartition(".")[2]]) for name in maker.NOT_MADE]:
        for holder in _entries.holders(file, path):
            _entries.taken_out(holder.maps[0], left_out)
    return file


def differences(found, wanted, path):
    """Yield where a file differs from a golden one: in form anywhere, in numbers beyond rounding."""
    if path.endswith(OWN):
        return
    if isinstance(wanted, dict) and isinstance(found, dict):
        if list(found) != list(wanted):
            yield "%s has the keys %s, not %s" % (path, list(found), list(wanted))
        for key in [key for key in wanted if key in found]:
            unsteady = "(unsteady)" if "unsteady" in wanted.get("setting", ()) else ""
            yield from differences(found[key], wanted[key], path + unsteady + "." + key)
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for number, pair in enumerate(zip(found, wanted)):
            yield from differences(pair[0], pair[1], "%s.%d" % (path, number))
    elif type(found) is not type(wanted) or isinstance(wanted, list):
        yield "%s is %.60r, not %.60r" % (path, found, wanted)
    elif found != (pytest.approx(wanted, rel=1e-3, abs=next((level for words, level in LEVELS.items() if re.search(words, path)), 1e-3))
                   if isinstance(wanted, float) else wanted):
        if not ROUGH.search(path):
            yield "%s is %.60r, not %.60r" % (path, found, wanted)


def check(model, found, variants=None, only=None):
    """The file is the golden file's form with its numbers, and says what it was made of."""
    origin = found.pop("made_by")
    assert list(differences(found, wanted(model, variants, only), model)) == []
    assert origin["commit"] is None and len(origin["commit_of_the_port"]) == 40 and origin["repository"].count("/") == 1
    assert origin["sources"] and all(len(digest) == 64 for digest in origin["sources"].values())
    for path, digest in origin["sources"].items():
        with open(os.path.join(STAND_INS, model, path), "rb") as stream:
            assert hashlib.sha256(stream.read()).hexdigest() == digest
    assert set(origin["versions"]) >= {"torch", "numpy", "pillow", "python"} and all(origin["stand_ins"].values())


@pytest.mark.parametrize("model", MODELS)
def test_the_numbers_are_made_again(model, made):
    """From code with upstream's interface, each kind of entry comes out in the golden file's form, with its numbers."""
    check(model, made(model, *QUICK[model]), *QUICK[model])


def test_an_entry_can_be_made_alone(made):
    """What it needs of another entry is made as well. Defect: a KeyError."""
    only = ["variants.*.train_accumulated"]
    check("ResNet50", made("ResNet50", "resnet18", only), "resnet18", only)


@pytest.mark.slow  # trains every network of every file: eight minutes
@pytest.mark.parametrize("model", MODELS)
def test_all_numbers_are_made_again(model, made):
    """The whole file, but for the network that needs 4 GB."""
    archs = [each["arch"] for each in golden(model)["variants"]]
    variants = ",".join(arch for arch in archs if "48d" not in arch) if "resnext101_32x48d" in archs else None
    check(model, made(model, variants), variants)


@pytest.mark.parametrize("model", MODELS)
def test_every_result_is_made_or_said_not_to_be(model):
    """What neither the entries nor NOT_MADE name goes in and does not come out, so no float among it is a result."""
    assert [path for path in floats(wanted(model, only=["nothing"])) if not re.search("(%s)$" % "|".join(SETTINGS), path)] == []


def floats(node, path=""):
    """Yield the paths of the floats in a file, numbers of lists left out."""
    for key, child in node.items() if isinstance(node, dict) else [("*", child) for child in node] if isinstance(node, list) else ():
        if isinstance(child, float):
            yield (path + "." + key).lstrip(".")
        yield from floats(child, path + "." + key)


# --- the checkout ---------------------------------------------------------------------------------------------------------------

@pytest.fixture
def checkout(tmp_path):
    """GENet's stand-in as a git checkout of one commit."""
    folder = tmp_path / "a $b" / "GENet"
    shutil.copytree(os.path.join(STAND_INS, "GENet"), str(folder), ignore=shutil.ignore_patterns("__pycache__"))
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-q", "-m", "x"]):
        subprocess.check_call(["git", "-C", str(folder)] + words)
    return folder


def source(folder):
    """Return where the checkout's code is, its own commit as the port's."""
    commit = subprocess.check_output(["git", "-C", str(folder), "rev-parse", "HEAD"], universal_newlines=True).strip()
    return _upstream.Source("someone/something", commit, "models/wideresnet.py", ("",))


def test_the_commit_of_the_port_is_taken(checkout):
    """The right commit is taken without a word; one changed file, or a file that is not there, and it is another."""
    right = source(checkout)
    upstream = _upstream.Upstream(str(checkout), right)
    assert upstream.commit == right.commit and not upstream.is_changed and str(upstream) == "someone/something at " + right.commit
    assert upstream.file("utils.py") == os.path.realpath(str(checkout / "utils.py"))
    (checkout / "utils.py").write_text("x = 1\n")
    with pytest.raises(cli.UserError, match=right.commit + " with changed files, the port is of commit " + right.commit):
        _upstream.Upstream(str(checkout), right)
    changed = _upstream.Upstream(str(checkout), right, any_commit=True)
    assert changed.is_changed and changed.origin()["changed_files"] and "utils.py" not in changed.origin()["sources"]
    with pytest.raises(cli.UserError, match="upstream has no lost.py"):
        changed.file("lost.py")


def test_other_checkouts_are_refused(checkout, tmp_path):
    """A folder that is none of upstream's, another commit, a folder without git: one line each, status 2, and nothing is written."""
    genet = importlib.import_module("golden.genet").SOURCE
    for folder, words in ((tmp_path, "is not a checkout of BayesWatch/pytorch-GENet: there is no models/wideresnet.py"),
                          (tmp_path / "nowhere", "is not a checkout of"),
                          (os.path.join(STAND_INS, "GENet"), "is not in git, the port is of commit 3fbf99f")):
        with pytest.raises(cli.UserError, match=words):
            _upstream.Upstream(str(folder), genet)
    output = tmp_path / "made.json"
    assert_bad_input(make("GENet", "--upstream=%s" % checkout, "--output=%s" % output), "is %s, the port is of commit %s" % (
        source(checkout).commit, genet.commit), "say --any-commit")
    assert not output.exists()
    for output in (tmp_path, tmp_path / "no" / "made.json"):  # defect: said when all was computed, with a traceback
        assert_bad_input(make("GENet", "--upstream=%s" % checkout, "--any-commit", "--output=%s" % output), "--output=%s is no file" % output)


def test_what_upstream_lacks_is_named(checkout, tmp_path):
    """A module or a name that upstream lacks is one line; so is an entry or a network that the file lacks."""
    (checkout / "utils.py").write_text("def get_errors():\n    pass\n")
    words = ["GENet", "--upstream=%s" % checkout, "--any-commit", "--output=%s" % (tmp_path / "made.json"), "--only=losses"]
    assert_bad_input(make(*words), "upstream's utils has no get_error")
    upstream = _upstream.Upstream(str(checkout), source(checkout), any_commit=True)
    with pytest.raises(cli.UserError, match="upstream's no_such_module does not import: No module named 'no_such_module'"):
        upstream.take("no_such_module")
    entries = importlib.import_module("golden.genet").ENTRIES
    with pytest.raises(cli.UserError, match=r"--only loss: the entries are .*losses.cases.\*.err1"):
        _entries.checked(entries, ["losses", "loss"])
    with pytest.raises(cli.UserError, match="--variants wide: the networks are a; ab"):
        _entries.of_archs([{"arch": "a"}, {"arch": "ab"}], ["wide"])
    assert _entries.of_archs([{"arch": "a1"}, {"arch": "a2"}, {"arch": "b"}], ["b", "a"]) == [{"arch": "a1"}, {"arch": "a2"}, {"arch": "b"}]


def test_a_mutant_of_upstream_shows(checkout, tmp_path):
    """The numbers are what the checkout computes, not what the golden file says: an error function that returns 0 gives zeros."""
    (checkout / "utils.py").write_text("def get_error(output, target, topk=(1,)):\n    return [0.0 for k in topk]\n")
    output = tmp_path / "made.json"
    done = make("GENet", "--upstream=%s" % checkout, "--any-commit", "--only=losses", "--output=%s" % output)
    assert done.returncode == 0 and "6 results" in done.stdout, done.stderr
    cases = read(output)["losses"]["cases"]
    assert [(case["err1"], case["err5"]) for case in cases] == [(0.0, 0.0)] * 2
    assert [case["cross_entropy"] for case in cases] == pytest.approx([case["cross_entropy"] for case in golden("GENet")["losses"]["cases"]])
    assert subprocess.check_output(["git", "-C", str(checkout), "status", "--porcelain"]).decode().split() == ["M", "utils.py"]


# --- from a form to its numbers -------------------------------------------------------------------------------------------------

def test_no_result_is_taken_over():
    """A maker sees names and positions of the results that are there, never their values, and what it does not make is left out."""
    form = {"note": "n", "a": {"x": 1, "y": {"b": 2.5, "c": 3.5}}, "cases": [{"at": [[0, 7.0], [4, 8.0]], "side": 2}], "old": 9.0}
    seen = []

    def of_a(upstream, case, form):
        seen.append((copy.deepcopy(dict(case)), form))
        return {"y": {name: 0.0 for name in form["y"]}}

    def of_case(upstream, case, form):
        seen.append((copy.deepcopy(dict(case)), form))
        return {"at": [[position, case["x" if "x" in case else "side"]] for position in form["at"]], "none": None}
    maker = types.SimpleNamespace(NOT_MADE={"old": "no reason"}, ENTRIES=(
        _entries.Entry("a", ("y",), of_a), _entries.Entry("cases.*", ("at", "none"), of_case)))
    made, count = _entries.make(form, maker, None)
    assert made == {"note": "n", "a": {"x": 1, "y": {"b": 0.0, "c": 0.0}}, "cases": [{"at": [[0, 2], [4, 2]], "side": 2}]}
    assert list(made) == ["note", "a", "cases"] and list(made["cases"][0]) == ["at", "side"] and count == 2
    assert [old for _, old in seen] == [{"y": {"b": None, "c": None}}, {"at": [0, 4]}]
    assert "y" not in seen[0][0]["a"] and seen[1][0]["a"]["x"] == 1 and "old" not in seen[0][0]
    assert _entries.make(form, maker, None, only=["cases"])[0] == {
        "note": "n", "a": {"x": 1}, "cases": [{"at": [[0, 2], [4, 2]], "side": 2}]}
    assert form["a"]["y"] == {"b": 2.5, "c": 3.5}

"""docs/own_data.md: from a folder of pictures to a fine-tuned model; new classifiers in every training, names of classes in checkpoints."""
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from common import checkpoint
from common.cli import TrainingStopped, UserError
from common.distributed import Rank
from conftest import ROOT, differences, environment, load_script

sys.path.append(os.path.join(ROOT, "tools"))
import resnet  # noqa: E402
import verbs  # noqa: E402
from datasets import split as split_verb  # noqa: E402
from test_documents import commands_in, read  # noqa: E402

PAGE = "docs/own_data.md"
FLOWERS = ["daisy", "lily", "poppy", "rose", "tulip"]
# What makes the page's trainings and evaluations small.
SMALL = " --arch=resnet18 --image_size=32 --device=cpu --workers=0 --opt_level=O0"
ALONE = Rank(0, 1, 0, torch.device("cpu"))


@pytest.fixture(autouse=True)
def leave_configuration_as_it_was():
    """pycls' configuration is one for the process."""
    yield
    from pycls.core import config
    config.reset_cfg()


def write_flowers(folder, names=FLOWERS, count=10):
    """Write JPEG files 1.jpg, 2.jpg, … of each class, with a colour of its own and noise."""
    rng = np.random.RandomState(0)
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        colour = 50 * np.array([number % 2, number // 2 % 2, number // 4 % 2]) + 50
        for index in range(1, count + 1):
            pixels = np.clip(colour + rng.randint(0, 80, (50, 70, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(str(folder / name / ("%d.jpg" % index)))


def shell(command, path):
    """Run a command in the root of the repository, with a status of 0."""
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, timeout=600, env=environment(PATH=path))
    assert done.returncode == 0, command + "\n" + done.stdout[-3000:] + done.stderr[-3000:]


def tool(command, capsys):
    """Run a command `python tools/PROGRAM.py VERB …` in this process, where it takes a second less; return its stdout."""
    program, *words = shlex.split(command)[1:]
    capsys.readouterr()
    try:
        name = re.match(r"tools/(\w+)\.py$", program).group(1)
        verbs.run({"dataset": "datasets"}.get(name, name), "", words)
    except SystemExit as ended:
        assert not ended.code, command
    return capsys.readouterr().out


# --- the page ---------------------------------------------------------------------------------------------------------

def test_four_commands(forks, tmp_path, capsys):
    """The commands of the page's first section as they stand there, and that for the page of the run: the body of the weights is taken
    and trained on, the best epoch is evaluated to the training's own figure, and all speak of the classes by their names."""
    write_flowers(tmp_path / "pictures")
    torch.manual_seed(0)
    start = {"state_dict": resnet.resnet18(10).state_dict()}
    checkpoint.save(start, str(tmp_path / "resnet50-0676ba61.pth"))
    split, train, evaluate, predict, page = [command.replace("/data/", "%s/" % tmp_path) for command in commands_in(read(PAGE))[:5]]
    said = tool(split, capsys)
    assert "train 40 pictures, 5 classes" in said and "GOOD" in said
    shell(train.replace("--batch_size=64", "--batch_size=16").replace("--train_epochs=20", "--train_epochs=2") + SMALL + " --seed=1", forks)
    shell(evaluate + SMALL, forks)
    said = tool(predict, capsys).splitlines()
    assert [line.split()[-1] for line in said[::6]] == [str(tmp_path / "pictures" / name / "1.jpg") for name in ("daisy", "rose")]
    assert {line.split()[-1] for line in said[1:6]} == set(FLOWERS)
    assert sum(float(line.split()[0]) for line in said[1:6]) == pytest.approx(100, abs=0.05)

    trained, evaluated = (json.loads((tmp_path / "run" / path).read_text()) for path in ("report.json", "eval/report.json"))
    assert trained["parameters"]["classes"] == FLOWERS
    assert evaluated["summary"]["val.top1"] == trained["summary"]["val.best_top1"]
    best = checkpoint.load(str(tmp_path / "run" / "model_best.pth.tar"))
    assert best["classes"] == FLOWERS and best["state_dict"]["fc.weight"].shape == (5, 512)
    moved = (best["state_dict"]["layer1.0.conv1.weight"] - start["state_dict"]["layer1.0.conv1.weight"]).abs().max()
    assert 0 < moved < 0.2  # random weights of another seed would be further away
    assert_predicted_as_evaluated(tmp_path, capsys)
    if importlib.util.find_spec("matplotlib"):  # which the environments of older PyTorch lack
        tool(page, capsys)
        assert all(name in (tmp_path / "run" / "page.html").read_text() for name in FLOWERS)


def assert_predicted_as_evaluated(folder, capsys):
    """`predict` finds in each validation picture what the evaluation has noted of it."""
    with np.load(str(folder / "run" / "eval" / "predictions.npz")) as noted:
        likely, shares, names = noted["classes"], noted["shares"], noted["names"].tolist()
    assert names == FLOWERS
    pictures = sorted((folder / "mine" / "val").glob("*/*.jpg"))
    said = tool("python tools/weights.py predict %s/run/model_best.pth.tar %s" % (folder, " ".join(map(str, pictures))), capsys)
    lines = [line.split() for line in said.splitlines()]
    assert [line[-1] for line in lines[1::6]] == [FLOWERS[number] for number in likely[:, 0]]
    assert [float(line[0]) for line in lines[1::6]] == pytest.approx(100 * shares[:, 0], abs=0.01)


# --- dataset.py split -------------------------------------------------------------------------------------------------

def split(*words):
    """Run the verb in this process; return its status."""
    with pytest.raises(SystemExit) as ended:
        verbs.run("datasets", "", ["split"] + [str(word) for word in words] + ["--workers=1"])
    return ended.value.code


def sides(out):
    """Return {path below train/ or val/: (side, content)}."""
    return {"/".join(path.parts[-2:]): (path.parts[-3], path.read_bytes()) for path in out.glob("*/*/*") if path.is_file()}


def test_split_goes_by_content(tmp_path):
    """Each picture comes to one side, as many as --val says, and always to the same, whatever the files are called; DIR stays."""
    write_flowers(tmp_path / "a")
    before = {path: path.read_bytes() for path in (tmp_path / "a").glob("*/*")}
    assert split(tmp_path / "a", tmp_path / "out", "--val", "30") == 0
    found = sides(tmp_path / "out")
    assert {"/".join(path.parts[-2:]): content for path, content in before.items()} == {name: found[name][1] for name in found}
    assert [sum(side == "val" and name.startswith(flower) for name, (side, _) in found.items()) for flower in FLOWERS] == [3] * 5
    for path in before:
        path.rename(str(path.parent / hashlib.md5(path.read_bytes()).hexdigest()) + ".jpg")
    assert split(tmp_path / "a", tmp_path / "again", "--val", "30") == 0
    assert sorted(sides(tmp_path / "again").values()) == sorted(found.values())


def test_copies_stay_together(tmp_path, capsys):
    """Files with the same content come to the same side, or what was trained on would be validated with; one that is in two classes is
    a problem, and status 1. At least one picture of a class is on each side."""
    write_flowers(tmp_path / "a", count=2)
    for number in range(6):
        shutil.copy(str(tmp_path / "a" / "rose" / "1.jpg"), str(tmp_path / "a" / "rose" / ("copy %d.jpg" % number)))
    shutil.copy(str(tmp_path / "a" / "rose" / "2.jpg"), str(tmp_path / "a" / "tulip" / "3.jpg"))
    assert split(tmp_path / "a", tmp_path / "out", "--val", "1") == 1
    assert "3.jpg is in class rose and in class tulip" in capsys.readouterr().out
    found = sides(tmp_path / "out")
    assert len({side for name, (side, _) in found.items() if name.startswith("rose/copy") or name == "rose/1.jpg"}) == 1
    assert len({(name.split("/")[0], side) for name, (side, _) in found.items()}) == 10


def test_split_across_disks_and_after_a_kill(tmp_path, monkeypatch):
    """Where there are no links pictures are copied, whole or not at all; the same command goes on, and does nothing twice."""
    write_flowers(tmp_path / "a", count=3)
    monkeypatch.setattr(split_verb.os, "link", refuse)
    copyfile, copied = shutil.copyfile, []

    def interrupted(source, target):
        copied.append(target)
        if len(copied) == 4:
            raise OSError(28, "No space left on device", target)
        copyfile(source, target)
    monkeypatch.setattr(split_verb.shutil, "copyfile", interrupted)
    with pytest.raises(TrainingStopped, match="No space left on device; the same command goes on"):
        split(tmp_path / "a", tmp_path / "out")
    assert len(sides(tmp_path / "out")) == 3
    assert split(tmp_path / "a", tmp_path / "out") == 0 and len(copied) == 16
    assert sorted(content for _, content in sides(tmp_path / "out").values()) == sorted(
        path.read_bytes() for path in (tmp_path / "a").glob("*/*"))


def refuse(*words, **options):
    raise OSError(18, "Invalid cross-device link")


def test_what_cannot_be_split(tmp_path):
    """One line that says what is wrong; a folder with other files is not written to, and an unreadable picture is named."""
    write_flowers(tmp_path / "a", count=2)
    write_flowers(tmp_path / "one", ["daisy"])
    write_flowers(tmp_path / "few", ["daisy", "rose"], count=1)
    for side in ("train", "val"):
        write_flowers(tmp_path / "done" / side, count=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for words, said in ((("none", "out"), "is not a folder"), (("one", "out"), "one class folder, daisy"),
                        (("few", "out"), "daisy has 1 picture; a class needs two"), (("done", "out"), "divided already"),
                        (("a", "a/out"), "where it would be a class"), (("a", "full"), "holds notes.txt, which is not")):
        with pytest.raises(UserError, match=said):
            split(*[tmp_path / word for word in words])
    assert not (tmp_path / "out").exists() and os.listdir(str(tmp_path / "full")) == ["notes.txt"]
    (tmp_path / "a" / "rose" / "bad.jpg").write_bytes(b"no picture")
    assert split(tmp_path / "a", tmp_path / "out") == 1


# --- a new classifier -------------------------------------------------------------------------------------------------

def of_resnet50(path):
    main = load_script("ResNet50/main.py")
    args = main.checked(main.parser().parse_args(["/x", "--arch=resnet18", "--num-classes=3", "--new-classifier", "--pth-path=" + path]))
    model = main.build_model(args)
    own = dict((key, value.clone()) for key, value in model.state_dict().items())
    main.start_from_weights(model, args)
    return own, model.state_dict()


def of_hrnet(path):
    from lib.core import options
    from test_hrnet_unit import config_of
    args = SimpleNamespace(config=config_of(opts=["MODEL.NUM_CLASSES", "3"]), cfg="", use_ema="auto")
    torch.manual_seed(7)
    own = options.initial_model(args, "", ALONE).state_dict()
    torch.manual_seed(7)
    return own, options.initial_model(args, path, ALONE, new_classifier=True).state_dict()


def of_fixres(path):
    scratch = load_script("FixRes/main_resnet50_scratch.py")
    args = scratch.parser().parse_args(["--num-classes=3", "--new-classifier", "--pth-path=" + path])
    torch.manual_seed(7)
    own = scratch.networks.build("ResNet50", 3).state_dict()
    torch.manual_seed(7)
    return own, scratch.start_network(args, ALONE).state_dict()


def of_efficientnet(path):
    from pycls.core import checkpoint as of_pycls
    from pycls.models import effnet
    model = effnet("B0", cfg_list=("MODEL.NUM_CLASSES", 3))
    own = dict((key, value.clone()) for key, value in model.state_dict().items())
    of_pycls.load_weights(path, model, new_classifier=True)
    return own, model.state_dict()


@pytest.mark.parametrize("starts, classifier", [(of_resnet50, "fc."), (of_hrnet, "classifier."), (of_fixres, "fc."),
                                                (of_efficientnet, "head.fc.")])
@pytest.mark.parametrize("classes", [3, 5])
def test_a_new_classifier(tmp_path, starts, classifier, classes):
    """All weights of the file but the classifier's are taken, also from one of as many classes. (GENet's: ci/test_genet_unit.py.)"""
    checkpoint.save(state_of(starts, classes), str(tmp_path / "w.pth"))
    own, loaded = starts(str(tmp_path / "w.pth"))
    file = checkpoint.load(str(tmp_path / "w.pth"))
    expected = dict((key, own[key] if key.startswith(classifier) else value) for key, value in file.items())
    assert differences(expected, dict(loaded)) == [] and sum(key.startswith(classifier) for key in loaded) == 2


def state_of(starts, classes):
    """Return random weights of the network that `starts` builds, with another number of classes."""
    torch.manual_seed(1)
    if starts is of_hrnet:
        from lib.models import build_model
        from test_hrnet_unit import config_of
        return build_model(config_of(opts=["MODEL.NUM_CLASSES", str(classes)])).state_dict()
    if starts is of_efficientnet:
        from pycls.models import effnet
        return effnet("B0", cfg_list=("MODEL.NUM_CLASSES", classes)).state_dict()
    if starts is of_fixres:
        from imnet_common import networks
        return networks.build("ResNet50", classes).state_dict()
    return resnet.resnet18(classes).state_dict()


def test_weights_of_other_classes_are_refused_without_it(tmp_path):
    """Nobody trains from a classifier of other classes without having said so; the line says how."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Linear(4, 3))
    state = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Linear(4, 5)).state_dict()
    with pytest.raises(UserError, match=r"1.weight is 5x4 in the file and 3x4 in the network \(a training with --new_classifier"):
        checkpoint.load_weights(model, state, "w.pth")
    with pytest.raises(UserError, match="0.weight is 4x3x1x1 in the file and 4x3x3x3 in the network$"):
        checkpoint.load_weights(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 3)), state, "w.pth")
    checkpoint.load_weights(model, state, "w.pth", new_classifier=True)


@pytest.mark.parametrize("script, words", [("ResNet50/main.py", ["/x"]), ("ResNet50/main.py", ["/x", "--evaluate", "--pth-path=w"])])
def test_a_new_classifier_needs_weights(script, words):
    """Without weights to start from there is nothing to leave out, and an evaluation would be of a random classifier."""
    main = load_script(script)
    with pytest.raises(UserError, match="--new-classifier is of a training that starts from weights"):
        main.checked(main.parser().parse_args(words + ["--new-classifier"]))


# --- names of classes -------------------------------------------------------------------------------------------------

def test_names_for_bare_weights(tmp_path, capsys):
    """HRNet's best weights are a bare state dict: their names are those in the run's checkpoint; where there is none that can be read,
    numbers."""
    state = resnet.resnet18(3).state_dict()
    checkpoint.save(state, str(tmp_path / "model_best.pth.tar"))
    write_flowers(tmp_path / "a", ["daisy"], count=1)
    words = ["predict", str(tmp_path / "model_best.pth.tar"), str(tmp_path / "a" / "daisy" / "1.jpg"), "--image-size=32"]
    (tmp_path / "checkpoint.pth.tar").write_bytes(b"damaged")
    for names in (["0", "1", "2"], ["a b", "caf\udce9", "x\ny"]):
        verbs.run("weights", "", words)
        shown = [name.encode("unicode_escape").decode() if name == "x\ny" else name for name in names]
        found = capsys.readouterr().out.splitlines()[1:]
        assert len(found) == 3 and {line.split(" %  ")[1] for line in found} == {each.replace("\udce9", "\\udce9") for each in shown}
        checkpoint.save({"state_dict": state, "classes": ["a b", "caf\udce9", "x\ny"]}, str(tmp_path / "checkpoint.pth.tar"))

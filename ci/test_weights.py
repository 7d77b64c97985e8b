"""tools/weights.py: weights that go to timm, torchvision, ONNX and upstream's programs, and come from there, stay the same weights.

timm and torchvision are the real packages; logits are those of networks of full size on one small picture.
"""
import errno
import json
import os
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from common import checkpoint, device
from common.cli import TrainingStopped, UserError
from conftest import ROOT

device.import_torchvision()
timm = pytest.importorskip("timm")
safetensors = pytest.importorskip("safetensors")
pytest.importorskip("safetensors.torch")
onnxruntime = pytest.importorskip("onnxruntime")
sys.path.append(os.path.join(ROOT, "tools"))
from test_documents import commands_in, read  # noqa: E402
import verbs  # noqa: E402
from weights import _files, _layouts, _networks, onnx as onnx_verb  # noqa: E402

GE_THETA = {"depth": 10, "width": 1, "extra_params": True, "mlp": True, "extent": 4}
SMALL = {"ResNet50": "resnet18", "HRNet": "hrnet_w18_small_v1", "EfficientNet-B3": "efficientnet_b0", "FixRes": "fixres_resnet50",
         "GENet": "genet"}
SIZES = {"GENet": 32}


@pytest.fixture(autouse=True)
def leave_configuration_as_it_was():
    """pycls' configuration is one for the process."""
    yield
    from pycls.core import config
    config.reset_cfg()


def network_of(name, classes=1000, **options):
    return _networks.known(name, classes, options)


def random_state(network, seed=0):
    """Return a state dict in which every number, BatchNorm's too, matters and differs."""
    torch.manual_seed(seed)
    return dict(disturbed(_networks.build(network)).state_dict())


def disturbed(model):
    """Return the network with BatchNorms that are not as they are initialised."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.8, 1.2)
            module.bias.data.uniform_(-0.1, 0.1)
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.6, 1.4)
    return model


def run(verb, *words):
    verbs.run("weights", "", [verb] + [str(word) for word in words])


def logits(model, images):
    with torch.no_grad():
        return model.eval()(images)


def ours(network, state, images):
    """Return our network's logits for normalised RGB images (of mean and std that are those of ImageNet in both)."""
    model = _networks.build(network)
    model.load_state_dict(state)
    return logits(model, images.flip(1) if network.model == "EfficientNet-B3" else images)


def theirs(network, package, state):
    """Return the real package's network with `state`, loaded strictly."""
    name = _layouts.counterpart(network, package)
    if package == "timm":
        model = timm.create_model(name, num_classes=network.classes)
    else:
        import torchvision
        model = getattr(torchvision.models, name)(num_classes=network.classes)
    model.load_state_dict(state, strict=True)
    return model


def assert_close(found, wanted, rtol=1e-4):
    scale = float(wanted.abs().max())
    assert scale > 1e-3 and float((found - wanted).abs().max()) < rtol * scale


# --- to other packages and back ---------------------------------------------------------------------------------------

EVERYWHERE = [(name, package) for name in _networks.RESNETS + _networks.EFFICIENTNETS + ("fixres_resnet50",)
              for package in _layouts.PACKAGES] + [(name, "timm") for name in _networks.HRNETS]


@pytest.mark.parametrize("name, package", EVERYWHERE)
def test_keys_are_the_packages(name, package):
    """Every network has the keys and shapes of the package's network of that name."""
    network = network_of(name, 7)
    own = _networks.skeleton(network).state_dict()
    names = _layouts.key_names(own, network, package)
    with torch.device("meta"):
        model = timm.create_model(_layouts.counterpart(network, package), num_classes=7) if package == "timm" else \
            getattr(device.import_torchvision().models, _layouts.counterpart(network, package))(num_classes=7)
    wanted = dict((key, tuple(value.shape)) for key, value in model.state_dict().items())
    assert dict((names[key], tuple(value.shape)) for key, value in own.items()) == wanted


@pytest.mark.parametrize("name, package, suffix", [
    ("resnet50", "timm", ".safetensors"), ("resnet50", "torchvision", ".pth"), ("hrnet_w18", "timm", ".safetensors"),
    ("efficientnet_b3", "timm", ".safetensors"), ("efficientnet_b3", "torchvision", ".pth"),
    ("efficientnet_b5", "torchvision", ".safetensors"), ("fixres_resnet50", "torchvision", ".pth")])
def test_logits_are_the_same_there_and_back(tmp_path, name, package, suffix):
    """Exported weights load strictly into the real package's network and give our logits; imported again they are the same."""
    network = network_of(name, 20)
    state = random_state(network)
    checkpoint.save({"state_dict": state}, str(tmp_path / "c.pth.tar"))
    there, back = tmp_path / ("there" + suffix), tmp_path / "back.pth"
    run("export", tmp_path / "c.pth.tar", "--network=" + name, "--format=" + package, "--out=%s" % there)
    exported = _files._content(str(there))[0]
    images = torch.randn(1, 3, 64, 64)
    wanted = ours(network, state, images)
    assert_close(logits(theirs(network, package, exported), images), wanted)

    run("import", there, "--network=" + name, "--out=%s" % back)
    returned = checkpoint.weights(checkpoint.load(str(back)), "back")
    assert_close(ours(network, returned, images), wanted, 1e-5)
    assert set(returned) == set(state) and all(torch.allclose(returned[key], state[key], rtol=1e-6, atol=1e-6) for key in state)


def test_another_batchnorm_constant_is_folded(tmp_path):
    """A pycls network with BN.EPS 0.1 gives the same logits in timm, whose constant is 1e-5."""
    network = network_of("efficientnet_b0", 5, **{"BN.EPS": 0.1})
    state = random_state(network)
    content = {"model_state": state, "cfg": "BN:\n  EPS: 0.1\nMODEL:\n  ACTIVATION_FUN: silu\n"}
    checkpoint.save(content, str(tmp_path / "c.pyth"))
    run("export", tmp_path / "c.pyth", "--format=timm", "--out=%s" % (tmp_path / "t.safetensors"))
    exported, images = _files._content(str(tmp_path / "t.safetensors"))[0], torch.randn(1, 3, 64, 64)
    assert_close(logits(theirs(network, "timm", exported), images), ours(network, state, images))
    not_folded = _layouts.for_package(state, network_of("efficientnet_b0", 5), "timm")
    with pytest.raises(AssertionError):
        assert_close(logits(theirs(network, "timm", not_folded), images), ours(network, state, images))


def test_another_std_is_folded_and_another_mean_refused(tmp_path):
    """Weights trained on pictures divided by another std are imported to the same logits; another mean cannot be."""
    network = network_of("efficientnet_b0", 5)
    torch.manual_seed(0)
    model = disturbed(timm.create_model("efficientnet_b0", num_classes=5))
    checkpoint.save(model.state_dict(), str(tmp_path / "t.pth"))
    pixels, mean, std = torch.rand(1, 3, 64, 64), torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.5, 0.25, 0.2])
    run("import", tmp_path / "t.pth", "--std=0.5,0.25,0.2", "--out=%s" % (tmp_path / "c.pyth"))
    state = checkpoint.weights(checkpoint.load(str(tmp_path / "c.pyth")), "c")
    shown = [(pixels - mean.view(1, 3, 1, 1)) / each.view(1, 3, 1, 1) for each in (std, torch.tensor([0.229, 0.224, 0.225]))]
    assert_close(ours(network, state, shown[1]), logits(model, shown[0]))
    with pytest.raises(UserError, match="pads with zeros"):
        run("import", tmp_path / "t.pth", "--mean=0.5,0.5,0.5", "--out=%s" % (tmp_path / "c.pyth"))


@pytest.mark.parametrize("name, package, options, reason", [
    ("genet", "timm", {"depth": 10, "width": 1}, "gather-excite"), ("hrnet_w18", "torchvision", {}, "no HRNet"),
    ("fixres_pnasnet", "timm", {}, "TensorFlow"), ("fixres_pnasnet", "torchvision", {}, "no PNASNet"),
    ("fixres_resnext101_32x48d", "timm", {}, "no ResNeXt-101 32x48d"),
    ("efficientnet_b3", "timm", {"MODEL.ACTIVATION_FUN": "relu"}, "ReLU")])
def test_what_cannot_be_the_same_is_refused(name, package, options, reason):
    """No file is written of which the package's network would make other logits; the line says why."""
    with pytest.raises(UserError, match=reason):
        _layouts.for_package({}, network_of(name, 10, **options), package)


def test_pnasnet_of_timm_is_another_one():
    """The refusal has its reason: the same weights give other logits in timm."""
    network = network_of("fixres_pnasnet", 5)
    state = random_state(network)
    model = timm.create_model("pnasnet5large", num_classes=5)
    model.load_state_dict(state)
    images = torch.randn(1, 3, 96, 96)
    with pytest.raises(AssertionError):
        assert_close(logits(model, images), ours(network, state, images))


# --- which network a file is of ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("names", [names for _, names in _networks._FAMILIES if names != ("genet",)], ids=lambda names: names[0])
def test_networks_are_known_by_their_keys(monkeypatch, names):
    """A bare state dict, as upstreams publish it, needs no --network, however many classes it has."""
    built = dict((name, _networks.skeleton(network_of(name, 12))) for name in names)
    monkeypatch.setattr(_networks, "skeleton", lambda network: built[network.name])
    for name, module in built.items():
        state = module.state_dict()
        assert _networks.recognised(state, state) == network_of(name, 12)


@pytest.mark.parametrize("options", [
    {"depth": 16, "width": 8, "extra_params": False, "mlp": False, "extent": 0}, GE_THETA,
    {"depth": 10, "width": 2, "extra_params": True, "mlp": False, "extent": 0},
    {"depth": 10, "width": 1, "extra_params": True, "mlp": False, "extent": 2},
    {"depth": 10, "width": 1, "extra_params": True, "mlp": True, "extent": 8}])
def test_variants_of_genet_are_known_by_their_keys(options):
    """Depth, width and the gather with parameters are read from the shapes."""
    state = _networks.skeleton(network_of("genet", 10, **options)).state_dict()
    assert _networks.recognised(state, state) == network_of("genet", 10, **options)


def test_the_checkpoint_has_the_word_where_keys_cannot_tell():
    """The extent of a GENet without gather parameters, and whose ResNet-50 it is, are what the checkpoint says."""
    state = _networks.skeleton(network_of("genet", 10, depth=10, width=1)).state_dict()
    options = {"depth": 10, "width": 1, "extra_params": False, "mlp": False, "extent": 4}
    assert _networks.recognised({"network": options}, state).options == options
    state = _networks.skeleton(network_of("resnet50", 10)).state_dict()
    assert _networks.recognised({"architecture": "ResNet50"}, state).name == "fixres_resnet50"
    assert _networks.recognised({"arch": "resnet50"}, state).name == "resnet50"


# --- files ------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """{model: (network, state, path of its checkpoint, in upstream's form)} of a small network of each model, with 4 classes."""
    found = {}
    for model, name in SMALL.items():
        options = GE_THETA if model == "GENet" else {}
        network = network_of(name, 10 if model == "GENet" else 4, **options)
        state = random_state(network)
        weights = _files.Weights(network, state, {"epoch": "7", "accuracy": "61.5"}, None)
        path = str(tmp_path_factory.mktemp("checkpoints") / (model + ".pth.tar"))
        checkpoint.save(_files.upstream_form(weights), path)
        found[model] = (network, state, path)
    return found


@pytest.mark.parametrize("model", sorted(SMALL))
def test_safetensors_say_what_they_hold(tmp_path, checkpoints, model):
    """A safetensors file has our keys, and metadata with model, network, pictures, accuracy, recipe and commit; upstream's form of
    it is what the scripts read, with the same weights."""
    network, state, path = checkpoints[model]
    with open(os.path.join(os.path.dirname(path), "metrics.jsonl"), "w") as stream:
        stream.write('DLLL {"type": "LOG", "step": "PARAMETER", "data": {"lr": 0.25}}\n')
    out = str(tmp_path / "a b$.safetensors")
    run("export", path, "--out", out)
    written, notes = _files._content(out)
    assert all(torch.equal(written[key], state[key]) for key in state) and set(written) == set(state)
    assert notes["model"] == model and notes["network"] == network.name and json.loads(notes["recipe"]) == {"lr": 0.25}
    assert notes["num_classes"] == str(network.classes) and len(json.loads(notes["mean"])) == 3 and notes["commit"]
    if model != "HRNet":  # whose published form is a bare state dict
        assert float(notes["accuracy"]) == pytest.approx(61.5) and notes["epoch"] == "7"

    run("export", out, "--format=upstream", "--out=%s" % (tmp_path / "back.pth"))
    module = _networks.build(network)
    checkpoint.load_weights(module, checkpoint.load(str(tmp_path / "back.pth")), "back")
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


def test_a_machine_without_git(tmp_path, checkpoints, monkeypatch):
    """Weights are exported, and the commit is said to be unknown. Defect: a traceback."""
    monkeypatch.setenv("PATH", str(tmp_path))
    network, _, path = checkpoints["GENet"]
    run("export", path, "--network=" + network.name, "--out=%s" % (tmp_path / "w.safetensors"))
    assert _files._content(str(tmp_path / "w.safetensors"))[1]["commit"] == "unknown"


def test_notes_of_other_programs_are_none_of_ours(tmp_path, checkpoints):
    """A safetensors file may say anything under names that we use too. Defect: a traceback."""
    _, state, path = checkpoints["HRNet"]
    safetensors.torch.save_file(state, str(tmp_path / "theirs.safetensors"), {"recipe": "a long one", "classes": "1000", "image_size": "large"})
    run("export", tmp_path / "theirs.safetensors", "--out=%s" % (tmp_path / "w.safetensors"))
    assert _files._content(str(tmp_path / "w.safetensors"))[1]["image_size"] == "224"


def test_bad_files_are_one_line(tmp_path, checkpoints):
    """A file that is missing, truncated or of no network here, a wrong name of the output, and names that are too few."""
    path = checkpoints["ResNet50"][2]
    (tmp_path / "half.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    checkpoint.save({"x.weight": torch.zeros(2, 3)}, str(tmp_path / "x.pth"))
    of_timm = {"architecture": "EfficientNet", "model": timm.create_model("tf_efficientnet_b0").state_dict()}
    checkpoint.save(of_timm, str(tmp_path / "timm.pth"))
    (tmp_path / "names.txt").write_text("one\n" * 5)
    os.mkfifo(str(tmp_path / "pipe"))
    for words, said in [(["export", tmp_path / "no.safetensors", "--out=y.safetensors"], "no weights file"),
                        (["export", tmp_path / "half.safetensors", "--out=y.safetensors"], "truncated"),
                        (["export", tmp_path / "x.pth", "--out=y.safetensors"], "no network here"),
                        (["export", tmp_path / "timm.pth", "--out=y.safetensors"], "timm's own EfficientNet"),
                        (["export", path, "--network=resnet34", "--out=y.safetensors"], "not a checkpoint of this network"),
                        (["export", path, "--out=y.pth"], "name the file .safetensors"),
                        (["import", path, "--out=y.safetensors"], "PyTorch files"),
                        (["predict", path, tmp_path / "pipe"], "a pipe or a device, not a file"),
                        (["predict", path, write_picture(tmp_path), "--classes=%s" % (tmp_path / "pipe")], "a pipe or a device"),
                        (["predict", path, tmp_path / "names.txt"], "cannot be read as a picture"),
                        (["predict", path, write_picture(tmp_path), "--classes=%s" % (tmp_path / "names.txt")],
                         "5 names of classes")]:
        with pytest.raises(UserError, match=said):
            run(*words)


@pytest.mark.parametrize("words", [["export", "--out=out/m.safetensors"], ["export", "--format=timm", "--out=out/m.pth"],
                                   ["onnx", "--out=out/m.onnx", "--image-size=64"]])
def test_what_cannot_be_written_is_one_line(tmp_path, checkpoints, monkeypatch, words):
    """A place that takes no file stops each kind of writing with one line, and leaves no half file behind."""
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "replace", no_space_left)
    with pytest.raises(TrainingStopped, match="cannot write (checkpoint )?out/m.*No space left"):
        run(words[0], checkpoints["ResNet50"][2], *words[1:])
    assert os.listdir("out") == []


def no_space_left(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_commands_of_the_page(tmp_path, checkpoints, tiny_imagenet, monkeypatch):
    """Every command of docs/weights.md with tools/weights.py runs as it stands there, on a small network and small pictures."""
    pytest.importorskip("onnxscript")
    shutil.copy(checkpoints["ResNet50"][2], str(tmp_path / "model_best.pth.tar"))
    for name in ("cat.jpg", "dog.png"):
        Image.open(str(write_picture(tmp_path))).save(str(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    found = [command for command in commands_in(read("docs/weights.md")) if " tools/weights.py " in command]
    assert len(found) == 9
    for command in found:
        run(*[word.replace("/data/imagenet", str(tiny_imagenet)) for word in command.split()[2:]])
    names = {word[len("--out="):] for command in found for word in command.split() if word.startswith("--out=")}
    assert len(names) == 8 and names <= set(os.listdir(str(tmp_path)))


# --- ONNX -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("model, exporter", [(model, "legacy") for model in sorted(SMALL)] + [("ResNet50", "dynamo")])
def test_onnx_gives_pytorchs_logits(tmp_path, checkpoints, model, exporter):
    """The file of each model takes any number of pictures, and its logits are PyTorch's; opset 11 by the older exporter."""
    onnx = pytest.importorskip("onnx")
    if exporter == "dynamo":
        pytest.importorskip("onnxscript")
    network, state, path = checkpoints[model]
    out, size = str(tmp_path / "m.onnx"), SIZES.get(model, 64)
    run("onnx", path, "--network=" + network.name, "--out=" + out, "--image-size=%d" % size, "--exporter=" + exporter)
    content = onnx.load(out)
    onnx.checker.check_model(content)
    versions = [each.version for each in content.opset_import if not each.domain]
    assert versions == [11] if exporter == "legacy" else versions[0] > 11
    session, module = onnxruntime.InferenceSession(out), _networks.build(network)
    module.load_state_dict(state)
    for count in (1, 3):
        images = torch.randn(count, 3, size, size)
        found = session.run(["output1"], {"actual_input_1": images.numpy()})[0]
        assert_close(torch.from_numpy(found), logits(module, images))
    assert sorted(os.listdir(str(tmp_path))) == ["m.aippconfig", "m.onnx"]


def test_onnx_that_differs_is_not_written(tmp_path, checkpoints, monkeypatch):
    """A file whose logits are not PyTorch's is an error, and no file."""
    monkeypatch.setattr(onnx_verb, "_session", lambda path: lambda images: torch.ones(len(images), 4))
    with pytest.raises(TrainingStopped, match="was not written"):
        run("onnx", checkpoints["ResNet50"][2], "--out=%s" % (tmp_path / "m.onnx"), "--image-size=64")
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize("model", ["ResNet50", "EfficientNet-B3", "GENet"])
def test_accuracy_of_onnx_is_pytorchs(tmp_path, checkpoints, tiny_imagenet, small_cifar, capsys, model):
    """--data-path shows both networks every validation picture, as the evaluation does, and both are right equally often."""
    data_path = small_cifar if model == "GENet" else tiny_imagenet
    run("onnx", checkpoints[model][2], "--out=%s" % (tmp_path / "m.onnx"), "--image-size=%d" % SIZES.get(model, 64),
        "--data-path=%s" % data_path)
    said = capsys.readouterr().out.splitlines()[-1].split()
    assert said[:4] == ["top-1", "on", "20", "pictures:"] and said[5] == said[8]


@pytest.mark.parametrize("words, said", [(["--batch-size=64"], "has only 20 validation pictures"), (["--data-path=no"], "no")])
def test_what_accuracies_cannot_be_compared_on(tmp_path, checkpoints, tiny_imagenet, words, said):
    """Fewer pictures than one batch, or none: one line before anything is written. Defect: a division by zero beside a written file."""
    with pytest.raises(UserError, match=said):
        run("onnx", checkpoints["ResNet50"][2], "--out=%s" % (tmp_path / "m.onnx"), "--image-size=64", "--data-path=%s" % tiny_imagenet, *words)
    assert os.listdir(str(tmp_path)) == []


@pytest.fixture(scope="module")
def small_cifar(tmp_path_factory):
    """CIFAR-10's layout with 20 test pictures."""
    import pickle
    folder = tmp_path_factory.mktemp("cifar") / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.RandomState(0)
    for name in ["data_batch_%d" % number for number in range(1, 6)] + ["test_batch"]:
        batch = {"data": rng.randint(0, 256, (20, 3072)).astype(np.uint8), "labels": [int(each) for each in rng.randint(0, 10, 20)]}
        (folder / name).write_bytes(pickle.dumps(batch, 2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}, 2))
    return folder


@pytest.mark.parametrize("model", sorted(SMALL))
def test_aipp_normalises_as_training_does(model):
    """What the compiled model makes of bytes by its settings is what the network was trained on."""
    view = _networks.view_of(network_of(SMALL[model], 10, **(GE_THETA if model == "GENet" else {})))
    said = dict(line.strip().split(": ") for line in onnx_verb.aipp_of(view).splitlines()[1:-1])
    picture = np.random.RandomState(0).randint(0, 256, (view.size, view.size, 3)).astype(np.uint8)
    pixels = picture[..., ::-1] if said["rbuv_swap_switch"] == "true" else picture
    low, factor = (np.array([float(said[name % channel]) for channel in range(3)]) for name in ("min_chn_%d", "var_reci_chn_%d"))
    shown = picture[..., ::-1] if view.channels == "BGR" else picture
    wanted = _networks.normalised([shown], view)[0].permute(1, 2, 0).numpy()
    assert np.abs((pixels - low) * factor - wanted).max() < 1e-5
    assert said["src_image_size_w"] == said["src_image_size_h"] == str(view.size)


@pytest.mark.parametrize("name, classes, base", [
    ("resnet50", 1000, "resnet50"), ("hrnet_w18", 1000, "hrnet_w18"), ("genet", 10, "genet"),
    ("efficientnet_b3", 1000, "efficientnet_b3"), ("fixres_resnet50", 1000, "fixres")])
def test_page_of_a_model_shows_what_is_written(name, classes, base):
    """The settings and the command of the compiler in a model's page are those that `weights.py onnx` writes and prints."""
    network = network_of(name, classes, **({"depth": 16, "width": 8} if name == "genet" else {}))
    page, view = read(network.model + "/README.md"), _networks.view_of(network)
    assert onnx_verb.aipp_of(view) in page
    command = onnx_verb.atc_command(base + ".onnx", 16, view.size)
    assert command in " ".join(page.replace("\\\n", " ").split())


# --- pictures ---------------------------------------------------------------------------------------------------------

def write_picture(folder):
    pixels = np.random.RandomState(1).randint(0, 256, (90, 120, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(str(folder / "a picture.png"))
    return folder / "a picture.png"


@pytest.mark.parametrize("model", sorted(SMALL))
def test_predict_names_what_the_network_finds(tmp_path, checkpoints, capsys, model):
    """The five likeliest classes, likeliest first, with the names of the data set's folders, and their softmax."""
    network, state, path = checkpoints[model]
    names = ["the %d. class" % number for number in range(network.classes)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    picture = write_picture(tmp_path)
    run("predict", path, picture, "--network=" + network.name, "--classes=%s" % (tmp_path / "names.txt"), "--image-size=64")
    lines = capsys.readouterr().out.splitlines()
    module, view = _networks.build(network), _networks.view_of(network, 64)
    module.load_state_dict(state)
    shown = view.transform(view.size)(Image.open(str(picture)).convert("RGB"), None)
    wanted = torch.softmax(logits(module, _networks.normalised([shown], view))[0], 0).sort(descending=True)
    top = list(zip(*wanted))[:5]
    assert lines == [str(picture)] + ["%7.2f %%  %s" % (100 * share, names[number]) for share, number in top]


def evaluation_transform(model, size):
    """Return the transform of the model's own evaluation."""
    from common import transforms
    from imnet_common import transforms as of_fixres
    from lib.core.data import eval_transform as of_hrnet
    from pycls.datasets import transforms as of_pycls
    return {"ResNet50": lambda: transforms.eval_transform(size, size * 8 // 7), "HRNet": lambda: of_hrnet(size),
            "FixRes": lambda: of_fixres.eval_pipeline(size),
            "EfficientNet-B3": lambda: lambda image, rng: of_pycls.eval_transform(image, 256, 224)}[model]()


@pytest.mark.parametrize("model, size", [("ResNet50", 64), ("HRNet", 64), ("FixRes", 64), ("EfficientNet-B3", 224)])
def test_pictures_are_those_of_the_evaluation(model, size):
    """What a network is shown here is what the model's own evaluation shows it, pixel by pixel."""
    picture = Image.fromarray(np.random.RandomState(2).randint(0, 256, (250, 330, 3)).astype(np.uint8))
    view = _networks.view_of(network_of(SMALL[model], 4), size)
    assert np.array_equal(view.transform(size)(picture, None), evaluation_transform(model, size)(picture, None))


@pytest.mark.parametrize("name, size", [("fixres_resnet50", 384), ("fixres_pnasnet", 480), ("fixres_resnext101_32x48d", 320)])
def test_pictures_of_fixres_have_the_size_of_its_accuracies(name, size):
    """Each network is shown what docs/weights.md says. Defect: all of them 384 pixels."""
    assert _networks.view_of(network_of(name)).size == size and re.search(r"`%s` \| [\d.]+ \| %d \|" % (name, size), read("docs/weights.md"))


def test_names_of_classes_travel_with_the_weights(tmp_path, checkpoints, tiny_imagenet, capsys):
    """Names of the data set's folders, once exported, are shown without --classes; outputs without a name by their numbers."""
    out = tmp_path / "m.safetensors"
    run("export", checkpoints["ResNet50"][2], "--classes=%s" % tiny_imagenet, "--out=%s" % out)
    (tmp_path / "two").write_text("one\ntwo\n")
    for words, names in (([], ["n%08d" % number for number in range(4)]),
                         (["--classes=%s" % (tmp_path / "two")], ["2", "3", "one", "two"])):
        capsys.readouterr()
        run("predict", out, write_picture(tmp_path), "--image-size=64", *words)
        assert {line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]} == set(names)

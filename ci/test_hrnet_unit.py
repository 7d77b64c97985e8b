"""HRNet beyond the golden numbers: all nine networks, what bad configs say, and the traps of an exchange unit."""
import glob
import os
import sys
from functools import lru_cache
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from common import data, distributed
from common.cli import UserError
from common.distributed import Rank
from conftest import load_script
from lib.config import new_config, unread_settings, update_config
from lib.core.optimizer import get_optimizer
from lib.model_stats import model_stats
from lib.models import build_model
from lib.models.cls_hrnet import (BasicBlock, HighResolutionModule, HighResolutionNet, apply_transition, check_image_size,
                                  make_transition)

EXPERIMENTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "HRNet", "experiments")
FILE_NAME = "cls_hrnet_%s_sgd_lr5e-2_wd1e-4_bs32_x100.yaml"
W18_SMALL = os.path.join(EXPERIMENTS, FILE_NAME % "w18_small_v1")

# name: parameters in millions and multiply-adds / 1024**3 as upstream publishes them, shown there with as many digits
PUBLISHED = {"w18_small_v1": (13.2, "1.49"), "w18_small_v2": (15.6, "2.42"), "w18": (21.3, "3.99"), "w30": (37.7, "7.55"),
             "w32": (41.2, "8.31"), "w40": (57.6, "11.8"), "w44": (67.1, "13.9"), "w48": (77.5, "16.1"), "w64": (128.1, "26.9")}


def config_of(path=W18_SMALL, opts=()):
    config = new_config()
    update_config(config, SimpleNamespace(cfg=str(path), modelDir="", logDir="", dataDir="", testModel="", opts=list(opts)))
    return config


def complaint(path=W18_SMALL, opts=()):
    with pytest.raises(UserError) as caught:
        config_of(path, opts)
    return str(caught.value)


# ---- the nine networks ---------------------------------------------------------------------------------------------------

def test_nine_experiments():
    """All nine files are there under upstream's names, and nothing else is."""
    assert sorted(os.path.basename(path) for path in glob.glob(os.path.join(EXPERIMENTS, "*"))) == sorted(
        FILE_NAME % name for name in PUBLISHED)


@lru_cache(maxsize=None)
def described(name):
    """Return ({key: shape} of the state dict, ModelStats at 224) of a network, built once for all tests."""
    model = HighResolutionNet(config_of(os.path.join(EXPERIMENTS, FILE_NAME % name)))
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}, model_stats(model, 224, 224)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_size_is_upstreams(name):
    """Parameters and multiply-adds of each network round to what upstream publishes."""
    stats = described(name)[1]
    millions, giga = PUBLISHED[name]
    assert round(stats.parameters / 1e6, 1) == millions
    assert "%.*f" % (len(giga.split(".")[1]), stats.giga_multiply_adds) == giga


@pytest.mark.parametrize("name", ["w30", "w32", "w40", "w44", "w48", "w64"])
def test_wider_networks_have_the_keys_of_w18(name):
    """Upstream's weights of the wider networks load: w18's keys in w18's order, branch channels scaled with the width."""
    width = int(name[1:])
    expected = {key: tuple(width * size // 18 if size in (18, 36, 72, 144) else size for size in shape)
                for key, shape in described("w18")[0].items()}
    assert list(described(name)[0].items()) == list(expected.items())


def test_small_v2_is_a_shallower_w18():
    """Upstream's weights of w18_small_v2 load: a part of w18's keys, in w18's order and shapes."""
    small, w18 = described("w18_small_v2")[0], described("w18")[0]
    assert list(small.items()) == [item for item in w18.items() if item[0] in small]


# ---- config --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, words", [
    ("TRAIN:\n  LRR: 0.1\n", ["unknown config key TRAIN.LRR", "did you mean TRAIN.LR"]),
    ("TRAIN:\n  LR: 1\n", ["TRAIN.LR should be of type float", "not 1"]),
    ("TRAIN:\n  LR_STEP: 30\n", ["TRAIN.LR_STEP should be of type list", "not 30"]),
    ("GPUS: (0)\n", ["GPUS should be of type tuple", "not 0"]),
    ("TRAIN: 3\n", ["TRAIN should be a group of keys"]),
    ("TRAIN:\n  LR:\n", ["TRAIN.LR has no value"]),
    ("- TRAIN\n", ["holds no configuration tree"]),
    ("TRAIN: [\n", ["is not a YAML file"]),
])
def test_bad_yaml_names_file_and_key(tmp_path, text, words):
    """A mistake in a YAML is found at once, in the user's terms."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    message = complaint(path)
    assert str(path) in message
    assert all(word in message for word in words), message


def test_missing_yaml(tmp_path):
    """A wrong --cfg is named."""
    assert "nowhere.yaml cannot be read" in complaint(tmp_path / "nowhere.yaml")
    os.mkfifo(str(tmp_path / "pipe.yaml"))  # which would be waited for
    assert "pipe.yaml cannot be read: a pipe or a device" in complaint(tmp_path / "pipe.yaml")
    assert "cannot be read" in complaint(tmp_path)


@pytest.mark.parametrize("opts, words", [
    (["TRAIN.LRR", "0.1"], ["the command line", "TRAIN.LRR", "did you mean TRAIN.LR"]),
    (["TRAIN.LR", "fast"], ["the command line", "TRAIN.LR should be of type float", "fast"]),
    (["TRAIN.LR"], ["not pairs", "TRAIN.LR"]),
    (["TRAIN", "3"], ["unknown config key TRAIN"]),
])
def test_bad_override(opts, words):
    """A mistake in KEY VALUE at the end of the command is found at once."""
    message = complaint(opts=opts)
    assert all(word in message for word in words), message


def test_overrides_win():
    """KEY VALUE goes before the YAML, and a data root given there is not replaced."""
    config = config_of(opts=["TRAIN.LR", "0.2", "DATASET.ROOT", "/images", "MODEL.EXTRA.STAGE2.NUM_MODULES", "2"])
    assert (config.TRAIN.LR, config.DATASET.ROOT, config.MODEL.EXTRA.STAGE2.NUM_MODULES) == (0.2, "/images", 2)
    assert config_of(opts=["DATA_DIR", "data"]).DATASET.ROOT == os.path.join("data", "imagenet", "images")


def test_settings_that_nothing_reads_are_reported():
    """A key that looks alive and is not does not stay unnoticed."""
    assert unread_settings(config_of()) == []
    assert unread_settings(config_of(opts=["TRAIN.SHUFFLE", "False", "DEBUG.DEBUG", "True"])) == [
        "DEBUG.DEBUG", "TRAIN.SHUFFLE"]


@pytest.mark.parametrize("opts, words", [
    (["MODEL.NAME", "pose_hrnet"], ["pose_hrnet", "cls_hrnet"]),
    (["MODEL.EXTRA.STAGE2.BLOCK", "FANCY"], ["STAGE2.BLOCK", "FANCY", "BOTTLENECK"]),
    (["MODEL.EXTRA.STAGE3.NUM_BLOCKS", "[2, 2]"], ["STAGE3.NUM_BRANCHES is 3", "NUM_BLOCKS has 2 entries"]),
    (["MODEL.EXTRA.STAGE3.NUM_CHANNELS", "[16, 32, 64, 128]"], ["STAGE3.NUM_BRANCHES is 3", "NUM_CHANNELS has 4 entries"]),
    (["MODEL.EXTRA.STAGE4.FUSE_METHOD", "CAT"], ["STAGE4.FUSE_METHOD", "CAT", "SUM"]),
    (["MODEL.EXTRA.STAGE4.NUM_MODULES", "0"], ["STAGE4.NUM_MODULES is 0", "positive integer"]),
    (["MODEL.EXTRA.STAGE1.NUM_BLOCKS", "[0]"], ["STAGE1.NUM_BLOCKS is [0]", "positive integer"]),
])
def test_description_of_no_network(opts, words):
    """What MODEL says is checked, both numbers named, before anything is trained."""
    with pytest.raises(ValueError) as caught:
        build_model(config_of(opts=opts))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_stage_that_is_missing(tmp_path):
    """A YAML without the stages says so."""
    path = tmp_path / "mine.yaml"
    path.write_text("MODEL:\n  EXTRA:\n    STAGE1: 3\n")
    with pytest.raises(ValueError, match="MODEL.EXTRA.STAGE1 lacks BLOCK"):
        build_model(config_of(path))


# ---- exchange unit -------------------------------------------------------------------------------------------------------

def test_exchange_unit_adds_every_branch():
    """y_i = ReLU(sum over j of f_ij(x_j)), and neither the inputs nor the branches are changed on the way."""
    torch.manual_seed(0)
    unit = HighResolutionModule(BasicBlock, [4, 8, 16], [1, 1, 1], [4, 8, 16]).eval()
    inputs = [torch.randn(2, 4 * 2 ** b, 16 // 2 ** b, 16 // 2 ** b) for b in range(3)]
    before = [x.clone() for x in inputs]
    with torch.no_grad():
        outputs = unit(inputs)
        branches = [branch(x) for branch, x in zip(unit.branches, before)]
        for i, output in enumerate(outputs):
            total = sum(unit.fuse_layers[i][j](branches[j]) for j in range(3))
            assert torch.allclose(output, total.clamp(min=0), atol=1e-6)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before))


def test_single_branch_is_returned():
    """With one branch there is no fusion and no further ReLU."""
    unit = HighResolutionModule(BasicBlock, [4], [1], [4]).eval()
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        output, = unit([x])
        assert torch.equal(output, unit.branches[0](x))
    assert not any(key.startswith("fuse_layers") for key in unit.state_dict())


def test_transition_feeds():
    """A branch that stays is fed from itself, also where its channels change; a new one from the coarsest."""
    layers = make_transition([4, 8], [4, 6, 16, 32]).eval()
    branches = [torch.randn(1, 4, 16, 16), torch.randn(1, 8, 8, 8)]
    with torch.no_grad():
        outputs = apply_transition(layers, branches)
    assert [tuple(x.shape[1:]) for x in outputs] == [(4, 16, 16), (6, 8, 8), (16, 4, 4), (32, 2, 2)]
    assert outputs[0] is branches[0]
    assert len(branches) == 2


def test_head_rectifies_no_sum():
    """The sums of the head stay signed: only its convolutions are followed by a ReLU."""
    torch.manual_seed(0)
    model = build_model(config_of()).eval()
    seen = []
    model.final_layer.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model._modules["incre_modules"][3].register_forward_hook(lambda module, inputs, output: output - 1e6)
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    assert float(seen[0].max()) < 0


@pytest.mark.parametrize("size", [1, 29, 32, 61, 64, 221, 224, 320])
def test_sizes_that_fit(size):
    """Every size the check accepts goes through the network (1 is accepted by neither)."""
    if size == 1:
        with pytest.raises(ValueError):
            check_image_size(size)
        return
    check_image_size(size)
    if size <= 64:
        model = build_model(config_of()).eval()
        with torch.no_grad():
            assert model(torch.zeros(1, 3, size, size)).shape == (1, 1000)


@pytest.mark.parametrize("size, fits", [(28, 32), (100, 96), (225, 224), (256 + 20, 288)])
def test_sizes_that_do_not_fit(size, fits):
    """A size at which branches would not meet is refused in words, with one that fits."""
    with pytest.raises(ValueError, match="%d pixels.*%d does" % (size, fits)):
        check_image_size(size)
    check_image_size(fits)
    with pytest.raises(RuntimeError):
        with torch.no_grad():
            build_model(config_of()).eval()(torch.zeros(1, 3, size, size))


# ---- optimizer and statistics --------------------------------------------------------------------------------------------

def test_other_optimizers():
    """adam and rmsprop run (upstream's rmsprop asks for keys that its tree lacks); another name is refused."""
    layer = torch.nn.Linear(2, 2)
    rmsprop = get_optimizer(config_of(opts=["TRAIN.OPTIMIZER", "rmsprop"]), layer, 0.1)
    assert (rmsprop.defaults["alpha"], rmsprop.defaults["weight_decay"]) == (0.99, 0.0001)
    assert get_optimizer(config_of(opts=["TRAIN.OPTIMIZER", "adam"]), layer, 0.1).defaults["lr"] == 0.1
    with pytest.raises(ValueError, match="'lion'.*sgd, adam, rmsprop"):
        get_optimizer(config_of(opts=["TRAIN.OPTIMIZER", "lion"]), layer, 0.1)


def test_statistics_leave_the_model_alone():
    """A run with the summary at its start is the run without it: mode, statistics and random state stay."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, groups=1), torch.nn.BatchNorm2d(4), torch.nn.Flatten(),
                                torch.nn.Linear(4 * 6 * 6, 2)).train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(3)
    stats = model_stats(model, 8, 8)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    assert model.training and all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert stats.multiply_adds == 4 * 27 * 36 + 4 * 36 * 2
    assert stats.parameters == 4 * 27 + 4 + 8 + 4 * 36 * 2 + 2
    assert stats.calls == {"Conv2d": 1, "BatchNorm2d": 1, "Flatten": 1, "Linear": 1}


# ---- flags ---------------------------------------------------------------------------------------------------------------

def test_stop_step_values():
    """--stop_step is a number of steps; the port's TRUE means 200, and FALSE is no stop."""
    stop_step = load_script("HRNet/tools/train.py").stop_step
    assert (stop_step("TRUE"), stop_step("False"), stop_step("17")) == (200, None, 17)
    with pytest.raises(Exception, match="not an integer from 1"):
        stop_step("0")


def test_epoch_lengths():
    """An epoch keeps its last images: ImageNet has 5005 steps of 256 on one card and 626 on each of eight."""
    def batches(length, batch, rank, world):
        return data.TrainBatches(length, batch, Rank(rank, world, rank, torch.device("cpu")), seed=1, drop_last=False)

    assert len(batches(1281167, 256, 0, 1)) == 5005
    assert len(batches(1281167, 256, 3, 8)) == 626
    seen = [[index for batch in batches(21, 4, rank, 2) for _, index in batch] for rank in (0, 1)]
    assert [len(part) for part in seen] == [11, 11]
    assert sorted(set(seen[0] + seen[1])) == list(range(21))
    sampler = torch.utils.data.distributed.DistributedSampler(range(21), num_replicas=2, rank=1)
    sampler.set_epoch(1)  # the seed takes the epoch's part where a version has none
    assert list(sampler) == seen[1]
    resumed = batches(21, 4, 1, 2)
    resumed.set_epoch(0, first_step=2)
    assert [len(batch) for batch in resumed] == [3]


def launched(*words):
    """Return the arguments with which train.py would start its ranks."""
    with mock.patch.object(distributed, "launch") as launch, mock.patch.object(data, "check_layout"):
        with mock.patch.object(sys, "argv", ["train.py", "--cfg=" + W18_SMALL, "--device=cpu"] + list(words)):
            load_script("HRNet/tools/train.py").main()
    return launch.call_args[0][1]


def test_flags_and_keys():
    """--nproc counts the loader processes of all cards, --workers those of one process; the data path may be left out before KEY
    VALUE overrides; --lr is the rate of one rank's batch and counts as many as make an update, TRAIN.LR is used as it is."""
    assert launched("--device_list=0,1,2", "--nproc=8", "data").workers == 2
    assert launched("--device_list=0,1,2", "--nproc=8", "--workers=5", "data").workers == 5
    for words, expected in ((["data", "TRAIN.WD", "0.0"], ("data", 0.0)), (["TRAIN.WD", "0.0"], ("imagenet/images", 0.0)),
                            (["data"], ("data", 0.0001))):
        args = launched(*words)
        assert (args.data_path, args.config.TRAIN.WD) == expected
    for words, rate in ((["--lr=0.1"], 0.6), (["TRAIN.LR", "0.1"], 0.1)):
        assert launched("--device_list=0,1,2", "--accumulate=2", "data", *words).config.TRAIN.LR == pytest.approx(rate)


@pytest.mark.parametrize("words, message", [
    (["--dn=2", "--device_id=2"], "no rank of --dn=2"),
    (["--dn=4", "--device_list=0,1"], "--dn=4, but 2 rank"),
])
def test_ranks_that_do_not_fit(words, message):
    """--dn, --device_id and --device_list must agree."""
    with pytest.raises(UserError, match=message):
        launched(*words)

"""EfficientNet-B3's parts: log lines, configuration, weights, averages, pictures, loaders. No process is started."""
import json
import logging as std_logging
import os
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from common import checkpoint as files, jpeg, precision
from common.cli import UserError
from common.distributed import Rank
from common.meters import AverageMeter, Result, Tally
from common.optimizer import set_rate
from common.progress import Run
from conftest import CI, write_images
from fill import fill_state_dict, make_image, make_input
from pycls.core import benchmark, checkpoint, config, meters, net, optimizer, trainer
from pycls.core.config import cfg
from pycls.datasets import augment, loader, transforms
from pycls.models import effnet
from pycls.models.effnet import EffNet

with open(os.path.join(CI, "golden", "EfficientNet-B3.json")) as stream:
    COMPONENTS = json.load(stream)["components"]
CONFIGS = os.path.join(CI, "..", "EfficientNet-B3", "configs", "dds_baselines", "effnet")
B3 = os.path.join(CONFIGS, "EN-B3_dds_1npu_full.yaml")
RANK = Rank(0, 1, 0, torch.device("cpu"))
ARGS = SimpleNamespace(use_ema="auto", amp_dtype=None, compile=None)
TINY = {"MODEL.TYPE": "effnet", "MODEL.ACTIVATION_FUN": "silu", "EN.STEM_W": 8, "EN.DEPTHS": [1, 2, 2], "EN.WIDTHS": [8, 12, 20],
        "EN.STRIDES": [1, 2, 2], "EN.EXP_RATIOS": [1, 4, 6], "EN.KERNELS": [3, 5, 3], "EN.HEAD_W": 40, "TRAIN.IM_SIZE": 32,
        "TEST.IM_SIZE": 36, "TRAIN.DATASET": "imagenet", "TEST.DATASET": "imagenet", "DATA_LOADER.NUM_WORKERS": 0,
        "TRAIN.BATCH_SIZE": 8, "TEST.BATCH_SIZE": 8}


@pytest.fixture(autouse=True)
def tiny_config(tmp_path):
    """A small network and an output folder of the test's own; the defaults are put back afterwards."""
    config.reset_cfg()
    configure(dict(TINY, OUT_DIR=str(tmp_path)))
    yield
    config.reset_cfg()


def configure(keys):
    for key, value in keys.items():
        cfg.merge_from_list([key, value])


def filled():
    model = EffNet()
    model.load_state_dict(fill_state_dict(model.state_dict()))
    return model


# ---- log lines -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, batch_size", [("log_lines", 256), ("log_lines_npu_port", 512)])
def test_log_lines(name, batch_size, monkeypatch, caplog):
    """json_stats lines are upstream's, and the Ascend port's FPS and batch_size are in them (of evaluation steps its own)."""
    golden = COMPONENTS[name]
    configure({"LOG_PERIOD": 2, "OPTIM.MAX_EPOCH": 100, "TRAIN.BATCH_SIZE": batch_size, "TEST.BATCH_SIZE": 200})
    monkeypatch.setattr(meters, "memory_mb", lambda device: 8124)
    with caplog.at_level(std_logging.INFO):
        feed_meters(golden["feed"], batch_size)
    found = [record.getMessage() for record in caplog.records]
    if name == "log_lines":
        for line, wanted in zip(found, golden["lines"]):
            stats = {key: value for key, value in parsed(line).items() if key not in ("FPS", "batch_size")}
            assert meters.logging.stats_line(stats, stats["_type"]) == wanted
    else:  # the port divided the training batch by the time of an evaluation step
        wanted = [line.replace('"FPS": 2048', '"FPS": 800').replace('"batch_size": 512', '"batch_size": 200')
                  if '"test_' in line else line for line in golden["lines"]]
        assert found == wanted
    assert len(found) == len(golden["lines"])


def feed_meters(feed, batch_size):
    """Say what the steps of `feed`, of 0.25 s each, give, and log a line after every second one and after each epoch."""
    train, test = meters.TrainMeter(6, RANK.device), meters.TestMeter(4, RANK.device)
    for i, step in enumerate(feed):
        in_training = step["phase"] == "train"
        if step["iter"] == 0:
            tally = Tally("a test")
            rate = (batch_size if in_training else 200) / 0.25
            clock = SimpleNamespace(images_per_second=rate, step_time=AverageMeter("Time"))
        clock.step_time.update(0.25)
        hits = [step["mb_size"] * (1 - step[key] / 100) for key in ("top1_err", "top5_err")]
        tally._count(step["mb_size"], step.get("loss", 0.0), *hits)
        now = SimpleNamespace(epoch=step["epoch"], step=step["iter"], tally=tally)
        if (step["iter"] + 1) % cfg.LOG_PERIOD == 0:
            tally.read()
            if in_training:
                train.log_iter_stats(now, clock, step["lr"])
            else:
                test.log_iter_stats(now.epoch, now.step, tally, clock)
        if i + 1 == len(feed) or feed[i + 1]["phase"] != step["phase"]:
            if in_training:
                train.log_epoch_stats(now, clock, step["lr"])
            else:
                test.log_epoch_stats(now.epoch, tally.result(RANK), clock)


def parsed(line):
    return json.loads(line.split("json_stats: ")[1])


def test_no_fps_before_a_steady_step():
    """What was not measured is not in the line."""
    assert "FPS" not in meters._rate(SimpleNamespace(images_per_second=None), 8)


def test_config_line_is_the_whole_tree():
    """The first data line holds the nested configuration, not rounded."""
    found = parsed(meters.logging.config_line(cfg))
    assert found["_type"] == "cfg" and found["OPTIM"]["WEIGHT_DECAY"] == 5e-4 and found["EN"]["DEPTHS"] == [1, 2, 2]


def test_time_string():
    """Remaining time is DD,HH:MM:SS."""
    assert meters.time_string(2 * 86400 + 3 * 3600 + 4 * 60 + 5.9) == "02,03:04:05"


# ---- configuration ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("opts, words", [
    (["NO.SUCH", "1"], "NO"), (["OPTIM.BASE_LR", "1"], "OPTIM.BASE_LR"), (["BN.USE_PRECISE_STATS", "true"], "BN.USE_PRECISE_STATS"),
    (["NUM_GPUS"], "NUM_GPUS"), (["--device", "cpu"], "--device"), (["TRAIN.IM_SIZE", "343"], "TEST.IM_SIZE 342"),
    (["NUM_GPUS", "3"], "TRAIN.BATCH_SIZE 128"), (["TRAIN.ACCUMULATE", "3"], "TRAIN.ACCUMULATE 3"), (["TRAIN.ACCUMULATE", "0"], "from 1 to"),
    (["NUM_GPUS", "16"], "TEST.BATCH_SIZE 200"), (["MODEL.TYPE", "resnet"], "MODEL.TYPE"),
    (["TRAIN.AUGMENT", "RandAugment"], "RandAugment_N2_M0.5"), (["TRAIN.AUGMENT", "RandAugment_M2"], "TRAIN.AUGMENT"),
    (["TRAIN.AUGMENT", "AutoAugment_M1"], "TRAIN.AUGMENT"), (["TRAIN.AUGMENT", "X"], "TRAIN.AUGMENT"),
    (["TRAIN.AUGMENT", "RandAugment_M0.5_Q1"], "TRAIN.AUGMENT"), (["TRAIN.SPLIT", "trian"], "TRAIN.SPLIT"),
    (["OPTIM.STEPS", "[1, 2]"], "OPTIM.STEPS"), (["OPTIM.LR_POLICY", "exp"], "OPTIM.MIN_LR"), (["OPTIM.LR_POLICY", "steps"], "STEPS"),
    (["EN.DEPTHS", "[1, 2]"], "EN.DEPTHS"), (["EN.KERNELS", "[3,3,4,3,5,5,3]"], "odd"), (["LOG_DEST", "stderr"], "LOG_DEST"),
    (["EN.DEPTHS", "['a',3,3,5,5,6,2]"], "EN.DEPTHS"), (["TRAIN.OPT_LEVEL", "O3"], "O0, O1 or O2"),
    (["TRAIN.MIXED_PRECISION", "True"], "TRAIN.OPT_LEVEL"), (["OPTIM.DAMPENING", "0.1"], "NESTEROV"),
])
def test_bad_configuration(opts, words):
    """Everything that cannot work is refused before anything runs, in words that name the key."""
    with pytest.raises(UserError) as error:
        config.load_cfg(B3, opts)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name, text, words", [
    ("a.yaml", "MODEL: {TYPE: [", "a.yaml"), ("a.yaml", "just words", "a.yaml"), ("a.py", "cfg = {}", "YAML"), ("a.yaml", None, "no such file")])
def test_bad_configuration_file(tmp_path, name, text, words):
    """A file that is missing or is no YAML is named; Python files, which yacs would run, are refused."""
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as error:
        config.load_cfg(str(path))
    assert words in str(error.value)


def test_exponents_in_yaml_are_floats(tmp_path):
    """`1e-5` is a string in YAML 1.1; it has to arrive as a number."""
    config.load_cfg(B3)
    assert cfg.OPTIM.WEIGHT_DECAY == 1e-5 and isinstance(cfg.OPTIM.WEIGHT_DECAY, float)
    config.load_cfg(B3, ["OPTIM.WEIGHT_DECAY", "3e-4"])
    assert cfg.OPTIM.WEIGHT_DECAY == 3e-4


def test_ranks_get_the_configuration_that_was_checked(tmp_path):
    """The text that goes to the ranks makes the same tree, and the written config.yaml does too."""
    config.load_cfg(B3, ["OUT_DIR", str(tmp_path), "EN.DC_RATIO", "0.2", "TRAIN.AUGMENT", "RandAugment_N2_M0.5", "OPTIM.STEPS", "(0, 3)"])
    before = cfg.dump()
    config.dump_cfg()
    config.from_text(before)
    assert cfg.dump() == before
    config.load_cfg(str(tmp_path / "config.yaml"))
    assert cfg.dump() == before


def test_npu_recipe_states_its_precision():
    """The four NPU files train with O2 and the loss scale 128, the others in float32, as upstream."""
    for name in sorted(os.listdir(CONFIGS)):
        config.load_cfg(os.path.join(CONFIGS, name))
        assert (cfg.TRAIN.OPT_LEVEL, cfg.TRAIN.LOSS_SCALE) == (("O2", 128.0) if "npu" in name else ("O0", 0.0)), name
        assert cfg.TEST.IM_SIZE == pytest.approx(cfg.TRAIN.IM_SIZE * 256 / 224, abs=1)


@pytest.mark.parametrize("keys, level", [
    ({}, "O0"), ({"TRAIN.MIXED_PRECISION": True}, "O1"), ({"TRAIN.OPT_LEVEL": "O2", "TRAIN.LOSS_SCALE": 128.0}, "O2")])
def test_precision_of_training_and_evaluation(keys, level):
    """MIXED_PRECISION is upstream's O1, under which evaluation is in float32; OPT_LEVEL is apex's level."""
    configure(keys)
    model, _, amp = trainer.initialize_precision(EffNet(), optimizer.construct_optimizer(EffNet()), RANK, None)
    assert amp.opt_level == level or amp.note  # before PyTorch 1.10 a CPU runs O0, and says so
    _, _, evaluating = trainer.initialize_precision(EffNet(), None, RANK, None)
    assert evaluating.opt_level == ("O0" if level == "O1" else level) or evaluating.note


# ---- weights and checkpoints -----------------------------------------------------------------------------------------------

def test_weights_of_a_folder_or_a_file(tmp_path):
    """A folder stands for its model.pyth; of two sets in it the better one loads, or the one asked for; half precision does too."""
    weights, model = filled().state_dict(), EffNet()
    worse = {key: torch.zeros_like(value) for key, value in weights.items()}
    torch.save({"model_state": worse, "ema_state": weights, "test_err": 20.0, "ema_err": 19.0}, str(tmp_path / "model.pyth"))
    assert "under the key ema_state of" in checkpoint.load_weights(str(tmp_path), model)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    checkpoint.load_weights(str(tmp_path), model, use_ema="false")
    assert not any(value.double().abs().sum() for value in model.state_dict().values())
    half = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    torch.save({"model_state": half}, str(tmp_path / "half.pyth"))
    checkpoint.load_weights(str(tmp_path / "half.pyth"), model)
    assert model.stem.conv.weight.dtype == torch.float32 and torch.allclose(model.stem.conv.weight, weights["stem.conv.weight"], rtol=1e-3)


@pytest.mark.parametrize("path, words", [("https://dl.fbaipublicfiles.com/pycls/x.pyth", "nothing is downloaded"), ("/no/such", "no weights"),
                                         ("FOLDER", "without model.pyth")])
def test_weights_that_are_not_there(tmp_path, path, words):
    """Nothing is fetched from the network; a missing file or an empty folder is named."""
    with pytest.raises(UserError, match=words):
        checkpoint.load_weights(path.replace("FOLDER", str(tmp_path)), EffNet())


@pytest.fixture
def no_signals(monkeypatch):
    """Progress must not take SIGTERM from the test run."""
    monkeypatch.setattr("common.preemption.signal.signal", lambda *_: None)


def make_progress():
    model = filled()
    parts = {"model_state": model, "optimizer_state": optimizer.construct_optimizer(model)}
    return checkpoint.make_progress(RANK, parts), parts


def end_epoch(progress, parts, error):
    result = Result(100.0 - error, 90.0, 1.0)
    progress.note_evaluation(result)
    return checkpoint.end_epoch(progress, parts, {"test": result}, RANK)


def test_every_epoch_has_its_checkpoint(tmp_path, no_signals):
    """Each epoch's file is written, the last too, in upstream's layout; model.pyth is the best, of equals the newest (defect 18)."""
    progress, parts = make_progress()
    paths = [end_epoch(progress, parts, error) for error in (50.0, 40.0, 45.0, 40.0)]
    assert [os.path.relpath(path, str(tmp_path)) for path in paths] == ["checkpoints/model_epoch_%04d.pyth" % n for n in (1, 2, 3, 4)]
    content = files.load(paths[2])
    assert content["epoch"] == 2 and content["test_err"] == 45.0 and "OPTIM:" in content["cfg"]
    assert set(content) == {"epoch", "model_state", "optimizer_state", "cfg", "test_err"}
    assert list(content["model_state"]) == list(EffNet().state_dict())
    assert files.load(str(tmp_path / "model.pyth"))["epoch"] == 3
    newest = files.load(str(tmp_path / "checkpoint.pth.tar"))
    assert (newest["epoch"], newest["step"], newest["best_acc1"]) == (4, 0, 60.0)


def test_best_error_survives_a_resume(tmp_path, no_signals):
    """The first epoch after a resume does not replace a better model.pyth."""
    progress, parts = make_progress()
    end_epoch(progress, parts, 30.0)
    progress, parts = make_progress()
    assert progress.resume(*checkpoint.choose(None, RANK)) == []
    assert progress.epoch == 1 and progress.best == 70.0
    end_epoch(progress, parts, 35.0)
    assert files.load(str(tmp_path / "model.pyth"))["test_err"] == 30.0


def test_upstreams_checkpoint_resumes(tmp_path, no_signals):
    """A run of upstream goes on here: the newest of its files, at the epoch after the one that has ended."""
    model = filled()
    os.makedirs(str(tmp_path / "checkpoints"))
    for epoch in (8, 9):
        torch.save({"epoch": epoch, "model_state": model.state_dict(), "optimizer_state": optimizer.construct_optimizer(model).state_dict(),
                    "cfg": "NUM_GPUS: 8\n"}, str(tmp_path / "checkpoints" / ("model_epoch_%04d.pyth" % (epoch + 1))))
    progress, parts = make_progress()
    content, source = checkpoint.choose("auto", RANK)
    assert source.endswith("model_epoch_0010.pyth") and progress.resume(content, source) == []
    assert (progress.epoch, progress.step) == (10, 0)


def test_model_zoo(tmp_path):
    """A network by its name, with weights from a file and overrides; nothing is downloaded."""
    model = effnet("EfficientNet-B0", cfg_list=("MODEL.NUM_CLASSES", 10))
    assert not model.training and model.head.fc.out_features == 10 and cfg.TRAIN.IM_SIZE == 224
    torch.save(fill_state_dict(model.state_dict()), str(tmp_path / "b0.pyth"))
    again = effnet("B0", str(tmp_path / "b0.pyth"), ("MODEL.NUM_CLASSES", 10))
    assert torch.equal(again.state_dict()["stem.bn.weight"], fill_state_dict(model.state_dict())["stem.bn.weight"])
    with pytest.raises(UserError, match="B0, B1"):
        effnet("B9")


# ---- averages and statistics -----------------------------------------------------------------------------------------------

def test_moving_average_of_weights():
    """Every 32 steps, a = 1e-5 * batch / epochs * 32; during warm-up the weights are copied; buffers follow too."""
    configure({"OPTIM.EMA_UPDATE_PERIOD": 32, "OPTIM.MAX_EPOCH": 4, "OPTIM.WARMUP_EPOCHS": 1, "TRAIN.BATCH_SIZE": 512})
    model, ema = filled(), EffNet()
    assert net.ema_alpha(0) == 1.0 and net.ema_alpha(1) == pytest.approx(1e-5 * 512 / 4 * 32)
    net.update_ema(ema, model, 32, 0)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in ema.state_dict().items())
    before = ema.stem.conv.weight.clone(), ema.stem.bn.running_var.clone()
    for parameter in model.parameters():
        parameter.data.zero_()
    model.stem.bn.running_var.zero_()
    net.update_ema(ema, model, 33, 1)
    assert torch.equal(ema.stem.conv.weight, before[0])  # not a 32nd step
    net.update_ema(ema, model, 64, 1)
    keep = 1 - net.ema_alpha(1)
    assert torch.allclose(ema.stem.conv.weight, before[0] * keep) and torch.allclose(ema.stem.bn.running_var, before[1] * keep)


def test_moving_average_follows_master_weights():
    """Under O2 the average is of the float32 master weights, in a float32 network."""
    configure({"OPTIM.EMA_UPDATE_PERIOD": 1, "OPTIM.WARMUP_EPOCHS": 1})
    model, ema = filled(), EffNet()
    masters = model.state_dict()["stem.conv.weight"].clone()
    model, _, amp = precision.initialize(model, optimizer.construct_optimizer(model), "O2", 128.0)
    net.update_ema(ema, model, 1, 0)
    assert model.stem.conv.weight.dtype == (torch.float32 if amp.note else torch.bfloat16)
    assert torch.equal(ema.stem.conv.weight, masters)


@pytest.mark.parametrize("batch, length, batches", [(8, 5, 5), (8, 2000, 1024), (512, 100, 16), (16384, 3, 1)])
def test_precise_bn_has_at_least_one_batch(batch, length, batches):
    """A total batch above BN.NUM_SAMPLES_PRECISE does not kill the network with statistics of nothing; it is the batch of a step."""
    cfg.TRAIN.BATCH_SIZE, cfg.TRAIN.ACCUMULATE = 4 * batch, 4
    assert net.precise_bn_batches(length) == batches


def test_precise_bn_refuses_no_batch():
    """No batch at all is an error, not a network of zeros."""
    with pytest.raises(ValueError):
        net.compute_precise_bn_stats(filled(), [])


def test_timing_leaves_no_trace():
    """Timing before training changes neither weights nor statistics nor gradients, and scales the loss under O2 (defect 23)."""
    configure({"PREC_TIME.NUM_ITER": 1, "PREC_TIME.WARMUP_ITER": 1, "TRAIN.OPT_LEVEL": "O2", "TRAIN.LOSS_SCALE": 128.0})
    learner, _ = trainer.make_learner(ARGS, RANK)
    before = {key: value.clone() for key, value in learner.model.state_dict().items()}
    scaled = []
    learner.amp._scaler.scale = lambda loss: (scaled.append(1), loss * 128.0)[1]
    benchmark.log_times(learner, RANK)
    assert all(torch.equal(value, before[key]) for key, value in learner.model.state_dict().items())
    assert len(scaled) == 2
    for group in learner.optimizer.param_groups:
        assert all(parameter.grad is None or float(parameter.grad.abs().sum()) == 0 for parameter in group["params"])


class TwoBatches(object):
    """Two batches of made-up images, as a loader gives them."""

    images = global_batch = step_images = 8

    def __len__(self):
        return 2

    def of_epoch(self, epoch, first_step=0):
        return [(make_input(8, 32, 32, seed=step), torch.arange(8)) for step in range(first_step, 2)]


def losses_of_two_steps(keys, draws):
    """Return the losses of an epoch of two steps, before which `draws` numbers are drawn, which must not matter."""
    configure(dict({"LOG_PERIOD": 1}, **keys))
    torch.manual_seed(0)
    learner, _ = trainer.make_learner(ARGS, RANK)
    progress = checkpoint.make_progress(RANK, checkpoint.parts_of(learner))
    clock = progress.start_clock(TwoBatches(), 1)
    set_rate(learner.optimizer, 0.1)
    torch.rand(draws)
    found = []
    recorder = SimpleNamespace(step=lambda progress, clock, rate: found.append(progress.tally.loss.val))
    trainer.train_epoch(TwoBatches(), learner, Run(RANK, progress, clock, recorder), meters.TrainMeter(2, RANK.device))
    return found


@pytest.mark.parametrize("keys", [{}, {"EN.DC_RATIO": 0.5}, {"EN.DROPOUT_RATIO": 0.5}, {"TRAIN.MIXUP_ALPHA": 0.4},
                                  {"TRAIN.LABEL_SMOOTHING": 0.1}, {"BN.USE_CUSTOM_WEIGHT_DECAY": True, "OPTIM.WEIGHT_DECAY": 0.1}])
def test_options_act_and_are_repeatable(keys, no_signals):
    """Each option of the recipe changes a step, and a step draws the same after a resume: it depends on (seed, rank, epoch, step)."""
    plain, changed = losses_of_two_steps({}, 0), losses_of_two_steps(keys, 1)
    assert changed == losses_of_two_steps(keys, 5)
    assert (changed != plain) == bool(keys)


def test_moving_average_goes_with_the_updates(no_signals, monkeypatch):
    """Of two batches that make one update, the moving average sees one set of weights; its share is that of the update's images."""
    shares = []
    monkeypatch.setattr(net, "update_average", lambda average, newest, share: shares.append(share))
    losses_of_two_steps({"OPTIM.EMA_UPDATE_PERIOD": 1, "TRAIN.ACCUMULATE": 2}, 0)
    assert shares == [1e-5 * 8 / 200]


# ---- pictures --------------------------------------------------------------------------------------------------------------

def picture_of(*arguments):
    return Image.fromarray(make_image(*arguments))


@pytest.mark.parametrize("size", [(40, 60), (90, 33), (48, 64), (7, 200)])
def test_resize_is_bilinear_without_antialiasing(size):
    """The resampling is PyTorch's for shrinking and enlarging alike; in bytes it is less than 1 of 255 away."""
    image = make_image(64, 48, 3)
    theirs = F.interpolate(torch.from_numpy(image).permute(2, 0, 1)[None].float(), size=size, mode="bilinear", align_corners=False)
    theirs = theirs[0].permute(1, 2, 0).numpy()
    assert np.abs(transforms.resize(picture_of(64, 48, 3), size, in_float=True) - theirs).max() < 0.02
    in_bytes = transforms.resize(picture_of(64, 48, 3), size)
    assert in_bytes.dtype == np.uint8 and np.abs(in_bytes - theirs).max() < 1


def test_bytes_are_less_than_one_off():
    """Training pictures of all sizes, noise included: bytes against floats, same draws."""
    rng = np.random.RandomState(0)
    for seed in range(40):
        image = Image.fromarray(rng.randint(0, 256, tuple(rng.randint(20, 300, 2)) + (3,)).astype(np.uint8))
        in_bytes, shift = transforms.train_transform(image, 48, seed)
        floats, shift_too = transforms.train_transform(image, 48, seed, in_float=True)
        assert np.array_equal(shift, shift_too) and in_bytes.dtype == np.uint8 and floats.dtype == np.float32
        assert np.abs(in_bytes - floats).max() < 1 and abs(in_bytes.mean() - floats.mean()) < 0.2


def test_training_crop_falls_back_to_the_centre():
    """A picture that no box fits is cropped at its centre, as in evaluation, and has the right size."""
    pixels, _ = transforms.train_transform(picture_of(1200, 60, 1), 24, 2)
    centre = transforms.eval_transform(picture_of(1200, 60, 1), 24, 24)
    assert np.array_equal(pixels, centre) or np.array_equal(pixels, centre[:, ::-1])


@pytest.mark.parametrize("in_float", [True, False])
def test_augmentation_sees_what_upstreams_sees(in_float):
    """The uint8 picture for AutoAugment is in floating point cut off after the way over [0, 1]; the colours come back in BGR order."""
    image = Image.fromarray(np.dstack([np.full((40, 40), value, np.uint8) for value in (200, 100, 50)]))
    spec = augment.parse_spec("RandAugment_N1_M0.0_P0.0")
    pixels, _ = transforms.train_transform(image, 16, 4, spec, in_float=in_float)
    rgb = (np.float32([200, 100, 50]) / np.float32(255) * np.float32(255)).astype(np.uint8) if in_float else [200, 100, 50]
    assert pixels[3, 5].tolist() == list(rgb)[::-1] and pixels.dtype == np.uint8


def test_the_transform_is_a_pure_function():
    """Global generators play no part: workers, their number and their order do not matter (the shared numpy state of a worker)."""
    image = picture_of(60, 50, 1)
    spec = augment.parse_spec("AutoAugment")
    first, shift = transforms.train_transform(image, 24, 7, spec)
    np.random.seed(99), random.seed(99)
    again, shift_again = transforms.train_transform(image, 24, 7, spec)
    assert np.array_equal(first, again) and np.array_equal(shift, shift_again) and shift.any()
    assert not np.array_equal(first, transforms.train_transform(image, 24, 8, spec)[0])


@pytest.mark.parametrize("orientation, turned", [(1, lambda a: a), (3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, 3)),
                                                 (8, lambda a: np.rot90(a))])
def test_exif_orientation_is_applied(tmp_path, orientation, turned):
    """A photograph that says it lies on its side is turned, as OpenCV does."""
    image = Image.fromarray(make_image(64, 48, 3))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(str(tmp_path / "a.png"), exif=exif)
    assert np.array_equal(np.asarray(loader.upright(jpeg.open_rgb((tmp_path / "a.png").read_bytes()))), turned(make_image(64, 48, 3)))
    image.save(str(tmp_path / "a.jpg"), exif=exif)
    picture = jpeg.open_rgb((tmp_path / "a.jpg").read_bytes())
    wanted = turned(np.asarray(Image.open(str(tmp_path / "a.jpg"))))
    assert np.array_equal(np.asarray(loader.upright(picture)), wanted)
    assert picture.header.has_exif and loader.upright(picture).size == wanted.shape[1::-1]


def test_broken_exif_is_no_reason_to_stop():
    """A damaged EXIF block says nothing of the orientation."""
    image = Image.fromarray(make_image(64, 48, 3))
    image.info["exif"] = b"Exif\x00\x00not tiff at all"
    assert loader.upright(image) is image


# ---- loaders ---------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """The flags of a run on a small data set."""
    root = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        write_images(root / split, classes=3, per_class=9)
    return SimpleNamespace(data_path=str(root), skip_bad_images=False, decoder="exact", shuffle_shards=False)


def test_batches_do_not_depend_on_workers(flags):
    """The same crops, flips and colours with 0 and with 2 processes, and in the middle of an epoch."""
    found = []
    for workers in (0, 2):
        cfg.DATA_LOADER.NUM_WORKERS = workers
        batches = loader.construct_train_loader(flags, RANK)
        found.append([inputs for inputs, _ in batches.of_epoch(3)])
        assert torch.equal(list(batches.of_epoch(3, 2))[0][0], found[-1][2])
    assert len(found[0]) == 3 and all(torch.equal(*pair) for pair in zip(*found))
    assert not torch.equal(found[0][0], next(iter(batches.of_epoch(4)))[0])


def test_first_inputs_ends_where_it_should(flags):
    """Precise BN reads so many batches and no more, and the next epoch is whole again."""
    batches = loader.construct_train_loader(flags, RANK)
    assert len(list(batches.first_inputs(0, 2))) == 2
    assert len(list(batches.of_epoch(0))) == 3


def test_evaluation_counts_every_image(flags):
    """Five batches and the steps of a warm-up are in the accuracy too, and none is counted twice (defect 13)."""
    cfg.TEST.BATCH_SIZE = 6
    batches = loader.construct_test_loader(flags, RANK)
    assert len(batches) == 5
    model = filled()
    result = trainer.test_epoch(batches, model, RANK, meters.TestMeter(5, RANK.device))
    hits = sum(int((model(inputs).argmax(1) == labels).sum()) for inputs, labels in batches)
    assert result.top1 == pytest.approx(100.0 * hits / 27, abs=1e-9)

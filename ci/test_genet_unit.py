"""GENet's entry script, taken apart: flags, schedule, losses, batches, checkpoints of every layout, evaluation."""
import json
import os
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cifar_batches import CifarLoader
from common import cli, data, distributed, meters, precision
from conftest import load_script
from fill import fill_state_dict, make_target
from models import WideResNet
from test_genet_data import pictures, write_cifar

train = load_script("GENet/train.py")
CPU = torch.device("cpu")
ONE_RANK = distributed.Rank(0, 1, 0, CPU)
with open(os.path.join(os.path.dirname(__file__), "golden", "GENet.json")) as stream:
    GOLDEN = json.load(stream)


def parse(*words):
    return train.parser().parse_args(list(words))


def refuse(capsys, *words):
    """Return the one line with which the parser refuses the words."""
    with pytest.raises(SystemExit) as stopped:
        parse(*words)
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


# --- flags ------------------------------------------------------------------------------------------------------------

def test_defaults_are_the_recipe():
    """Without flags: the port's network and recipe, in fp32."""
    args = train.checked(parse("--DataPath=/data"))
    expected = dict(depth=16, width=8, extent=0, extra_params=False, mlp=False, dataset="cifar10", epochs=300, batch_size=128,
                    test_batch_size=128, learning_rate=0.1, lr_decay_ratio=0.2, epoch_step=[60, 120, 160, 200], momentum=0.9,
                    nesterov=False, weight_decay=0.0005, opt_level="O0", loss_scale=128.0, workers=9, world_size=-1, rank=-1,
                    print_freq=10, seed=None, accumulate=1, eval=False, prof=False, pretrained=False)
    assert {key: getattr(args, key) for key in expected} == expected


FLAGS_WITH_VALUES = ["--workers 3", "--device cpu", "--print_freq 1", "--resume a.pth", "--seed 4", "--world_size 2", "--rank 1",
                     "--dist_url tcp://127.0.0.1:50000", "--gpu 1", "--batch_size 8", "--test_batch_size 9", "--learning_rate 0.2",
                     "--lr_decay_ratio 0.1", "--no_epochs 7", "--momentum 0.8", "--nesterov True", "--weight_decay 0.1",
                     "--epoch_step [3,5]", "--dataset cifar100", "--depth 22", "--width 2", "--mlp True", "--extra_params True",
                     "--extent 4", "--accumulate 2", "--use_ema true", "--addr 10.0.0.1", "--device_list 0,1", "--loss_scale 32", "--opt_level O1",
                     "--pth_path x"]
SWITCHES = ["--eval", "--pretrained", "--multiprocessing_distributed", "--amp", "--prof", "--nesterov", "--mlp", "--extra_params"]


@pytest.mark.parametrize("words", FLAGS_WITH_VALUES + SWITCHES)
def test_underscores_and_hyphens_are_one_flag(words):
    """Every flag of the port, in its spelling and in the seed README's, does the same, and does something."""
    flag, *value = words.split()
    underscores, hyphens = parse(flag, *value), parse(flag.replace("_", "-"), *value)
    joined = parse(flag + "=" + value[0]) if value else hyphens
    assert underscores == hyphens == joined != parse()


@pytest.mark.parametrize("short, long", [("-j 3", "--workers 3"), ("-e", "--eval"), ("-p 1", "--print_freq 1"), ("-b 8", "--batch_size 8"),
                                         ("-bt 8", "--test_batch_size 8"), ("-lr 0.5", "--learning_rate 0.5"), ("-d 10", "--depth 10"),
                                         ("-epochs 3", "--no_epochs 3"), ("--epochs 3", "--no_epochs 3"),
                                         ("--wd 0.1", "--weight_decay 0.1"), ("-w 2", "--width 2")])
def test_short_flags(short, long):
    """The port's short flags are there."""
    assert parse(*short.split()) == parse(*long.split())


@pytest.mark.parametrize("flag", ["--mlp", "--extra_params", "--nesterov"])
def test_booleans_are_booleans(flag, capsys):
    """Defect: 'False' and '0' counted as true, so that upstream's own examples trained another variant."""
    name = flag[2:]
    assert [getattr(parse(flag, word), name) for word in ("True", "False", "0", "1", "no", "yes")] == [True, False, False, True, False, True]
    assert getattr(parse(flag), name) is True and getattr(parse(), name) is False
    assert "neither true nor false" in refuse(capsys, flag, "maybe")


def test_lr_is_the_learning_rate(capsys):
    """Defect: --lr was taken as an abbreviation of --lr_decay_ratio and changed the decay."""
    args = parse("--lr", "0.4")
    assert (args.learning_rate, args.lr_decay_ratio) == (0.4, 0.2)
    assert "unrecognized arguments: --lr-decay" in refuse(capsys, "--lr_decay", "0.4")


@pytest.mark.parametrize("words, complaint", [
    (["--batch_size", "many"], "not an integer"), (["--batch_size", "0"], "not an integer from 1"), (["--extent", "3"], "invalid choice"),
    (["--epoch_step", "60,120"], "not a JSON list"), (["--epoch_step", '["a"]'], "not a JSON list"), (["--loss_scale", "0"], "above 0, nor dynamic"),
    (["--loss_scale", "nan"], "above 0, nor dynamic"), (["--device_list", "0,0"], "distinct"), (["--dataset", "mnist"], "invalid choice"),
    (["--no_such_flag"], "unrecognized"), (["--workers"], "expected one argument")])
def test_wrong_values_are_refused_in_one_line(words, complaint, capsys):
    """Wrong and missing values, unknown flags: one line, exit status 2."""
    assert complaint in refuse(capsys, *words)


@pytest.mark.parametrize("words, complaint", [
    ([], "--DataPath"), (["--DataPath=x", "--image_size=224"], "32 pixels"), (["--DataPath=x", "--eval"], "nothing to evaluate"),
    (["--DataPath=x", "--nesterov", "--momentum=0"], "momentum")])
def test_flags_that_do_not_go_together(words, complaint):
    """What the flags say together is checked before anything starts."""
    with pytest.raises(cli.UserError, match=complaint):
        train.checked(parse(*words))


def test_device_of_a_single_process_run():
    """Defect: a single-process run without --gpu stopped with a KeyError; --gpu counts in the device list."""
    assert train.device_layout(parse("--device=cpu")).indices == (0,)
    assert train.device_layout(parse("--device=cpu", "--device_list=3,5", "--gpu=1")).indices == (5,)
    with pytest.raises(cli.UserError, match="--device-list has 2 devices"):
        train.device_layout(parse("--device=cpu", "--device_list=3,5", "--gpu=2"))


def test_machines_and_ranks():
    """--world_size counts machines; the rank of a process is machine x devices + position; --dist_url and --addr say where."""
    words = ["--device=cpu", "--device_list=0,1", "--multiprocessing_distributed", "--world_size=3", "--rank=2"]
    layout = train.device_layout(parse(*words, "--dist_url=tcp://10.0.0.9:4000"))
    assert (layout.world_size, layout.rank(1), layout.place.address, layout.place.port) == (6, 5, "10.0.0.9", 4000)
    assert train.device_layout(parse(*words, "--addr=10.0.0.9")).place.port == 29688
    with pytest.raises(cli.UserError, match="tcp://ADDRESS:PORT"):
        train.device_layout(parse(*words, "--dist_url=somewhere"))


# --- schedule, loss, optimizer ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("recipe", ["1p", "8p"])
def test_golden_learning_rates(recipe):
    """The learning rate of every epoch of the table; it is a function of the epoch, so a resumed run has the right one too."""
    wanted = GOLDEN["lr_schedule"][recipe]
    args = parse("--learning_rate", str(wanted["learning_rate"]), "--lr_decay_ratio", str(wanted["lr_decay_ratio"]),
                 "--epoch_step", json.dumps(wanted["epoch_step"]), "--no_epochs", str(wanted["no_epochs"]))
    for epoch, rate in wanted["points"]:
        assert train.learning_rate(epoch, args.learning_rate, args.lr_decay_ratio, args.epoch_step) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize("case, seed, rows, classes", [(GOLDEN["losses"]["cases"][0], 11, 16, 10), (GOLDEN["losses"]["cases"][1], 13, 128, 100)])
def test_golden_loss_and_errors(case, seed, rows, classes):
    """Mean cross-entropy and the top-1 and top-5 errors of a batch, and upstream's line of them."""
    target = make_target(rows, classes, seed=seed + 1)
    logits = np.random.RandomState(seed).standard_normal((rows, classes)).astype(np.float32)
    logits[np.arange(rows), target.numpy()] += np.float32(1.5)
    logits = torch.from_numpy(logits)
    assert float(F.cross_entropy(logits, target)) == pytest.approx(case["cross_entropy"], rel=1e-5)
    tally = meters.Tally("a test")
    tally.add(F.cross_entropy(logits, target), logits, target)
    tally.fetch()
    assert [100.0 - tally.top1.avg, 100.0 - tally.top5.avg] == pytest.approx([case["err1"], case["err5"]], abs=1e-4)
    assert train.line("Test: ", 0, 1, (), tally) == "Test: [0/1]\tLoss %.4f (%.4f)\tErr@1 %.3f (%.3f)\tErr@5 %.3f (%.3f)" % (
        tally.loss.val, tally.loss.val, case["err1"], case["err1"], case["err5"], case["err5"])


def test_weight_decay_is_on_every_parameter():
    """Trap: BatchNorm and biases decay too, with one learning rate for all."""
    model = WideResNet(10, 1)
    args = parse()
    optimizer = train.make_optimizer(model, args)
    assert len(optimizer.param_groups) == 1
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))
    assert {key: optimizer.param_groups[0][key] for key in ("lr", "momentum", "dampening", "weight_decay", "nesterov")} == {
        key: value for key, value in GOLDEN["optimizer"].items() if key != "name"}


# --- batches ----------------------------------------------------------------------------------------------------------

def checked_args(folder, *words):
    args = train.checked(parse("--DataPath", str(folder), "--seed=3", *words))
    args.folder = str(folder)
    return args


def batches_of(folder, split, rank, batch_per_rank, *words, workers=0):
    args = checked_args(folder, *words)
    args.batch_per_rank, args.workers_per_rank = batch_per_rank, workers
    return train.make_batches(split, args, rank)


def test_steps_of_an_epoch(tmp_path):
    """One rank keeps the smaller last batch (391 steps of 128), several drop it (48 steps of 1024); testing keeps all images."""
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder, per_batch=10)
    counts = [len(target) for _, target in batches_of(folder, "train", ONE_RANK, 16).of_epoch(0)]
    assert counts == [16, 16, 16, 2]
    assert [len(target) for _, target in batches_of(folder, "train", ONE_RANK, 7).of_epoch(0)] == [7] * 7  # not a batch of 1
    two = [distributed.Rank(number, 2, number, CPU) for number in range(2)]
    assert [[len(target) for _, target in batches_of(folder, "train", rank, 8).of_epoch(0)] for rank in two] == [[8] * 3] * 2
    accumulated = batches_of(folder, "train", ONE_RANK, 8, "--accumulate=2")  # as the two ranks: 3 updates of 16
    assert [len(target) for _, target in accumulated.of_epoch(0)] == [8] * 6 and accumulated.global_batch == 16
    assert [[len(target) for _, target in batches_of(folder, "test", rank, 8, "-bt", "3")] for rank in two] == [[3, 2]] * 2
    samplers = [data.TrainBatches(50000, 128, ONE_RANK, drop_last=False), data.TrainBatches(50000, 128, distributed.Rank(0, 8, 0, CPU)),
                data.EvalBatches(10000, 128, ONE_RANK)]
    assert [len(sampler) for sampler in samplers] == [391, 48, 79]


def test_two_ranks_see_the_images_of_one(tmp_path):
    """The ranks share each batch, with the augmentation that the images have on one rank: the data really is sharded."""
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder, per_batch=10)
    whole = next(batches_of(folder, "train", ONE_RANK, 8).of_epoch(2))[0]
    parts = [next(batches_of(folder, "train", distributed.Rank(number, 2, number, CPU), 4).of_epoch(2))[0] for number in range(2)]
    assert torch.equal(whole, torch.stack(parts, 1).flatten(0, 1))


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_do_not_depend_on_workers(tmp_path, workers):
    """Threads change when a batch is prepared, not what is in it nor the order; also when starting inside an epoch."""
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder, per_batch=10)
    inline = list(batches_of(folder, "train", ONE_RANK, 8).of_epoch(1))
    ahead = list(batches_of(folder, "train", ONE_RANK, 8, workers=workers).of_epoch(1))
    later = list(batches_of(folder, "train", ONE_RANK, 8, workers=workers).of_epoch(1, first_step=3))
    assert len(inline) == 7 and len(later) == 4
    for ours, expected in list(zip(ahead, inline)) + list(zip(later, inline[3:])):
        assert torch.equal(ours[0], expected[0]) and torch.equal(ours[1], expected[1])


def test_training_images_change_between_epochs_and_test_images_do_not(tmp_path):
    """Training is shuffled and augmented anew each epoch; the test set comes in order and as it is."""
    folder = tmp_path / "cifar-10-batches-py"
    images, labels = write_cifar(folder, per_batch=10)
    batches = batches_of(folder, "train", ONE_RANK, 50)
    first, second, again = (next(batches.of_epoch(epoch)) for epoch in (0, 1, 0))
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], second[0])
    assert sorted(first[1].tolist()) == sorted(second[1].tolist()) == sorted(labels[:50])
    test = next(iter(batches_of(folder, "test", ONE_RANK, 50)))
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in train.MEAN_STD["cifar10"])
    assert torch.allclose(test[0], (torch.from_numpy(images[50:].copy()).float() / 255 - mean) / std, atol=2e-6)
    assert test[1].tolist() == labels[50:] and test[1].dtype == torch.int64


def test_stopping_early_ends_the_threads(tmp_path):
    """An epoch that is left early (--prof) leaves no thread behind."""
    images, labels = pictures(64)
    loader = CifarLoader(images, np.array(labels), data.EvalBatches(64, 4, ONE_RANK), CPU, workers=2, seed=0)
    before = threading.active_count()
    iterator = iter(loader)
    next(iterator)
    assert threading.active_count() > before
    iterator.close()
    assert threading.active_count() == before


# --- checkpoints ------------------------------------------------------------------------------------------------------

THETA_MINUS = dict(depth=10, width=1, extent=0, extra_params=False, mlp=False)


def save(path, **content):
    torch.save(content, str(path))
    return str(path)


def trained_state(seed=5, **changes):
    torch.manual_seed(seed)
    return WideResNet(**dict(THETA_MINUS, **changes)).state_dict()


def start(*words):
    """Return a new small network that the entry script has started from the weights that the words name."""
    torch.manual_seed(0)
    args = small_args(*words)
    model = train.build_model(train.network_of(args), 10)
    train.start_from_weights(model, args)
    return model


def small_args(*words):
    return train.checked(parse("--DataPath=x", "--depth=10", "--width=1", "--seed=3", *words))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("layout", ["port", "upstream", "bare"])
def test_checkpoints_of_every_layout(tmp_path, prefix, layout):
    """Defect: with and without `module.` could not be exchanged. Port, upstream (.t7) and bare layouts load, for --eval
    without optimizer or scaler state."""
    state = trained_state()
    named = {prefix + key: value for key, value in state.items()}
    content = {"port": dict(epoch=3, arch="GENET", state_dict=named, best_err1=5.0),
               "upstream": dict(epoch=3, state_dict=named, error_history=[8.0, 6.0]), "bare": named}[layout]
    for flag in ("--pth_path", "--resume"):
        model = start("--eval", flag, save(tmp_path / "weights.pth", **content))
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_weights_of_another_extent_are_refused(tmp_path):
    """The extents without parameters have the same keys and shapes: only what the checkpoint says of itself tells them apart."""
    network = dict(THETA_MINUS, extent=4)
    path = save(tmp_path / "w.pth", state_dict=trained_state(extent=4), network=network)
    with pytest.raises(cli.UserError, match="was trained with --extent 4"):
        start("--pth_path", path)
    assert start("--pth_path", path, "--extent=4").block1.layer[0].downop.kernel_size == 4


def test_pretrained_starts_with_a_new_classifier(tmp_path):
    """Defect: --pretrained was to reset the classifier and did not; weights with another number of classes fit, too."""
    state = trained_state(num_classes=100)
    path = save(tmp_path / "model_best.pth.tar", state_dict=state)
    fresh = trained_state(seed=0)
    for words in (["--pretrained", "--pth_path", path], ["--pretrained", "--output-path", str(tmp_path)]):
        loaded = start(*words).state_dict()
        for key, value in loaded.items():
            assert torch.equal(value, fresh[key] if key.startswith("fc.") else state[key]), key


def test_weights_or_their_average(tmp_path, capsys):
    """--use_ema chooses between weights and their moving average in one file, and the line says which were taken."""
    weights, average = trained_state(), trained_state(seed=6)
    path = save(tmp_path / "w.pth", state_dict=weights, model_ema=average)
    for choice, wanted in (("true", average), ("false", weights)):
        learner = train.make_learner(small_args("--eval", "--pth_path", path, "--use_ema=" + choice), ONE_RANK)
        assert torch.equal(learner.model.state_dict()["conv1.weight"], wanted["conv1.weight"])
    assert ["the key model_ema" in line for line in capsys.readouterr().out.splitlines()] == [True, False]


def start_training(tmp_path, *words):
    """Return the Learner and the Progress of a training of a small network, and its arguments."""
    args = small_args("--output_path", str(tmp_path), *words)
    args.batch_per_rank = args.batch_size
    learner = train.make_learner(args, ONE_RANK)
    return learner, train.make_progress(learner, args, ONE_RANK), args


def test_a_run_to_go_on_with_has_weights(tmp_path):
    """A file that is no checkpoint of a run is a clear error."""
    _, progress, args = start_training(tmp_path, "--resume=x.pth")
    with pytest.raises(cli.UserError, match="x.pth holds no model weights"):
        train.go_on(progress, {"epoch": 3}, args)


def test_checkpoint_holds_the_lowest_error(tmp_path):
    """Trap: best_err1 is an error, smaller is better; the best checkpoint is replaced by strictly better epochs only."""
    _, progress, _ = start_training(tmp_path)
    for top1 in (50.0, 60.0, 60.0, 55.0):
        progress.note_evaluation(meters.Result(top1, 90.0, 1.0))
        progress.end_epoch()
    last, best = (torch.load(str(tmp_path / name)) for name in ("checkpoint.pth.tar", "model_best.pth.tar"))
    assert (last["epoch"], last["best_err1"], last["arch"]) == (4, 40.0, "GENET")
    assert (best["epoch"], best["best_err1"]) == (2, 40.0)
    assert {"epoch", "state_dict", "best_err1", "optimizer"} <= set(last)


@pytest.mark.parametrize("content, best", [(dict(best_err1=6.0), 94.0), (dict(error_history=[8.0, 7.0, 9.0]), 93.0)])
def test_resuming_from_upstreams_checkpoints(tmp_path, capsys, content, best):
    """Epoch, weights and best error come from the port's and from upstream's layout; what they lack is named once."""
    learner, progress, args = start_training(tmp_path, "--resume=old.t7")
    state = trained_state()
    train.go_on(progress, dict(content, epoch=7, state_dict={"module." + key: value for key, value in state.items()}), args)
    assert (progress.epoch, progress.step, progress.best) == (7, 0, best)
    assert torch.equal(learner.model.state_dict()["conv1.weight"], state["conv1.weight"])
    assert capsys.readouterr().out == "old.t7 holds no optimizer, amp: starting anew with that\n"


# --- evaluation -------------------------------------------------------------------------------------------------------

def evaluate(folder, *words):
    """Return filled weights and their meters.Result on a test set."""
    args = checked_args(folder, *words)
    args.batch_per_rank, args.workers_per_rank = 4, 0
    model = WideResNet(10, 1)
    model.load_state_dict(fill_state_dict(model.state_dict()))
    model, _, amp = precision.initialize(model, None, "O0", None, CPU)
    learner = train.Learner(model, F.cross_entropy, None, amp)
    return model, train.validate(train.make_batches("test", args, ONE_RANK), learner, args, ONE_RANK)


@pytest.mark.parametrize("print_freq", ["1", "4", "1000"])
def test_error_is_always_printed_and_weighted(tmp_path, capsys, print_freq):
    """Defect: the accuracy was missing for some print frequencies. The smaller last batch counts by its size."""
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder, per_batch=10)
    model, result = evaluate(folder, "-bt", "4", "-p", print_freq)
    batch, target = next(iter(batches_of(folder, "test", ONE_RANK, 10)))
    with torch.no_grad():
        logits = model.eval()(batch)
    right1, right5 = (100.0 * float((logits.topk(k)[1] == target[:, None]).any(1).float().mean()) for k in (1, 5))
    assert (result.top1, result.top5) == pytest.approx((right1, right5), abs=1e-4)
    assert result.loss == pytest.approx(float(F.cross_entropy(logits, target)), rel=1e-4)
    lines = [line for line in capsys.readouterr().out.splitlines() if "* Err@1" in line]
    assert lines == ["[cpu id: 0 ] [AVG-ERR] * Err@1 %.3f Err@5 %.3f" % (100.0 - right1, 100.0 - right5)]


def training_run(tmp_path, *words):
    """Return the batches, Learner, Run and arguments of a training on 50 images, in batches of 8."""
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder, per_batch=10)
    learner, progress, args = start_training(tmp_path / "out", *words)
    args.folder, args.batch_per_rank, args.workers_per_rank = str(folder), 8 // args.accumulate, 1
    batches = train.make_batches("train", args, ONE_RANK)
    run = train.Run(ONE_RANK, progress, progress.start_clock(batches, 1), train.records.Recorder("", ONE_RANK))
    return batches, learner, run, args


@pytest.mark.parametrize("accumulate", [1, 2])
def test_profile_holds_a_whole_update(tmp_path, accumulate):
    """Defect: the profiled update came after the gradients had been cleared. Here weights change, and the trace names both passes."""
    batches, learner, run, args = training_run(tmp_path, "--accumulate=%d" % accumulate)
    amp, weights, updates = learner.amp, [p for p in learner.model.parameters() if p.dim() > 1], []
    amp.step = lambda step=amp.step: (updates.append(all(p.grad.abs().sum() > 0 for p in weights)), step())
    train.profile(batches, learner, run, args)
    assert updates == [True] * (train.PROFILED_UPDATE + 1)
    assert [name for name in os.listdir(str(tmp_path / "out")) if not name.startswith(".run.")] == ["output.prof"]
    trace = (tmp_path / "out" / "output.prof").read_text()
    assert "convolution_backward" in trace or "ConvolutionBackward" in trace


def test_profile_needs_enough_updates(tmp_path):
    """An epoch that is over before the update to profile: one line."""
    batches, learner, run, args = training_run(tmp_path, "--max_steps=%d" % train.PROFILED_UPDATE)
    with pytest.raises(cli.UserError, match="more than 5 updates"):
        train.profile(batches, learner, run, args)

"""Stage 3, long agreement: 200 steps on the demo data on the device and on the CPU; loss curves inside each other's band.

Same seeds on both, float32. A curve has a point per epoch, the mean training loss over its steps. The band of a device is what
its seeds reach, from the smallest to the largest value of a point, widened on both sides by its mean width over the curve: what
another seed changes, a device may. Of one seed the width is the largest difference of neighbouring points in the second half of
the curve.
"""
import functools
import math
import os
import pickle

from certificate import _scripts
from certificate._checks import Check, at_most, equal, meaningless

STAGE, TITLE = 3, "Long agreement"
EPOCHS, STEPS, BATCH = 8, 25, 16  # 200 steps
SIGMAS = 3.29  # 99.9 % of a normal distribution
RATE = {"HRNet": 0.002}  # else USUAL_RATE; at these, every model learns in so few steps
USUAL_RATE = 0.02
_BAND = "spread of the seeds: each device's band, widened by its mean width"
_PICTURES = "each once, in the order of the folder: counted from the files"


def run(case):
    """Yield the checks of each model; a device's runs and the CPU's go side by side."""
    models = ["GENet"] if case.quick and "GENet" in case.models else case.models[:1] if case.quick else case.models
    return _scripts.as_found(case, [functools.partial(_model, case, model) for model in models])


def _model(case, model):
    seeds = range(1, 2 if case.quick else 1 + case.seeds)
    devices = [case.device] + ["cpu"] * (case.device != "cpu")
    runs = [(device, seed) for device in devices for seed in seeds]
    inner = case._replace(jobs=len(runs))
    found, broken = {}, []

    def train(device, seed):
        done = _train(case._replace(device=device), model, seed)
        if done.status:
            broken.append(Check(STAGE, model, "200 steps on %s, seed %d" % (device, seed), done.status, 0, "exit status", False,
                                _scripts.last_line(done)))
        else:
            found[device, seed] = done.out
            _scripts.drop_weights(done.out)
        return []
    list(_scripts.as_found(inner, [functools.partial(train, *each) for each in runs]))
    return broken or judged(case, model, [[found[device, seed] for seed in seeds] for device in devices])


def _train(case, model, seed):
    out = os.path.join(case.output_path, "agreement", "%s-%s-%d" % (model, case.device.replace(":", ""), seed))
    words = _scripts.command(case, model, "train_full_1p.sh", out, small=case.quick, seed=seed, train_epochs=EPOCHS,
                             max_steps=STEPS, batch_size=BATCH, learning_rate=RATE.get(model, USUAL_RATE),
                             data_path=_scripts.where(case, model), predictions=1)
    return _scripts.run(case, words, out)


def judged(case, model, outs):
    """Return the checks of the runs of a model: `outs` are the output paths of the device's seeds, and of the CPU's
    unless it is the device."""
    wanted = labels(_scripts.where(case, model))
    checks = [_each_picture_once(model, outs[0][0], wanted), _learns(model, outs[0])]
    if len(outs) == 1:
        return checks + [meaningless(STAGE, model, "loss curves and accuracy, device against CPU", "the device is the CPU")]
    curves = [[curve(out) for out in group] for group in outs]
    outside, where = farthest(*curves)
    checks.append(at_most(STAGE, model, "loss curves outside each other's band by", outside, 0.0, _BAND, where))
    tops = [[_scripts.logged(out, 1)[-1]["val.top1"] for out in group] for group in outs]
    return checks + [_accuracy(model, tops, len(wanted))]


def curve(out):
    """Return the mean training loss of each epoch of a run."""
    return [values["train.loss_mean"] for values in _scripts.logged(out, 1)]


def farthest(ours, theirs):
    """Return by how much the worst point of two groups of curves lies outside the other's band, 0 where none does; and where."""
    points = [(excess, "epoch %d" % epoch) for one, other in ((ours, theirs), (theirs, ours))
              for line in one for epoch, excess in enumerate(_excess(line, other))]
    worst = max(points)
    return (worst[0], worst[1]) if worst[0] > 0 else (0.0, "")


def _excess(line, group):
    lows, highs = [min(point) for point in zip(*group)], [max(point) for point in zip(*group)]
    width = sum(high - low for low, high in zip(lows, highs)) / len(lows)
    if len(group) == 1:
        late = group[0][len(group[0]) // 2 - 1:]
        width = max(abs(later - earlier) for earlier, later in zip(late, late[1:]))
    return [max(low - width - value, value - high - width, 0.0) if math.isfinite(value) else math.inf
            for value, low, high in zip(line, lows, highs)]


def _accuracy(model, tops, pictures):
    """The means of the seeds' final accuracies differ by no more than seeds do, and two draws of so many pictures."""
    means = [sum(group) / len(group) for group in tops]
    share = min(max(sum(means) / 200, 0.05), 0.95)
    drawn = 100 * SIGMAS * math.sqrt(2 * share * (1 - share) / (pictures * len(tops[0])))
    spread = max(max(group) - min(group) for group in tops)
    return at_most(STAGE, model, "final top-1, device against CPU (points)", abs(means[0] - means[1]), drawn + spread,
                   "99.9 %% of two binomial draws of %d pictures, and the spread of the seeds" % pictures,
                   "device %.2f, CPU %.2f" % tuple(means))


def _learns(model, outs):
    """The training loss of the last epoch is below that of the first."""
    lines = [curve(out) for out in outs]
    first, last = (sum(line[place] for line in lines) / len(lines) for place in (0, -1))
    return Check(STAGE, model, "mean training loss of the last epoch", last, "< %.4f" % first, "that of the first epoch",
                 bool(last < first))


def _each_picture_once(model, out, wanted):
    """The last evaluation has seen each validation picture once, with its class."""
    import numpy as np
    with np.load(os.path.join(out, "predictions.npz"), allow_pickle=False) as found:
        index, target = found["index"].tolist(), found["target"].tolist()
    answers = dict(zip(index, target))
    right = sum(answers.get(place) == label for place, label in enumerate(wanted))
    return equal(STAGE, model, "validation pictures that were evaluated, with their class",
                 right if len(index) == right else len(index), len(wanted), _PICTURES)


def labels(path):
    """Return the classes of the validation pictures as the files themselves tell them, in order."""
    batch = os.path.join(path, "cifar-10-batches-py", "test_batch")
    if os.path.exists(batch):
        with open(batch, "rb") as stream:
            return [int(label) for label in pickle.load(stream, encoding="bytes")[b"labels"]]
    folders = sorted(os.listdir(os.path.join(path, "val")))
    return [number for number, name in enumerate(folders) for _ in os.listdir(os.path.join(path, "val", name))]

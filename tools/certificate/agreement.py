"""Stage 3, long agreement: 200 steps on the demo data on the device and on the CPU; loss curves inside each other's band.

Same seeds on both, float32. A curve has a point per epoch, the mean training loss over its steps. Roundings part two trainings
after some dozen steps, so that a device's run is then like one of another seed: the means over the seeds may differ by as many
standard errors as Student's t has at 99.9 %. The variance of a point is that between the seeds of each device, pooled, or its
mean over the epochs where that is larger. Of one seed nothing but the curve itself is known: the largest difference of
neighbouring points in its second half.
"""
import concurrent.futures
import functools
import math
import os
import pickle
import statistics

from certificate import _scripts
from certificate._checks import Check, at_most, equal, meaningless

EPOCHS, STEPS, BATCH = 8, 25, 16  # 200 steps
SIGMAS = 3.29  # 99.9 % of a normal distribution
RATE = {"HRNet": 0.002}  # else USUAL_RATE; at these, every model learns in so few steps
USUAL_RATE = 0.02
T_999 = {2: 31.60, 4: 8.610, 6: 5.959, 8: 5.041, 10: 4.587, 12: 4.318, 14: 4.140, 16: 4.015, 18: 3.922}  # two-sided, by freedom
_BAND = "Student's t at 99.9 %, in standard errors between the seeds"
_ONE = "one seed: the largest difference of neighbouring points of the CPU's curve, second half"
_PICTURES = "each once, in the order of the folder: counted from the files"


def run(case):
    """Yield the checks of each model; a device's runs and the CPU's go side by side."""
    models = ["GENet"] if case.quick and "GENet" in case.models else case.models[:1] if case.quick else case.models
    return _scripts.as_found(case, [functools.partial(_model, case, model) for model in models])


def _model(case, model):
    seeds = range(1, 2 if case.quick else 1 + case.seeds)
    devices = [case.device] + ["cpu"] * (case.device != "cpu")
    runs = [(device, seed) for device in devices for seed in seeds]
    with concurrent.futures.ThreadPoolExecutor(len(runs)) as pool:
        ended = dict(zip(runs, pool.map(lambda run: _train(case._replace(device=run[0]), model, run[1]), runs)))
    broken = [equal(model, "200 steps on %s, seed %d" % run, done.status, 0, "exit status", _scripts.last_line(done))
              for run, done in ended.items() if done.status]
    return broken or judged(case, model, [[ended[device, seed].out for seed in seeds] for device in devices])


def _train(case, model, seed):
    out = os.path.join(case.output_path, "agreement", "%s-%s-%d" % (model, case.device.replace(":", ""), seed))
    words = _scripts.command(case, model, "train_full_1p.sh", out, small=case.quick, seed=seed, train_epochs=EPOCHS,
                             max_steps=STEPS, batch_size=BATCH, learning_rate=RATE.get(model, USUAL_RATE),
                             data_path=_scripts.where(case, model), predictions=1)
    done = _scripts.run(case, words, out)
    _scripts.drop_weights(out)
    return done


def judged(case, model, outs):
    """Return the checks of the runs of a model: `outs` are the output paths of the device's seeds, and of the CPU's
    unless it is the device."""
    wanted = labels(_scripts.where(case, model))
    checks = [_each_picture_once(model, outs[0][0], wanted), _learns(model, outs[0])]
    if len(outs) == 1:
        return checks + [meaningless(model, "loss curves and accuracy, device against CPU", "the device is the CPU")]
    curves = [[curve(out) for out in group] for group in outs]
    distance, bound, where = farthest(*curves)
    checks.append(at_most(model, "distance of the loss curves", distance, bound, _BAND if len(outs[0]) > 1 else _ONE, where))
    tops = [[_scripts.logged(out, 1)[-1]["val.top1"] for out in group] for group in outs]
    return checks + [_accuracy(model, tops, len(wanted))]


def curve(out):
    """Return the mean training loss of each epoch of a run."""
    return [values["train.loss_mean"] for values in _scripts.logged(out, 1)]


def farthest(ours, theirs):
    """Return how far two groups of curves are from each other at most, in standard errors (of one seed: in the largest difference
    of neighbouring points in the second half of `theirs`), what is allowed, and the epoch."""
    means = [[statistics.mean(point) for point in zip(*group)] for group in (ours, theirs)]
    if len(ours) == 1:
        late = theirs[0][len(theirs[0]) // 2 - 1:]
        errors, bound = [max(abs(later - earlier) for earlier, later in zip(late, late[1:]))] * len(theirs[0]), 1.0
    else:
        variances = [(_variance(one) + _variance(other)) / 2 for one, other in zip(zip(*ours), zip(*theirs))]
        usual = statistics.mean(variances)
        errors = [math.sqrt(2 * max(variance, usual) / len(ours)) for variance in variances]
        bound = T_999.get(2 * len(ours) - 2, SIGMAS)
    figures = [abs(one - other) / max(error, 1e-12) if one != other else 0.0 for one, other, error in zip(*means, errors)]
    figures = [figure if math.isfinite(figure) else math.inf for figure in figures]
    return max(figures), bound, "epoch %d" % figures.index(max(figures))


def _variance(values):
    # Not statistics.variance: with NaN it raises on Python 3.10.
    mean = statistics.mean(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)


def _accuracy(model, tops, pictures):
    """The means of the seeds' final accuracies differ by no more than seeds do, and two draws of so many pictures."""
    means = [statistics.mean(group) for group in tops]
    share = min(max(sum(means) / 200, 0.05), 0.95)
    drawn = 100 * SIGMAS * math.sqrt(2 * share * (1 - share) / (pictures * len(tops[0])))
    spread = max(max(group) - min(group) for group in tops)
    return at_most(model, "final top-1, device against CPU (points)", abs(means[0] - means[1]), drawn + spread,
                   "99.9 %% of two binomial draws of %d pictures, and the spread of the seeds" % pictures,
                   "device %.2f, CPU %.2f" % tuple(means))


def _learns(model, outs):
    """The training loss of the last epoch is below that of the first."""
    curves = [curve(out) for out in outs]
    first, last = (statistics.mean(line[place] for line in curves) for place in (0, -1))
    return Check(model, "mean training loss of the last epoch", last, "< %.4f" % first, "that of the first epoch",
                 bool(last < first))


def _each_picture_once(model, out, wanted):
    """The last evaluation has seen each validation picture once, with its class."""
    index, target = _scripts.predictions(out, "index", "target")
    answers = dict(zip(index, target))
    right = sum(answers.get(place) == label for place, label in enumerate(wanted))
    return equal(model, "validation pictures that were evaluated, with their class",
                 right if len(index) == right else len(index), len(wanted), _PICTURES)


def labels(path):
    """Return the classes of the validation pictures as the files themselves tell them, in order."""
    batch = os.path.join(path, "cifar-10-batches-py", "test_batch")
    if os.path.exists(batch):
        with open(batch, "rb") as stream:
            return [int(label) for label in pickle.load(stream, encoding="bytes")[b"labels"]]
    folders = sorted(os.listdir(os.path.join(path, "val")))
    return [number for number, name in enumerate(folders) for _ in os.listdir(os.path.join(path, "val", name))]

"""What a training would do on more devices: images per second, efficiency, what binds it, and what the recipe then asks for.

From steps that were measured, the size of the gradients, and a network of so many bytes a second and so long a hop. A step is a RUN, the
output path of a training, or one that somebody has published: DEVICESxBATCH=IMAGES_PER_SECOND, the batch of a device. Two steps with
unlike batches tell what a step costs beside its images; one alone leaves that at nothing, which flatters small batches.

    python tools/benchmark.py scaling ResNet50/test/output/0 --devices 8,64,512 --bandwidth 50
    python tools/benchmark.py scaling 8x400=57400 64x50=297800 --gradient 51.1 --batch 16 --devices 2528

--measure checks the model on this machine's CPU: one rank and two, each pinned to a core, take turns, and what the step of one and the
all-reduces of two foretell is compared with the step of two.

    python tools/benchmark.py scaling --measure GENet --rounds 20
"""
import math
import os
import re
import statistics

from benchmarks import _alpha_beta, _loops, _tables
from common import checkpoint, cli, ranges, records

GIGA, IMAGENET = 1e9, 1281167
LINEAR_UP_TO = 8192  # images of a global batch (Goyal et al. 2017)
_PUBLISHED = re.compile(r"(\d+)x(\d+)=(\d+(?:\.\d+)?)$")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def add_flags(parser):
    """Add the verb's flags to its parser."""
    add = parser.add_argument
    add("run", nargs="*", metavar="RUN", help="output path of a training, or DEVICESxBATCH=IMAGES_PER_SECOND")
    add("--devices", type=numbers, default=[8, 64, 512, 4096], metavar="N,N", help="numbers of devices (default 8,64,512,4096)")
    add("--batch", type=cli.positive_int, help="images of a step on each device (default: that of the first RUN)")
    add("--per-machine", type=cli.positive_int, default=8, help="devices of a machine (default 8)")
    add("--bandwidth", type=ranges.positive, default=50, help="GB/s out of a machine, all its adapters together (default 50: 400 Gbit/s)")
    add("--latency", type=ranges.positive, default=10, help="microseconds of a hop between machines (default 10)")
    add("--inner-bandwidth", type=ranges.positive, default=150, help="GB/s of a ring inside of a machine (default 150)")
    add("--inner-latency", type=ranges.positive, default=3, help="microseconds of a hop inside of a machine (default 3)")
    add("--gradient", type=ranges.positive, help="MB of gradients (default: the RUN's)")
    add("--buckets", type=cli.positive_int, help="into so many equal parts gradients are divided (default: as the RUN's are)")
    add("--no-overlap", action="store_true", help="gradients are sent after backward, not during it")
    add("--input", type=ranges.positive, help="images/s that the loaders of a machine give (default: the RUN's, where it waited for them)")
    add("--images", type=cli.positive_int, default=IMAGENET, help="of an epoch (default %d, ImageNet's)" % IMAGENET)
    add("--markdown", action="store_true", help="print the table in Markdown")
    add("--measure", choices=sorted(_loops.MODELS), help="check the model on this machine's CPU")
    add("--rounds", type=cli.positive_int, default=20, help="of --measure (default 20)")
    add("--image-size", type=cli.positive_int, help="pixels of --measure (default: the recipe's)")


def numbers(text):
    """Read numbers of devices, divided by commas."""
    return [cli.positive_int(word) for word in text.split(",")]


class Measured(object):
    """A step that was measured: `point` as _alpha_beta.fit takes it; of a RUN also the bytes of each gradient (`sizes`), the `rate` that
    goes with its `global_batch`, and the images/s that its loaders gave (`fed`), where they held it up."""

    def __init__(self, text):
        self.sizes, self.rate, self.fed = [], None, None
        published = _PUBLISHED.match(text)
        if published:
            devices, batch, rate = int(published.group(1)), int(published.group(2)), float(published.group(3))
            if not devices * batch * rate > 0:
                raise cli.UserError("%s: devices, batch and images/s are above 0" % text)
            self.point = devices, batch, devices * batch / rate
        else:
            self._read(text)

    def _read(self, path):
        metrics, saved = os.path.join(path, "metrics.jsonl"), os.path.join(path, "checkpoint.pth.tar")
        if not os.path.isfile(metrics):
            raise cli.UserError("%s is neither the output path of a training (no metrics.jsonl there) nor DEVICESxBATCH=IMAGES_PER_SECOND"
                                % path)
        content = checkpoint.load(saved)
        found = records.read(metrics)
        parameters = [record["data"] for record in found if record.get("step") == "PARAMETER"][-1:]
        ranks = parameters[0].get("world_size") if parameters else None
        if not (ranks and content.get("step_images")):
            raise cli.UserError("%s: its records and its checkpoint do not say ranks and images of a step" % path)
        self.rate, self.global_batch = rate_of(parameters[0]), content.get("global_batch", content["step_images"])
        steps = self.global_batch // content["step_images"]  # of an update (--accumulate), in which gradients are sent once
        took, waited = [steps * seconds for seconds in _steady(found, path)]
        self.point = ranks, self.global_batch // ranks, took - waited
        is_half = parameters[0].get("opt_level_run") == "O2"
        self.sizes = [value.numel() * (2 if is_half else 4) for key, value in checkpoint.weights(content, saved, "false").items()
                      if not key.endswith(_STATISTICS)]
        if waited > _alpha_beta.BOUND * took:
            self.fed = self.global_batch / took


def _steady(found, path):
    """Return the medians of a step's seconds, and of its wait for data, over the last two thirds of the logging lines, never the first."""
    lines = [record["data"] for record in found if isinstance(record.get("step"), list) and len(record["step"]) == 2]
    lines = [(line["train.step_time"], line["train.data_time"]) for line in lines if line.get("train.step_time")]
    lines = lines[max(1, len(lines) // 3):]
    if not lines:
        raise cli.UserError("%s: of no steps but the first are there records; take more steps, or a smaller --print_freq" % path)
    return [statistics.median(values) for values in zip(*lines)]


def rate_of(parameters):
    """Return the learning rate that the parameters of a run ask for, by whatever name its model has for it; None without one."""
    words = parameters.get("opts") or []
    options = dict(zip(words[::2], words[1::2]))
    candidates = [options.get("TRAIN.LR"), options.get("OPTIM.BASE_LR"), parameters.get("learning_rate"), parameters.get("lr")]
    return next((float(value) for value in candidates if value is not None), None)


def run(args):
    """Print the table, or check the model."""
    if args.measure:
        from benchmarks import _pinned
        lines = _pinned.check(args.measure, args)
    else:
        lines = table(args)
    for line in lines:
        cli.print_line(line)


def table(args):
    """Return the lines of the table and of what it rests on."""
    if not args.run:
        raise cli.UserError("a RUN is wanted, the output path of a training, or DEVICESxBATCH=IMAGES_PER_SECOND (or --measure)")
    measured = [Measured(text) for text in args.run]
    network = _alpha_beta.Network(args.per_machine, args.bandwidth * GIGA, args.inner_bandwidth * GIGA, args.latency * 1e-6,
                                  args.inner_latency * 1e-6)
    try:
        work = _alpha_beta.fit([one.point for one in measured],
                               _alpha_beta.Work(0.0, 0.0, buckets(measured[0].sizes, args), not args.no_overlap), network)
    except ValueError as error:
        raise cli.UserError("%s; see --bandwidth, --latency and --gradient" % error)
    batch = args.batch or measured[0].point[1]
    fed = args.input or min((one.fed / math.ceil(one.point[0] / args.per_machine) for one in measured if one.fed), default=None)
    rows = [row(devices, batch, (work, network), measured[0], fed, args.images) for devices in args.devices]
    return foundation(measured, work, fed) + _tables.layout(HEADS, rows, args.markdown) + advice(args.devices[-1] * batch, measured[0])


HEADS = ["devices", "images/s", "efficiency %", "step ms", "of it waits ms", "all-reduce", "bound by", "communication below batch",
         "input from batch", "epoch s", "global batch", "learning rate by the linear rule"]


def buckets(sizes, args):
    """Return the bytes of the buckets: the run's, or what the flags say. Raises UserError where neither says."""
    if not sizes and not args.gradient:
        raise cli.UserError("how large the gradients are, no RUN says; give --gradient, in MB (ResNet50: 102, in half precision 51)")
    total = args.gradient * 1e6 if args.gradient else sum(sizes)
    if args.buckets:
        return [total / args.buckets] * args.buckets
    return _alpha_beta.buckets_of([size * total / sum(sizes) for size in sizes] if sizes else [total / 160] * 160)


def row(devices, batch, model, first, fed, images):
    """Return the cells of the table's line for a number of devices. `model`: the Work and the Network; `fed`: images/s that a machine's
    loaders give, None: no limit."""
    work, network = model
    seconds, waits = _alpha_beta.step(batch, devices, *model)
    bound = "communication" if waits > _alpha_beta.BOUND * seconds else "devices"
    machines = math.ceil(devices / network.per_machine)
    starving = fed and _alpha_beta.starving_batch(devices, *model, machine_input=fed)
    if starving and batch >= starving:
        bound, seconds = "input", devices * batch / (fed * machines)
    rate = devices * batch / seconds
    ideal = devices * batch / _alpha_beta.compute(batch, work)
    least = _alpha_beta.least_batch(devices, *model)
    return ["%d" % devices, "%.0f" % rate, "%.1f" % (100 * rate / ideal), "%.2f" % (1000 * seconds), "%.2f" % (1000 * waits),
            _alpha_beta.all_reduce(max(work.buckets), devices, network)[1], bound, str(least or "any"), str(starving or "-"),
            "%.1f" % (math.ceil(images / (devices * batch)) * seconds), "%d" % (devices * batch),
            "%.4g" % (first.rate * devices * batch / first.global_batch) if first.rate else "-"]


def foundation(measured, work, fed):
    """Return the lines that say what the table rests on."""
    lines = ["measured: " + "; ".join("%d devices, %d images each, %.2f ms" % (devices, batch, 1000 * seconds)
                                      for devices, batch, seconds in (one.point for one in measured)),
             "compute of a step: %.3f ms and %.4f ms an image; gradients: %.1f MB in %d buckets, sent %s backward"
             % (1000 * work.fixed, 1000 * work.per_image, sum(work.buckets) / 1e6, len(work.buckets), "during" if work.overlaps else "after")]
    return lines + (["input: %.0f images/s a machine" % fed] if fed else [])


def advice(global_batch, first):
    """Return the lines about the learning rate of the largest batch."""
    if not first.rate:
        return []
    line = "learning rate: that of the run, times the global batch over the run's %d, with its warm-up" % first.global_batch
    if global_batch > LINEAR_UP_TO:
        line += ("; above %d images that rule loses accuracy (Goyal et al. 2017): take a smaller --batch, or LARS, which is not here"
                 % LINEAR_UP_TO)
    return ["", line]

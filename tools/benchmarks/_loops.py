"""The trainings that `benchmark.py training` compares. Each is opened in a process of its own: `open_loop(name, args)` returns
(function that takes so many steps, torch.device).

Ours are the models' own programs, their loops included, on made-up images (--dummy). The others are the loops of timm, of
torchvision's references and of pytorch/examples, as their sources have them, with the networks of timm or torchvision: what they
read from the device in each step, they read here.
"""
import contextlib
import io
import os
import queue
import tempfile
import threading

from benchmarks import _program

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CLASSES = 1000
HRNET = "HRNet/experiments/cls_hrnet_w18_sgd_lr5e-2_wd1e-4_bs32_x100.yaml"
EFFNET = "EfficientNet-B3/configs/dds_baselines/effnet/EN-B3_dds_1npu_perf.yaml"
ENDLESS = 10 ** 9

# Of each model: pixels, the names that timm and torchvision have for its network.
MODELS = {"ResNet50": (224, "resnet50", "resnet50"), "HRNet": (224, "hrnet_w18", None), "GENet": (32, None, None),
          "EfficientNet-B3": (300, "efficientnet_b3", "efficientnet_b3"), "FixRes": (224, "resnet50", "resnet50")}
LEVELS = ("O0", "O1", "O2")
NAMES = (["ours/O0/nchw"] + ["ours/" + level for level in LEVELS] + ["ours/O1/compile", "ours/O1/graphs", "ours/O1/bf16", "ours/O2/bf16"] +
         ["timm/O0", "timm/O1", "torchvision/O0", "torchvision/O1", "examples/O0"])


def open_loop(name, args):
    """Return (take_steps, device) of a loop of NAMES for `args.model`. Raises ImportError for a package that is not installed or has no
    such network."""
    import torch
    from common import device as devices
    torch.set_num_threads(args.threads)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    family, level, *options = name.split("/")
    if family == "ours":
        return _open_ours(level, options, args)
    device = devices.pick(args.device)
    loop = {"timm": _timm, "torchvision": _torchvision, "examples": _examples}[family](level, device, args)
    return lambda steps: [loop() for _ in range(steps)], device


# --- ours -------------------------------------------------------------------------------------------------------------

def arguments(model, level, options, out, args):
    """Return the program and the flags of a training of ours on made-up images. Raises KeyError for a model that is not of MODELS."""
    size = args.image_size or MODELS[model][0]
    batch = args.batch_size
    common = ["--device=" + args.device, "--dummy"]
    common += ["--compile=default"] * ("compile" in options) + ["--compile=reduce-overhead"] * ("graphs" in options)
    common += ["--amp-dtype=bf16"] * ("bf16" in options)
    flags = common + ["--opt-level=" + level]
    return {
        "ResNet50": ["ResNet50/main.py", "--image-size=%d" % size, "--batch-size=%d" % batch, "--save-ckpt-path=" + out,
                     "--label-smoothing=0.1", "--lr=0.01", "--workspace=" + out] + flags,
        "HRNet": ["HRNet/tools/train.py", "--cfg=" + os.path.join(ROOT, HRNET), "--bs=%d" % batch, "--output-path=" + out] + flags + [
            "MODEL.IMAGE_SIZE", "[%d,%d]" % (size, size), "TRAIN.LR", "0.01", "LOG_DIR", ""],
        "GENet": ["GENet/train.py", "--batch-size=%d" % batch, "--output-path=" + out, "--lr=0.01", "--amp"] + flags,
        "EfficientNet-B3": ["EfficientNet-B3/tools/train_net.py", "--cfg=" + os.path.join(ROOT, EFFNET)] + common + [
            "OUT_DIR", out, "TRAIN.BATCH_SIZE", str(batch), "TRAIN.IM_SIZE", str(size), "TRAIN.OPT_LEVEL", level,
            "OPTIM.BASE_LR", "0.01", "PREC_TIME.NUM_ITER", "0", "TRAIN.MAX_STEPS", str(ENDLESS)],
        "FixRes": ["FixRes/main_resnet50_scratch.py", "--input-size=%d" % size, "--batch=%d" % batch, "--num-tasks=1",
                   "--learning-rate=0.001", "--checkpoint-file=%s/checkpoint.pth.tar" % out] + flags,
    }[model]


def _open_ours(level, options, args):
    """Run the program in a thread, which goes on by so many steps when it is asked to, and is left waiting at the end."""
    import torch
    from common import cli, device as devices, synthetic, watchdog
    orders, done = queue.Queue(), queue.Queue()

    def of_epoch(batches, epoch, first_step=0):
        while True:
            done.put(batches._batch[0].device)
            for _ in range(orders.get()):
                yield batches._batch

    synthetic.SyntheticBatches.of_epoch = of_epoch
    synthetic.SyntheticBatches.__len__ = lambda batches: ENDLESS
    cli.signal.signal = lambda *_: None  # handlers belong to the main thread
    watchdog.over_this_process = watchdog.over_device = lambda *_: contextlib.suppress()  # it stands still between its turns
    said = io.StringIO()
    if "nchw" in options:
        devices.memory_format = lambda device: torch.contiguous_format
    program, *words = arguments(args.model, level, options, tempfile.mkdtemp(dir=args.folder), args)

    def train():
        torch.set_num_threads(args.threads)
        try:
            with contextlib.redirect_stderr(said):
                _program.run(os.path.join(ROOT, program), words)
        except BaseException as error:  # also the exit status of a program that has said why
            done.put("%s: %s" % (repr(error), said.getvalue().strip().split("\n")[-1]))

    def answer():
        device = done.get()
        if isinstance(device, str):
            raise RuntimeError("the training ended: " + device)
        return device

    threading.Thread(target=train, daemon=True).start()
    device = answer()

    def take(steps):
        orders.put(steps)
        answer()
    return take, device


# --- others -----------------------------------------------------------------------------------------------------------

def _network(model, column):
    name = MODELS[model][column]
    if name is None:
        raise ImportError("it has no such network")
    return name


def _batch(device, args):
    import torch
    size = args.image_size or MODELS[args.model][0]
    images = torch.randn(args.batch_size, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(CLASSES, (args.batch_size,), device=device)


def _autocast(level, device):
    import torch
    from common import precision
    return torch.autocast(device.type, precision.half_dtype(device)) if level == "O1" else contextlib.nullcontext()


def _timm(level, device, args):
    """timm's train.py, with --amp at O1, --channels-last and SGD: the loss is read in each step."""
    from common import device as devices
    devices.import_torchvision()
    import timm
    import timm.loss
    import timm.optim
    import timm.utils
    import torch
    model = timm.create_model(_network(args.model, 1), num_classes=CLASSES).to(device).to(memory_format=torch.channels_last).train()
    optimizer = timm.optim.create_optimizer_v2(model, opt="sgd", lr=0.01, weight_decay=1e-4, momentum=0.9)
    criterion, losses = timm.loss.LabelSmoothingCrossEntropy(0.1), timm.utils.AverageMeter()
    scaler = timm.utils.NativeScaler() if level == "O1" and device.type == "cuda" else None
    images, target = _batch(device, args)

    def step():
        with _autocast(level, device):
            loss = criterion(model(images), target)
        if scaler:
            scaler(loss, optimizer, parameters=model.parameters())
        else:
            loss.backward()
            optimizer.step()
        optimizer.zero_grad()
        losses.update(loss.item(), len(target))
    return step


def _torchvision_parts(device, args):
    """Return network, criterion, optimizer of torchvision's."""
    import torch
    from common import device as devices
    model = getattr(devices.import_torchvision().models, _network(args.model, 2))(num_classes=CLASSES).to(device).train()
    return model, torch.nn.CrossEntropyLoss(label_smoothing=0.1), torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4)


def _hits(output, target):
    _, largest = output.topk(5, 1, True, True)
    right = largest.t().eq(target[None])
    return [right[:k].flatten().sum(dtype=output.dtype) * (100.0 / len(target)) for k in (1, 5)]


def _torchvision(level, device, args):
    """torchvision's references/classification/train.py, with --amp at O1: loss and both accuracies are read in each step."""
    import torch
    model, criterion, optimizer = _torchvision_parts(device, args)
    scaler = torch.amp.GradScaler(device.type) if level == "O1" and device.type == "cuda" else None
    images, target = _batch(device, args)
    seen = []

    def step():
        with _autocast(level, device):
            output = model(images)
            loss = criterion(output, target)
        optimizer.zero_grad()
        if scaler:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            optimizer.step()
        seen[:] = [loss.item()] + [hits.item() for hits in _hits(output, target)]
    return step


def _examples(level, device, args):
    """pytorch/examples' imagenet/main.py, which knows no mixed precision: the loss is read in each step."""
    model, criterion, optimizer = _torchvision_parts(device, args)
    images, target = _batch(device, args)
    images, seen = images.contiguous(), []

    def step():
        output = model(images)
        loss = criterion(output, target)
        seen[:] = [loss.item()] + _hits(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return step

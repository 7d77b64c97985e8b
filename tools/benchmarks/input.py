"""Images per second of the input pipeline, against torchvision's as the baseline, in one run.

Both read the same ImageNet-layout folder with the same number of loader processes, random resized crop and flip, batches
normalised to float32. Baseline: torchvision's ImageFolder, transforms and default collation, normalising on the host.

    python tools/benchmark.py input --data demo_data/imagenet --workers 2
"""
import os
import sys
import time

import torch

from common import cli, data, device as devices, distributed

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def ours(args):
    sys.path.insert(0, os.path.join(ROOT, "ResNet50"))
    import main as resnet50
    values = resnet50.parser().parse_args(["--data", args.data, "--image-size", str(args.image_size), "--seed", "0"])
    values.batch_per_rank, values.workers_per_rank = args.batch_size, args.workers
    return resnet50.make_train_batches(values, distributed.Rank(0, 1, 0, torch.device("cpu")))


def torchvisions(args):
    torchvision = devices.import_torchvision()
    from torchvision import transforms
    transform = transforms.Compose([
        transforms.RandomResizedCrop(args.image_size), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
        transforms.Normalize(data.IMAGENET_MEAN, data.IMAGENET_STD)])
    dataset = torchvision.datasets.ImageFolder(os.path.join(args.data, "train"), transform)
    return torch.utils.data.DataLoader(dataset, args.batch_size, shuffle=True, num_workers=args.workers, drop_last=True)


def images_per_second(batches):
    """Return the rate over one epoch, worker start included."""
    start, images = time.perf_counter(), 0
    for _, target in batches:
        images += len(target)
    return images / (time.perf_counter() - start)


def add_flags(parser):
    """Add the verb's flags to its parser."""
    parser.add_argument("--data", required=True)
    parser.add_argument("--batch-size", type=cli.positive_int, default=64)
    parser.add_argument("--image-size", type=cli.positive_int, default=224)
    parser.add_argument("--workers", type=cli.natural_int, default=2)
    parser.add_argument("--repeat", type=cli.positive_int, default=3, help="epochs of each, taken in turn; the best counts")


def run(args):
    """Measure both in turn, and print the rates and their ratio."""
    data.check_layout(args.data, ("train",))
    rates = {"ours": 0.0, "torchvision": 0.0}
    for _ in range(args.repeat):
        for name, make in (("torchvision", torchvisions), ("ours", ours)):
            rates[name] = max(rates[name], images_per_second(make(args)))
    print("torchvision (baseline): %8.1f images/s\nours                  : %8.1f images/s\nratio                 : %8.2f"
          % (rates["torchvision"], rates["ours"], rates["ours"] / rates["torchvision"]))

"""How much of a training step is spent outside forward, backward and optimizer step.

Runs a model's real performance script on real files, and, before and after it, the bare step (the same network, batch and
precision on one batch that stays on the device). Prints both times and their ratio: what data, logging and bookkeeping cost.

    python tools/benchmark_step.py --model ResNet50 --image-size 64 --batch-size 32
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import torch  # noqa: E402
from common import cli, device as devices, precision  # noqa: E402


def resnet50(args):
    sys.path.insert(0, os.path.join(ROOT, "ResNet50"))
    import resnet
    return resnet.resnet50(), torch.randn(args.batch_size, 3, args.image_size, args.image_size)


def genet(args):
    sys.path.insert(0, os.path.join(ROOT, "GENet"))
    from models import wideresnet
    return wideresnet.WideResNet(16, 8, num_classes=10), torch.randn(args.batch_size, 3, 32, 32)


NETWORKS = {"ResNet50": resnet50, "GENet": genet}


def bare_step(args, device):
    """Return the median time of forward, backward and optimizer step in seconds."""
    model, images = NETWORKS[args.model](args)
    model, images = model.to(device).train(), images.to(device)
    target = torch.arange(args.batch_size, device=device) % 10
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    model, optimizer, amp = precision.initialize(model, optimizer, args.opt_level, 1024, device)
    times = []
    for _ in range(args.steps):
        devices.synchronize(device)
        start = time.perf_counter()
        with amp.autocast():
            output = model(images)
        amp.backward(torch.nn.functional.cross_entropy(output.float(), target))
        amp.step()
        devices.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[len(times) // 3:])


def real_step(args, device, folder):
    """Return the time of a step of the real script in seconds, from its report."""
    options = ["--device=%s" % args.device, "--batch_size=%d" % args.batch_size, "--opt_level=%s" % args.opt_level,
               "--max_steps=%d" % args.steps, "--output_path=%s" % folder, "--workers=%d" % args.workers]
    options += ["--image_size=%d" % args.image_size] if args.model != "GENet" else []
    options += ["--data_path=%s" % args.data] if args.data else []
    script = os.path.join(ROOT, args.model, "test", "train_performance_1p.sh")
    env = dict(os.environ, PATH=os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"])
    done = subprocess.run(["bash", script] + options, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, env=env)
    if done.returncode != 0:
        raise cli.UserError("%s failed: %s" % (script, done.stderr.strip().splitlines()[-1]))
    with open(os.path.join(folder, "report.json")) as stream:
        rate = json.load(stream)["summary"]["train.total_ips"]
    return args.batch_size / rate


def main():
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(NETWORKS), default="ResNet50")
    parser.add_argument("--device", choices=devices.KINDS, default="auto")
    parser.add_argument("--data", help="dataset root (default: the demo data)")
    parser.add_argument("--batch-size", type=cli.positive_int, default=32)
    parser.add_argument("--image-size", type=cli.positive_int, default=224)
    parser.add_argument("--opt-level", choices=precision.OPT_LEVELS, default="O0")
    parser.add_argument("--workers", type=cli.natural_int, default=2)
    parser.add_argument("--steps", type=cli.positive_int, default=30)
    args = parser.parse_args()
    device = devices.pick(args.device)
    before = bare_step(args, device)
    with tempfile.TemporaryDirectory() as folder:
        real = real_step(args, device, folder)
    bare = (before + bare_step(args, device)) / 2
    print("%s, batch %d, %s, %s" % (args.model, args.batch_size, args.opt_level, device.type))
    print("bare step           : %9.2f ms  (forward, backward, optimizer on one resident batch; baseline)" % (1000 * bare))
    print("step of the script  : %9.2f ms  (real files, whole loop)" % (1000 * real))
    print("outside of the step : %9.1f %%" % (100 * (real - bare) / real))


if __name__ == "__main__":
    cli.run(main)

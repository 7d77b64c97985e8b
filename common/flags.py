"""The flags that several programs have, each said once, and what they say together."""
import argparse
import os

from common import checkpoint, cli, decoders, device as devices, distributed, packed, precision, ranges
from common.cli import UserError


def add_run_flags(p, images=True):
    """Add to a cli.Parser what trainings and evaluations have. `images`: they read image files."""
    p.add_argument("--device", choices=devices.KINDS, default="auto", help="auto: npu, else gpu, else cpu")
    p.add_argument("--use-ema", choices=checkpoint.EMA_CHOICES, default="auto",
                   help="of weights that lie beside their moving average, take the average; auto: the better by the errors in the file")
    p.add_argument("--deterministic", action="store_true", help="only algorithms that give the same bits at each call; slower on gpu and npu")
    p.add_argument("--allow-tf32", action="store_true",
                   help="fp32 convolutions and matrix products may round their inputs to TF32 (gpu) or HF32 (npu)")
    p.add_argument("--amp-dtype", choices=precision.DTYPES,
                   help="half precision of O1 and O2; without it fp16 on npu and gpu, bf16 on a CPU; bf16 has no loss scale")
    p.add_argument("--stall-timeout", type=ranges.count, default=600, metavar="SECONDS",
                   help="end a run in which nothing has moved for so long, once the first step is done; 0: never")
    p.add_argument("--standalone", action="store_true", help="this machine trains alone, whatever a launcher or a cluster has set")
    p.add_argument("--predictions", action="store_true",
                   help="evaluations also write predictions.npz beside the records: what the network says of each picture")
    if images:
        p.add_argument("--skip-bad-images", action="store_true", help="leave unreadable images out and count them")
        p.add_argument("--decoder", choices=decoders.DECODERS, default="exact",
                       help="of pictures; exact: Pillow; fast: simplejpeg, and a resize that is at most 2 of 255 off")


def add_training_flags(p, seed=None, images=True):
    """Add what trainings have. `seed`: the default one, None for a random one. `images`: they read image files."""
    p.add_argument("--seed", type=ranges.seed, default=seed,
                   help="of everything random; it changes no algorithm" + ("" if seed is not None else "; without it a random one"))
    p.add_argument("--accumulate", type=cli.positive_int, default=1, help="batches whose gradients make one update")
    p.add_argument("--checkpoint-steps", type=cli.natural_int, default=0, help="also write the checkpoint every so many steps")
    p.add_argument("--keep-checkpoints", type=checkpoint.KEPT, default=2,
                   help="the last ones that stay: checkpoint.pth.tar, the one before it as checkpoint.pth.tar.1, ...")
    add_speed_flags(p, images)


def add_resume_flag(p, own):
    """Add --resume to a training. `own`: the words for the file that `auto` is about."""
    p.add_argument("--resume", nargs="?", const="", type=resumable, metavar="auto|FILE",  # FILE as a word of its own, as upstream
                   help="go on exactly where the checkpoint FILE was written; auto: the newest of %s, and of those that are kept "
                        "beside it, if there is one. Without this flag, so do ranks that torchrun starts again, with a checkpoint of theirs"
                        % own)


def resumable(text):
    """argparse type: the word auto, or a file's name."""
    if not text or os.path.isdir(text):
        raise argparse.ArgumentTypeError("%snot the name of a checkpoint: --resume=auto goes on with the run's own newest one, "
                                             "if there is one, --resume=FILE with this file" % (text and "%.99r is " % text))
    return text


def add_speed_flags(p, images=True):
    """Add what trainings have that makes a step faster, or shows what it takes. `images`: they read image files."""
    p.add_argument("--compile", nargs="?", const="default", choices=("default", "reduce-overhead"), metavar="MODE",
                   help="torch.compile the network for training (PyTorch 2; the first step takes minutes; experimental on npu); "
                        "--compile=reduce-overhead also replays its kernels as CUDA graphs, for networks that keep the host busier than the GPU")
    p.add_argument("--dummy", action="store_true",
                   help="no data set: a batch that is made up once and stays on the device, so that the step alone is measured")
    p.add_argument("--tensorboard", action="store_true", help="also write the records as TensorBoard's events, in tensorboard/ beside them")
    p.add_argument("--profile-steps", type=step_range, metavar="A:B",
                   help="profile the steps from A up to, not with, B of the first epoch: traces beside the checkpoint, a table in the log")
    if images:
        p.add_argument("--shuffle-shards", action="store_true",
                       help="packed data sets: shuffle shards, and %d pictures at a time within, which disks and NFS read faster" % packed.RUN)


def step_range(text):
    """argparse type: two step numbers, as in 10:13."""
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise argparse.ArgumentTypeError("%.99r is not of the form A:B with A below B" % text)
    return int(first), int(last)


def loss_scale(text):
    """argparse type: a positive number, or the word dynamic."""
    try:
        return text if text == "dynamic" else ranges.positive(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError("%s, nor dynamic" % error)


def add_step_flags(p):
    """Add what ends an epoch early and says how often a line is printed, by the names that most upstreams use."""
    p.add_argument("-p", "--print-freq", type=cli.positive_int, default=10, help="steps between progress lines")
    p.add_argument("--max-steps", type=cli.positive_int, help="end each epoch (and each evaluation) after this many steps")


def add_machine_flags(p):
    """Add which devices of which machines take part, by the names of pytorch/examples and the Ascend ports."""
    add = p.add_argument
    add("--device-list", type=cli.int_list, default="0,1,2,3,4,5,6,7", help="devices of this machine")
    add("--multiprocessing-distributed", action="store_true", help="one rank on each device of --device-list")
    add("--world-size", type=ranges.whole(-1), default=-1, help="number of machines")
    add("--rank", type=ranges.whole(-1), default=-1, help="number of this machine; without it the environment's NODE_RANK, else 0")
    add("--addr", help="address of machine 0")
    add("--master-port", type=ranges.port, help="port on machine 0")
    add("--dist-url", help="tcp://ADDRESS:PORT of machine 0; same as --addr with --master-port")


def machine_layout(args, index, usual_port):
    """Return the distributed.Layout that the flags of `add_machine_flags` describe; `index` is the device of a run on one, and
    `usual_port` where several machines meet unless the flags say it."""
    addr, port = _meeting_point(args)
    return distributed.layout(args.device, args.device_list if args.multiprocessing_distributed else [index],
                              nnodes=max(1, args.world_size), node_rank=args.rank if args.rank >= 0 else None, addr=addr, port=port,
                              usual_port=usual_port, standalone=args.standalone)


def add_node_flags(p, *also):
    """Add which machines take part, by torchrun's names, for programs whose upstream has none. `also`: other names for --nnodes."""
    p.add_argument("--nnodes", *also, type=cli.positive_int, default=1, help="number of machines")
    p.add_argument("--node-rank", type=cli.natural_int, help="number of this machine; without it the environment's NODE_RANK, else 0")
    p.add_argument("--addr", help="address of machine 0")
    p.add_argument("--master-port", type=ranges.port, help="port on machine 0")


def node_layout(args, indices, usual_port, **told):
    """Return the distributed.Layout that the flags of `add_node_flags` describe, as `machine_layout` does."""
    return distributed.layout(args.device, indices, nnodes=args.nnodes, node_rank=args.node_rank, addr=args.addr, port=args.master_port,
                              usual_port=usual_port, standalone=args.standalone, **told)


def _meeting_point(args):
    """Return (address, port) of machine 0; --addr and --master-port count more than --dist-url. Either may be None."""
    if not args.dist_url:
        return args.addr, args.master_port
    addr, _, port = args.dist_url.replace("tcp://", "").partition(":")
    try:
        return args.addr or addr, args.master_port or ranges.port(port)
    except argparse.ArgumentTypeError:
        raise UserError("--dist-url %s is not of the form tcp://ADDRESS:PORT" % args.dist_url)


def divide(args, layout):
    """Give each rank its share: `batch_per_rank` of the --batch-size images of an update, which all ranks and --accumulate batches
    have together (rounded down, as upstream does), and `workers_per_rank` of this machine's loader processes."""
    args.batch_per_rank = args.batch_size // layout.world_size // args.accumulate
    args.workers_per_rank = -(-args.workers // len(layout.indices))
    require_memory(args.batch_per_rank * len(layout.indices), args.image_size)
    if args.batch_per_rank == 0:
        raise UserError("batch size %d is smaller than the number of ranks, %d, times --accumulate %d"
                        % (args.batch_size, layout.world_size, args.accumulate))


def require_memory(images, side):
    """Raise UserError where the batches of this machine, in all so many images of `side` pixels, cannot fit into its memory."""
    wanted, there = 4 * 3 * images * side ** 2, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if wanted > there:
        raise UserError("batches of %d images of %d x %d pixels take %.1f GiB in fp32, and this machine has %.1f GiB of memory: take a "
                        "smaller batch size or image size" % (images, side, side, wanted / 2 ** 30, there / 2 ** 30))

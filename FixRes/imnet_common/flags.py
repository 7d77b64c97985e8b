"""The flags that the phases share, and what they say together: which devices take part, and which files are written."""
import os
import time

from common import cli, flags, outputs, precision, ranges, resume
from common.cli import UserError

MASTER_PORT = 29688  # where ranks meet that are started one by one, or on several machines, as in the Ascend port


def parser(description, input_size, batch):
    """Return a cli.Parser with the flags of every phase. `batch`: images of an update on one card."""
    p = cli.Parser(description=description)
    add = p.add_argument
    add("--imnet-path", metavar="DIR", default="/opt/npu/imagenet", help="dataset root with train/ and val/")
    add("--input-size", type=cli.positive_int, default=input_size, help="training crop and evaluation crop")
    add("--batch", type=cli.positive_int, default=batch, help="images of an update on one card")
    add("--workers", type=ranges.whole(1, 4096), default=10,
        help="processes of one card; this one counts, so the loader has one less")
    add("--num-classes", type=cli.positive_int, default=1000, help="outputs of the network")
    add("--opt-level", choices=precision.OPT_LEVELS, default="O0", help="mixed precision; O0: fp32, as upstream")
    add("--resize", choices=("height", "short-side"), default="height",
        help="what evaluation's resize sets: the height, as upstream, whatever the shape of the picture, or the shorter side")
    add("--max-steps", type=cli.positive_int, help="end each epoch (and each evaluation) after this many steps")
    add("--metrics-file", metavar="FILE", help="where the DLLogger records go (training: beside the checkpoint)")

    flags.add_run_flags(p)
    p.set_defaults(dummy=False)  # a flag of trainings
    add("--device-list", type=cli.int_list, help="devices of this machine, one task each; without it the first ones")
    add("--num-tasks", type=cli.positive_int, help="tasks (cards) in all; without it what the launcher says, else 1")
    add("--local-rank", type=ranges.device, default=0, help="the device of a run on one card; launchers pass it too")
    add("--global-rank", type=cli.natural_int,
        help="rank of this process when every task is started by hand; without it this process starts all of them")
    flags.add_node_flags(p, "--node")
    return p


def add_training(p, learning_rate, epochs, scaling):
    """Add the flags of the two phases that train."""
    flags.add_training_flags(p, seed=0)
    add = p.add_argument
    add("--learning-rate", type=ranges.natural, default=learning_rate,
        help="rate of epoch 0 on one card with 64 images; " + scaling)
    add("--epochs", type=cli.natural_int, default=epochs, help="epochs in all")
    add("--loss-scale", type=flags.loss_scale, default="dynamic", help="of O1 and O2: dynamic, or a number")
    add("--eval-freq", type=cli.positive_int, default=10, help="epochs between evaluations; the last epoch is always evaluated")
    add("--print-freq", type=cli.positive_int, default=10, help="steps between progress lines")
    add("--new-classifier", action="store_true",
        help="of the weights to start from, take all but the classifier, so that they may be of other classes")
    add("--shared-folder-path", metavar="DIR", default="./train_cache", help="where the jobs' folders are; made when needed")
    add("--job-id", type=cli.file_name,
        help="name of the job's folder; a job whose checkpoint is there goes on. Without it the start time")
    add("--checkpoint-file", metavar="FILE", help="where the checkpoint goes instead; the best and numbered copies go beside it")
    flags.add_resume_flag(p, "<checkpoint-file>, or <shared-folder-path>/<job-id>/checkpoint.pth")


def divide(args):
    """Give a training its `batch_per_rank`: the images of one of the --accumulate batches of a card."""
    if args.batch % args.accumulate:
        raise UserError("--batch %d cannot be divided into --accumulate %d batches" % (args.batch, args.accumulate))
    args.batch_per_rank = args.batch // args.accumulate


def resolve_files(args, subfolder):
    """Say where a training writes, in place: `checkpoint_file`, `metrics_file`; a job that has a name goes on (`resume`)."""
    if args.resume == resume.AUTO and not (args.checkpoint_file or args.job_id):
        raise UserError("--resume=auto: a run that has neither --checkpoint-file nor --job-id has a folder of its own, and nothing "
                        "in it")
    if not args.checkpoint_file:
        began = time.localtime(min(time.time(), outputs.launched_at()))  # ranks that torchrun starts again come back to it
        folder = os.path.join(args.shared_folder_path, subfolder, args.job_id or time.strftime("%Y%m%d-%H%M%S", began))
        has_file = args.resume not in (None, resume.AUTO)
        args.checkpoint_file = args.resume if has_file else os.path.join(folder, "checkpoint.pth")
        args.resume = args.resume if has_file or not args.job_id else resume.AUTO
    args.metrics_file = args.metrics_file or os.path.join(os.path.dirname(args.checkpoint_file), "metrics.jsonl")


def beside_checkpoint(args, name):
    """Return the path beside the checkpoint for a file `name`, with the checkpoint's own extension (.pth or .pth.tar)."""
    folder, own_name = os.path.split(args.checkpoint_file)
    return os.path.join(folder, name + own_name[own_name.find("."):])


def layout(args):
    """Return the distributed.Layout that the flags describe.

    A launcher, or one process a task started by hand with --global-rank as upstream does it, has one rank here already; otherwise
    this process starts as many as --num-tasks says.
    """
    by_hand = _rank_by_hand(args) if args.global_rank is not None and (args.num_tasks or 1) > 1 else None
    indices = args.device_list or ([args.local_rank] if args.num_tasks in (None, 1) else [])
    found = flags.node_layout(args, indices, MASTER_PORT, world_size=args.num_tasks, by_hand=by_hand)
    flags.require_memory(args.batch // getattr(args, "accumulate", 1) * len(found.indices), args.input_size)
    return found


def _rank_by_hand(args):
    if args.num_tasks % args.nnodes:
        raise UserError("--num_tasks %d cannot be divided among %d machines" % (args.num_tasks, args.nnodes))
    if args.global_rank >= args.num_tasks:
        raise UserError("--global_rank %d: with --num_tasks %d it is 0 to %d"
                        % (args.global_rank, args.num_tasks, args.num_tasks - 1))
    return args.global_rank, args.num_tasks, args.local_rank, args.num_tasks // args.nnodes

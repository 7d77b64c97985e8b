"""The flags that tools/train.py and tools/valid.py share, and what they mean together."""
import os

from common import checkpoint, cli, flags, precision, ranges
from lib.config import RANGES, new_config, unread_settings, update_config
from lib.models import build_model
from lib.models.cls_hrnet import check_image_size

MASTER_PORT = 29988  # where ranks meet that are started one by one, or on several machines, as in the Ascend port


def add_common_flags(parser):
    """Add the flags of both programs to a parser."""
    parser.usage = "%(prog)s [DATA_PATH] --cfg FILE [options] [KEY VALUE ...]"
    numbers = "; ".join("%s %s" % (name, allowed.in_help()) for name, allowed in RANGES.items())
    parser.epilog = "What the numbers of a configuration may be: %s." % numbers
    add = parser.add_argument
    add("positional", nargs="*", metavar="DATA_PATH KEY VALUE",
        help="data set root with train/ and val/ (without it DATASET.ROOT of the config), then config keys and their values")
    add("--cfg", required=True, metavar="FILE", help="experiment, a YAML file of experiments/")
    add("--modelDir", default="", metavar="DIR", help="instead of OUTPUT_DIR")
    add("--logDir", default="", metavar="DIR", help="instead of LOG_DIR (TensorBoard)")
    add("--dataDir", default="", metavar="DIR", help="instead of DATA_DIR")
    add("--testModel", default="", metavar="FILE", help="instead of TEST.MODEL_FILE: the weights to evaluate")
    add("--output-path", metavar="DIR", help="the folder to write to, instead of <OUTPUT_DIR>/<DATASET.DATASET>/<experiment>")

    add("--bs", type=cli.positive_int, help="images a step of one device (the config's BATCH_SIZE_PER_GPU)")
    add("--nproc", type=ranges.workers, help="loader processes of all devices together; each takes NPROC / DN (WORKERS)")
    add("--workers", type=ranges.workers, help="loader processes of this process, instead of NPROC / DN")
    add("--opt-level", choices=precision.OPT_LEVELS, default="O0", help="mixed precision; O0: fp32")

    flags.add_run_flags(parser)
    parser.set_defaults(dummy=False)  # a flag of trainings
    add("--device-id", type=ranges.device, default=0, help="the device; with --dn, also the rank of this process")
    add("--device-list", type=cli.int_list, help="start one rank on each of these devices, such as 0,1,2,3")
    add("--dn", type=cli.positive_int, help="number of devices, where each one's process is started by hand")
    flags.add_node_flags(parser)


def device_layout(args):
    """Return the distributed.Layout that the flags describe.

    A rank per entry of --device-list is started here; a launcher says in the environment what this process is; with --dn and
    neither of them, this process is rank --device-id of DN, and the caller starts the others (the Ascend port's way).
    """
    by_hand = _rank_by_hand(args) if args.dn and args.dn > 1 and not args.device_list else None
    layout = flags.node_layout(args, args.device_list or [args.device_id], MASTER_PORT, by_hand=by_hand)
    if args.dn not in (None, layout.world_size):
        raise cli.UserError("--dn=%d, but %d rank(s) take part" % (args.dn, layout.world_size))
    return layout


def _rank_by_hand(args):
    if args.device_id >= args.dn:
        raise cli.UserError("--device_id=%d is no rank of --dn=%d: ranks are 0 to %d" % (args.device_id, args.dn, args.dn - 1))
    return args.device_id, args.dn, args.device_id, args.dn


def resolved(args, overrides, layout):
    """Give `args` the merged config and what follows from it: data_path, output_path, workers.

    `overrides` are KEY, VALUE, KEY, VALUE ... for what other flags say; those at the end of the command go before them.
    Raises UserError for anything that does not fit together.
    """
    words = args.positional
    args.data_path = words[0] if len(words) % 2 else None
    args.opts = overrides + _batch_overrides(args) + words[len(words) % 2:]
    args.config = new_config()
    update_config(args.config, args)
    try:
        check_image_size(args.config.MODEL.IMAGE_SIZE[0])
    except ValueError as error:
        raise cli.UserError("MODEL.IMAGE_SIZE: %s" % error)
    flags.require_memory(max(args.config[part].BATCH_SIZE_PER_GPU for part in ("TRAIN", "TEST")) * len(layout.indices),
                         args.config.MODEL.IMAGE_SIZE[0])
    args.data_path = args.data_path or args.config.DATASET.ROOT
    args.experiment = os.path.basename(args.cfg).split(".")[0]
    args.output_path = args.output_path or os.path.join(
        args.config.OUTPUT_DIR, args.config.DATASET.DATASET, args.experiment)
    if args.workers is None:
        args.workers = args.config.WORKERS // len(layout.indices)
    return args


def _batch_overrides(args):
    overrides = []
    if args.bs is not None:
        overrides += ["TRAIN.BATCH_SIZE_PER_GPU", str(args.bs), "TEST.BATCH_SIZE_PER_GPU", str(args.bs)]
    if args.nproc is not None:
        overrides += ["WORKERS", str(args.nproc)]
    return overrides


def initial_model(args, weights, rank, new_classifier=False):
    """Return the network of the config, with the weights of a file where `weights` names one (with `new_classifier` all but the
    classifier's); the log says which where a file leaves a choice. Raises UserError for a config that describes no network, or
    weights of another."""
    try:
        model = build_model(args.config)
    except ValueError as error:
        raise cli.UserError("%s: %s" % (args.cfg, error))
    if weights:
        rank.print(checkpoint.load_weights(model, checkpoint.load(weights), weights, args.use_ema, new_classifier))
    return model


def remarks(args):
    """Return lines for the log about settings that do nothing."""
    return ["%s sets %s, which nothing reads" % (args.cfg, key) for key in unread_settings(args.config)]

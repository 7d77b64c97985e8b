"""The command line of the tools, and the ranks that they run in."""
from common import cli, data, distributed, flags, ranges
from common.cli import UserError
from pycls.core import config
from pycls.core.config import cfg

MASTER_PORT = 29588  # where ranks meet that are started one by one, or on several machines, as in the Ascend port


def parse(description, trains=False):
    """Parse the command line, load the configuration that it names, and return the flags. `trains`: with those of trainings."""
    args = _parser(description, trains).parse_args()
    config.load_cfg(args.cfg, args.opts)
    args.cfg_text = cfg.dump()  # so that every rank has the same, whatever becomes of the file
    return args


def _parser(description, trains):
    numbers = "; ".join("%s %s" % (name, allowed.in_help()) for name, allowed in config.RANGES.items())
    p = cli.Parser(description=description, epilog="What the numbers of a configuration may be: %s." % numbers)
    add = p.add_argument
    add("--cfg", required=True, metavar="FILE", help="configuration (YAML); configs/dds_baselines/effnet holds the recipes")
    add("--data-path", metavar="DIR", help="folder with train/ and val/, each with one folder of images per class")
    flags.add_run_flags(p)
    p.set_defaults(compile=None, dummy=False, shuffle_shards=False)
    if trains:
        flags.add_speed_flags(p)
        flags.add_resume_flag(p, "OUT_DIR/checkpoint.pth.tar, else of upstream's (TRAIN.AUTO_RESUME True says so too)")
    add("--device-id", type=ranges.device, help="the device of a single rank (without it --rank-id, or 0)")
    add("--device-list", type=cli.int_list, help="devices of NUM_GPUS ranks that are started here (without it 0,1,2...)")
    add("--rank-id", type=ranges.count, help="be this one of NUM_GPUS ranks that are started one by one; they meet at "
        "MASTER_ADDR and MASTER_PORT (127.0.0.1, %d)" % MASTER_PORT)
    flags.add_node_flags(p)
    add("opts", nargs="...", metavar="KEY VALUE", help="configuration keys to override, such as OUT_DIR result; after the flags")
    return p


def launch(worker, args, splits):
    """Run `worker(args, rank)` in every rank. `splits`: the parts of the data set that have to be there, TRAIN or TEST."""
    if splits and not args.dummy:
        if not args.data_path:
            raise UserError("no data set: give the folder that holds train/ and val/ with --data-path")
        data.check_layout(args.data_path, tuple(sorted({cfg[key].SPLIT for key in splits})))
    layout = _layout(args)
    batch = max(cfg.TRAIN.BATCH_SIZE // cfg.TRAIN.ACCUMULATE if "TRAIN" in splits else 0, cfg.TEST.BATCH_SIZE)
    flags.require_memory(batch // cfg.NUM_GPUS * len(layout.indices), cfg.TRAIN.IM_SIZE)
    distributed.launch(worker, args, layout)


def _layout(args):
    """Return the distributed.Layout of NUM_GPUS ranks over all machines: those of this machine, or this one alone."""
    if args.rank_id is not None and cfg.NUM_GPUS > 1:
        if args.rank_id >= cfg.NUM_GPUS:
            raise UserError("--rank-id %d: NUM_GPUS is %d, so it is 0 to %d" % (args.rank_id, cfg.NUM_GPUS, cfg.NUM_GPUS - 1))
        index = args.rank_id if args.device_id is None else args.device_id
        return flags.node_layout(args, [index], MASTER_PORT, by_hand=(args.rank_id, cfg.NUM_GPUS, 0, 1))
    indices = args.device_list or ([args.device_id or 0] if cfg.NUM_GPUS == 1 else [])
    return flags.node_layout(args, indices, MASTER_PORT, world_size=cfg.NUM_GPUS)

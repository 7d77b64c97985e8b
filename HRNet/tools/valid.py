"""Evaluate HRNet weights on ImageNet's validation set: one device, or several of one machine."""
import os
import sys

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, os.pardir, os.pardir), os.path.join(HERE, os.pardir)]
from common import cli, data, distributed, precision, records  # noqa: E402
from lib.core import options  # noqa: E402
from lib.core.data import make_eval_batches  # noqa: E402
from lib.core.function import say, validate  # noqa: E402


def parser():
    p = cli.Parser(description=__doc__)
    options.add_common_flags(p, workers_of="this process, instead of NPROC / DN")
    p.add_argument("--max-steps", dest="stop_step", type=cli.positive_int, metavar="STEPS",
                   help="leave the images after this many steps out")
    return p


def main():
    args = parser().parse_intermixed_args()
    where, _ = options.layout(args)
    records_wanted = args.output_path is not None
    args = options.settle(args, [], where)
    args.records = os.path.join(args.output_path, "metrics.jsonl") if records_wanted else ""
    args.weights = args.config.TEST.MODEL_FILE or os.path.join(args.output_path, "final_state.pth.tar")
    data.check_layout(args.data_path, (args.config.DATASET.TEST_SET,))
    distributed.launch(work, args, where)


def work(args, rank):
    """What each rank does."""
    model = options.initial_model(args, args.weights).to(rank.device)
    model, _, amp = precision.initialize(model, None, args.opt_level, None, rank.device)
    batches = make_eval_batches(args, rank)
    recorder = records.Recorder(args.records, rank)
    recorder.parameters(dict(vars(args), world_size=rank.world_size, device_type=rank.device.type,
                             opt_level_run=amp.opt_level, torch=torch.__version__))
    say(rank, "=> loading model from " + args.weights, amp.note)
    top1, top5, loss = validate(batches, model, torch.nn.CrossEntropyLoss(), amp, rank)
    recorder.log((), {"val.top1": top1, "val.top5": top5, "val.loss": loss, "bad_images": batches.count_bad(rank)})


if __name__ == "__main__":
    cli.run(main)

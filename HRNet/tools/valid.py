"""Evaluate HRNet weights on ImageNet's validation set: one device, or several of one machine."""
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, os.pardir, os.pardir), os.path.join(HERE, os.pardir)]
from common import cli, data, distributed, network, precision, records  # noqa: E402
from common.progress import Learner  # noqa: E402
from lib.core import options  # noqa: E402
from lib.core.data import make_batches  # noqa: E402
from lib.core.function import validate  # noqa: E402
import torch  # noqa: E402 (after common, which says what this Python lacks)


def parser():
    p = cli.Parser(description=__doc__)
    options.add_common_flags(p)
    p.add_argument("--max-steps", dest="stop_step", type=cli.positive_int, metavar="STEPS",
                   help="leave the images after this many steps out")
    return p


def main():
    args = parser().parse_intermixed_args()
    layout = options.device_layout(args)
    records_wanted = args.output_path is not None
    args = options.resolved(args, [], layout)
    args.records = os.path.join(args.output_path, "metrics.jsonl") if records_wanted else ""
    args.weights = args.config.TEST.MODEL_FILE or os.path.join(args.output_path, "final_state.pth.tar")
    data.check_layout(args.data_path, (args.config.DATASET.TEST_SET,))
    distributed.launch(evaluate, args, layout)


def evaluate(args, rank):
    """What each rank does."""
    model = network.place(options.initial_model(args, args.weights, rank), rank.device)
    model, _, amp = precision.initialize(model, None, args.opt_level, None, rank.device, args.amp_dtype)
    learner = Learner(model, torch.nn.CrossEntropyLoss(), None, amp)
    batches = make_batches("TEST", args, rank)
    recorder = records.start(args.records, rank, args, amp)
    rank.print("=> loading model from " + args.weights, amp.note)
    recorder.evaluation(validate(batches, learner, rank), batches.count_bad(rank))


if __name__ == "__main__":
    cli.run(main)

"""FixRes, phase 3: top-1 and top-5 on ImageNet's validation set at the resolution of the test."""
import os
import sys

sys.path[:0] = [os.path.join(os.path.dirname(os.path.abspath(__file__)), *up) for up in ((), (os.pardir,))]
from common import cli, data, distributed  # noqa: E402
from imnet_common import flags, networks  # noqa: E402
from imnet_evaluate.evaluation import evaluate_weights  # noqa: E402


def parser():
    p = flags.parser(__doc__, input_size=384, batch=64)
    add = p.add_argument
    add("--architecture", choices=networks.ARCHITECTURES, default="ResNet50")
    add("--EfficientNet-models", metavar="NAME", default="tf_efficientnet_b0_ap", help="timm's name of the EfficientNet")
    add("--weight-path", "--pth-path", dest="pth_path", metavar="PATH", help="the weights: a file, or the folder that holds it")
    add("--shared-folder-path", metavar="DIR", help="accepted and not needed: an evaluation writes no checkpoint")
    add("--job-id", help="accepted and not needed")
    return p


def main():
    args = parser().parse_args()
    if not args.pth_path:
        raise cli.UserError("nothing to evaluate: give the weights with --weight_path (or --pth_path)")
    args.batch_per_rank = args.batch
    data.check_layout(args.imnet_path, ("val",))
    distributed.launch(evaluate_weights, args, flags.layout(args))


if __name__ == "__main__":
    cli.run(main)

"""FixRes, phase 3: top-1 and top-5 on ImageNet's validation set at the resolution of the test."""
import os
import sys

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
from common import cli, data, distributed, precision, records  # noqa: E402
from imnet_common import batches, flags, networks, transforms, weights  # noqa: E402
from imnet_common.training import say  # noqa: E402
from imnet_evaluate.evaluation import evaluate  # noqa: E402


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
    data.check_layout(args.imnet_path, ("val",))
    distributed.launch(evaluate_weights, args, flags.layout(args))


def evaluate_weights(args, rank):
    """What each rank does."""
    model = networks.build(args.architecture, args.num_classes, args.EfficientNet_models)
    weights.load(model, args.pth_path, args.num_classes)
    model.to(rank.device)
    model, _, amp = precision.initialize(model, None, args.opt_level, device=rank.device)
    recipe = networks.RECIPES[args.architecture]
    transform = transforms.eval_pipeline(args.input_size, args.resize == "short-side")
    val_batches = batches.validation(args, rank, transform, recipe.mean, recipe.std)
    recorder = records.Recorder(args.metrics_file, rank)
    recorder.parameters(dict(vars(args), world_size=rank.world_size, device_type=rank.device.type,
                             opt_level_run=amp.opt_level, torch=torch.__version__))
    say(rank, amp.note)
    say(rank, "%s: test size %d, global batch %d" % (args.architecture, args.input_size, args.batch * rank.world_size))
    result = evaluate(val_batches, model, amp, rank)
    recorder.log((), {"val.top1": result.top1, "val.top5": result.top5, "val.loss": result.loss,
                      "bad_images": val_batches.count_bad(rank)})
    say(rank, str({"val_top1": result.top1, "val_top5": result.top5}))
    say(rank, "Validation accuracy: (%.5f, %.5f)" % (result.top1, result.top5))


if __name__ == "__main__":
    cli.run(main)

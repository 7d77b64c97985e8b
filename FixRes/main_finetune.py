"""FixRes, phase 2: adapt the classifier and the last BatchNorm's statistics to a higher resolution."""
import functools
import os
import sys

sys.path[:0] = [os.path.join(os.path.dirname(os.path.abspath(__file__)), *up) for up in ((), (os.pardir,))]
from common import checkpoint, cli, data, distributed  # noqa: E402
from imnet_common import flags, networks, training, transforms, weights  # noqa: E402
from imnet_finetune.adaptation import freeze, set_finetune_mode  # noqa: E402
from imnet_finetune.samplers import FixedOrderSampler  # noqa: E402


def parser():
    p = flags.parser(__doc__, input_size=384, batch=64)
    flags.add_training(p, learning_rate=1e-3, epochs=60, scaling="see --lr-scaling")
    add = p.add_argument
    add("--architecture", choices=networks.ARCHITECTURES, default="ResNet50")
    add("--EfficientNet-models", metavar="NAME", default="tf_efficientnet_b0_ap", help="timm's name of the EfficientNet")
    add("--resnet-weight-path", "--pth-path", dest="pth_path", metavar="PATH",
        help="weights to start from, of any architecture: a file, or the folder of phase 1. All but ResNet50 can do without, and "
             "then fetch the published ones")
    add("--lr-scaling", choices=("global-batch", "none"), default="global-batch",
        help="whether the rate grows with the global batch, as upstream's does and the Ascend port's does not")
    add("--transforms", choices=("v1", "v2"), default="v1",
        help="training images: as in evaluation (v1), or upstream's second recipe with mild augmentation (v2)")
    return p


def main():
    args = parser().parse_args()
    flags.divide(args)
    flags.resolve_files(args, subfolder="finetune")
    if not args.dummy:
        data.check_layout(args.imnet_path)
    distributed.launch(finetune, args, flags.layout(args))


def finetune(args, rank):
    """What each rank does."""
    pipeline = {"v1": transforms.eval_pipeline, "v2": transforms.finetune_pipeline_v2}[args.transforms]
    training.train(args, rank, training.Phase(
        architecture=args.architecture, network=start_network, sampler=FixedOrderSampler,
        transform=pipeline(args.input_size, args.resize == "short-side"),
        set_mode=functools.partial(set_finetune_mode, architecture=args.architecture),
        scaled=args.lr_scaling == "global-batch", evaluate_first=True))


def start_network(args, rank):
    """Return the network, frozen but for what is adapted, with the weights that the flags name, or else the published ones. A
    resumed run has its own."""
    model = networks.build(args.architecture, args.num_classes, args.EfficientNet_models)
    if args.pth_path:
        rank.print(weights.load(model, args.pth_path, args.use_ema, args.new_classifier))
    elif not args.resume:
        content = networks.first_weights(args.architecture, args.EfficientNet_models)
        checkpoint.load_weights(model, content, "the published weights of " + args.architecture, new_classifier=args.new_classifier)
    freeze(model, args.architecture)
    return model


if __name__ == "__main__":
    cli.run(main)

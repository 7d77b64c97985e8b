"""FixRes, phase 1: train a ResNet-50 from scratch on ImageNet at a low resolution, with repeated augmentation."""
import os
import sys

sys.path[:0] = [os.path.join(os.path.dirname(os.path.abspath(__file__)), *up) for up in ((), (os.pardir,))]
from common import cli, data, distributed  # noqa: E402
from imnet_common import flags, networks, training, transforms, weights  # noqa: E402
from imnet_resnet50_scratch.samplers import RASampler  # noqa: E402


def parser():
    p = flags.parser(__doc__, input_size=224, batch=64)
    flags.add_training(p, learning_rate=0.02, epochs=120, scaling="grows with the global batch")
    p.add_argument("--pth-path", metavar="PATH", help="weights to start from: a file, or the folder that holds it")
    return p


def main():
    args = parser().parse_args()
    flags.divide(args)
    flags.resolve_files(args, subfolder="")
    if args.new_classifier and not args.pth_path:
        raise cli.UserError("--new-classifier is of a training that starts from weights: give them with --pth-path")
    if not args.dummy:
        data.check_layout(args.imnet_path)
    distributed.launch(train, args, flags.layout(args))


def train(args, rank):
    """What each rank does."""
    training.train(args, rank, training.Phase(
        architecture="ResNet50", network=start_network, sampler=RASampler, transform=transforms.train_pipeline(args.input_size),
        set_mode=lambda network: network.train(), scaled=True, evaluate_first=False))


def start_network(args, rank):
    """Return the network with the weights that the flags name, or with random ones."""
    model = networks.build("ResNet50", args.num_classes)
    if args.pth_path:
        rank.print(weights.load(model, args.pth_path, args.use_ema, args.new_classifier))
    return model


if __name__ == "__main__":
    cli.run(main)

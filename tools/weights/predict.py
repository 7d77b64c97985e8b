"""Say what is on pictures: the five classes that a network finds likeliest, with their names and probabilities.

The pictures are resized and cropped as the model's evaluation does it. Names are those that the checkpoint holds, or of --classes.

Example: weights.py predict test/output/0/model_best.pth.tar cat.jpg dog.png --classes=/data/imagenet
"""
import torch

from common import cli, folders, jpeg
from weights import _files, _networks

TOP = 5


def add_flags(parser):
    """Add the verb's flags to its parser."""
    _files.add_flags(parser)
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="files in any format that Pillow reads")
    parser.add_argument("--image-size", type=cli.positive_int, help="pixels of a side; the recipe's without it")


def run(args):
    """Print a line for each picture, and a line for each of its likeliest classes."""
    opened = [_open(path) for path in args.pictures]
    weights = _files.read(args)
    names, view = _files.class_names(weights), _files.view_of(weights, args.image_size)
    model = _files.module(weights)
    for path, picture in zip(args.pictures, opened):
        with torch.no_grad():
            likely = torch.softmax(model(_networks.normalised([view.transform(view.size)(picture, None)], view))[0], 0)
        cli.print_line(folders.shown(path))
        for share, number in zip(*likely.topk(min(TOP, len(names)))):
            cli.print_line("%7.2f %%  %s" % (100 * share, folders.shown(names[number])))


def _open(path):
    try:
        return jpeg.open_rgb(folders.read(path))
    except (OSError, jpeg.Unreadable) as error:
        raise cli.UserError("%s cannot be read as a picture: %s" % (path, folders.why(error)))

"""What a network has said of the validation pictures (predictions.npz, common/predictions.py): its worst classes and pictures."""
import base64
import io
import os

import numpy as np
from PIL import Image

from common import data, jpeg, packed
from common.cli import UserError

_SHOWN, _PICTURES, _SIDE = 20, 20, 160

_ARRAYS = ("index", "target", "loss", "classes", "shares", "names", "root")


def read(run):
    """Return what the page shows of a Run's predictions, None where it has none: `count` of pictures, `classes`, `confusions`, `pictures`,
    and in `missing` why there are no pictures. Raises UserError for a file that is none of ours."""
    path = os.path.join(run.folder, "predictions.npz")
    if not os.path.isfile(path):
        return None
    try:
        with np.load(path, allow_pickle=False) as content:
            found = {name: content[name] for name in _ARRAYS}
        found["names"], source = _source(run, found)
    except Exception as error:  # a damaged archive fails anywhere
        raise UserError("%s is not what --predictions writes (%s)" % (path, error))
    answers = {"count": len(found["index"]), "classes": worst_classes(found), "confusions": confusions(found), "missing": ""}
    try:
        pictures = worst_pictures(found, source())
    except (OSError, UserError, IndexError) as error:
        pictures, answers["missing"] = [], str(error)
    return dict(answers, pictures=pictures)


def _name(found, number):
    return str(found["names"][number]) if number < len(found["names"]) else "class %d" % number


def worst_classes(found):
    """Return (name, pictures, per cent right, what it is taken for most often) of the classes with the smallest share of right answers."""
    first, lines = found["classes"][:, 0], []
    for number in np.unique(found["target"]):
        answers = first[found["target"] == number]
        wrong, counts = np.unique(answers[answers != number], return_counts=True)
        other = _name(found, wrong[counts.argmax()]) if len(wrong) else ""
        lines.append((_name(found, number), len(answers), 100.0 * float(np.mean(answers == number)), other))
    return sorted(lines, key=lambda line: line[2])[:_SHOWN]


def confusions(found):
    """Return (class, taken for, how often, per cent of the class's pictures) of what is most often confused."""
    pairs = np.stack([found["target"], found["classes"][:, 0]])
    pairs, counts = np.unique(pairs[:, pairs[0] != pairs[1]], axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_SHOWN]
    return [(_name(found, target), _name(found, answer), int(count), 100.0 * float(count / np.sum(found["target"] == target)))
            for (target, answer), count in zip(pairs[:, order].T, counts[order])]


def worst_pictures(found, picture):
    """Return (data URI, name, class, answers with per cent, loss) of the wrong answers with the largest loss. `picture(index, target)`
    returns (PIL image, name)."""
    wrong = np.flatnonzero(found["classes"][:, 0] != found["target"])
    lines = []
    for place in wrong[np.argsort(-found["loss"][wrong], kind="stable")][:_PICTURES]:
        image, name = picture(int(found["index"][place]), int(found["target"][place]))
        answers = [(_name(found, number), 100.0 * float(share)) for number, share in zip(found["classes"][place], found["shares"][place])]
        lines.append((_uri(image), name, _name(found, found["target"][place]), answers[:2], float(found["loss"][place])))
    return lines


def _uri(image):
    if max(image.size) < _SIDE:
        image = image.resize([side * (_SIDE // max(image.size)) for side in image.size], Image.NEAREST)
    image.thumbnail((_SIDE, _SIDE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


# --- the pictures -----------------------------------------------------------------------------------------------------

def _source(run, found):
    """Return the names of the classes, and a function that opens the data set and returns `picture` of worst_pictures."""
    root = str(found["root"])
    if root:
        return found["names"], lambda: _of_folder(root)
    from GENet import cifar
    folder, dataset = run.parameters.get("folder"), run.parameters.get("dataset")
    try:
        names = cifar.class_names(folder, dataset)
    except (UserError, OSError, TypeError, KeyError):
        names = []
    return names, lambda: _of_cifar(*cifar.read_split(folder, "test", dataset))


def _of_folder(root):
    files = packed.Shards(root) if packed.is_packed(root) else data.Files(root)

    def picture(index, target):
        _check(files.targets[index], target, root)
        try:
            return jpeg.whole(files.read(index)), os.path.basename(files.path(index))
        except jpeg.Unreadable as error:
            raise UserError("%s cannot be read: %s" % (files.path(index), error))
    return picture


def _of_cifar(images, labels):
    def picture(index, target):
        _check(labels[index], target, "CIFAR's test set")
        return Image.fromarray(images[index].transpose(1, 2, 0)), "number %d" % index
    return picture


def _check(label, target, root):
    if label != target:
        raise UserError("%s is not the data set that was evaluated" % root)

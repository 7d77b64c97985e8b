"""What the trials of all verbs share: data sets, the smallest run of each model, and its undisturbed results."""
import glob
import hashlib
import json
import os
import random
import shutil
import sys
import threading

import torch

from ci.campaign import process
from common import checkpoint
from conftest import MODELS, ROOT, differences, write_images
from test_all_scripts import FULL, content, results
from test_all_scripts import TINY as SMALL
from test_genet_data import write_cifar

HERE = os.path.dirname(os.path.abspath(__file__))
EPOCHS, STEPS, BATCH = 2, 3, 8
SMALLEST = {"FixRes": ["--num_classes=4", "--image_size=32", "--eval_freq=1"]}
NETWORK = {model: SMALLEST.get(model, SMALL[model].options) for model in MODELS if model in SMALL}


class Skipped(Exception):
    """A trial that cannot be made on this machine; the message says why."""


class World(object):
    """The campaign's work folder: data sets, references, a place for each trial."""

    def __init__(self, folder):
        self.folder = os.path.abspath(folder)
        self._lock = threading.RLock()
        os.makedirs(os.path.join(self.folder, "references"), exist_ok=True)

    def rng(self, *words):
        """Return a random.Random that is fixed by `words`."""
        return random.Random(" ".join(map(str, words)))

    # --- data ---

    def data(self, model):
        """Return the folder of a small data set in the model's layout."""
        layout = SMALL[model].layout
        path = os.path.join(self.folder, "data", layout)
        with self._lock:
            if not os.path.isdir(path):
                write_data(layout, path + ".part")
                os.rename(path + ".part", path)
        return path

    # --- runs ---

    def words(self, model, script, out, ranks=1):
        """Return {option: value} of a small run."""
        words = {"data_path": self.data(model), "output_path": out, "device": "cpu", "workers": "0"}
        words.update(word[2:].split("=", 1) for word in NETWORK[model])
        words["batch_size"] = str(BATCH // (ranks if SMALL[model].per_rank else 1))
        if "1p" not in script:
            words["device_list"] = ",".join(map(str, range(ranks)))
        if "eval" not in script:
            words.update(train_epochs=str(EPOCHS), max_steps=str(STEPS), seed="5", learning_rate="0.01", checkpoint_steps="1")
        if "performance" not in script:
            words["opt_level"] = "O0"
        return {name: value for name, value in words.items() if name in self.options(model, script)}

    def options(self, model, script):
        """Return the names of the options of a script."""
        key = "options-%s-%s" % (model, script)
        return self._once(key, lambda: process.run(process.command(model, script, ["--help"]), self.folder).options())

    def weights(self, model):
        """Return a file with the weights of the model alone."""
        path = os.path.join(self.folder, "references", model + ".pth")
        reference = self.reference(model, 1)
        with self._lock:
            if not os.path.exists(path):
                state = checkpoint.weights(checkpoint.load(os.path.join(reference, "checkpoint.pth.tar")), use_ema="false")
                torch.save({"state_dict": state}, path)
        return path

    def reference(self, model, ranks):
        """Return the output folder of an undisturbed run."""
        out = os.path.join(self.folder, "references", "%s-%d" % (model, ranks))
        with self._lock:
            if not os.path.exists(os.path.join(out, "seconds")):
                shutil.rmtree(out, ignore_errors=True)
                done = process.run(process.command(model, FULL[ranks], self.words(model, FULL[ranks], out, ranks)), self.folder)
                assert done.status == 0, "the undisturbed run of %s failed:\n%s" % (model, done.stderr)
                with open(os.path.join(out, "seconds"), "w") as stream:
                    stream.write(str(done.seconds))
        return out

    def seconds(self, model, ranks):
        """Return how long the undisturbed run took."""
        with open(os.path.join(self.reference(model, ranks), "seconds")) as stream:
            return float(stream.read())

    def unlike_reference(self, model, ranks, out):
        """Return what differs between weights, optimizer and records in `out` and those of the undisturbed run."""
        pairs = [[read(_Path(folder)) for read in (content, results)] for folder in (self.reference(model, ranks), out)]
        found = differences(*pairs)
        return ["other results than the undisturbed run: %s" % ", ".join(map(str, found[:3]))] if found else []

    def _once(self, key, make):
        path = os.path.join(self.folder, "references", key + ".json")
        with self._lock:
            if not os.path.exists(path):
                found = make()
                with open(path, "w") as stream:
                    json.dump(found, stream)
            with open(path) as stream:
                return json.load(stream)


class _Path(str):
    """A folder's name that is joined with `/`, as the readers of test_all_scripts do."""

    def __truediv__(self, name):
        return _Path(os.path.join(self, name))

    def read_text(self):
        """Return the file's text."""
        with open(self) as stream:
            return stream.read()


def write_data(layout, path):
    """Write 32 training and 8 validation images in ImageFolder's layout, or CIFAR-10's files."""
    shutil.rmtree(path, ignore_errors=True)
    if layout == "cifar":
        import pathlib
        write_cifar(pathlib.Path(path) / "cifar-10-batches-py", per_batch=8)
    else:
        write_images(os.path.join(path, "train"), per_class=8)
        write_images(os.path.join(path, "val"), per_class=2, seed=1)


def of_this_code():
    """Return a word that changes with the programs under test: what was found of other ones does not count."""
    digest = hashlib.sha1(sys.version.encode() + torch.__version__.encode())
    rooms = ["common"] + sorted(NETWORK)
    for path in sorted(path for room in rooms for kind in ("py", "sh", "yaml")
                       for path in glob.glob(os.path.join(ROOT, room, "**", "*." + kind), recursive=True)):
        if os.sep + "output" + os.sep not in path:
            with open(path, "rb") as stream:
                digest.update(stream.read())
    return digest.hexdigest()[:10]

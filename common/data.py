"""Images from class folders to normalised batches on the device.

The host only decodes, crops and resizes (common/transforms.py): batches travel as uint8 and become normalised floats on the device. The
augmentation of a sample is a pure function of (seed, epoch, index), so results do not depend on the number of workers,
and a resumed run sees exactly what the interrupted one would have seen.
"""
import inspect
import os
import random
import signal
import struct

import numpy as np
import torch
from PIL import Image

from common import cli, distributed
from common.cli import UserError
from common.transforms import center_crop, crop_and_resize, random_resized_crop_box, resize_shorter  # noqa: F401  (data.center_crop …)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_CPUS = len(os.sched_getaffinity(0))  # now: an NPU's plug-in may bind this thread, and not the loaders, to a single one later

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


# --- the data set on disk ---------------------------------------------------------------------------------------------

def check_layout(root, splits=("train", "val")):
    """Raise UserError unless `root` holds ImageNet's layout: one folder per class in each of `splits`."""
    if not os.path.isdir(root):
        raise UserError("data path %s is not a folder; it should hold %s" % (root, " and ".join(s + "/" for s in splits)))
    classes = {}
    for split in splits:
        folder = os.path.join(root, split)
        if not os.path.isdir(folder):
            raise UserError("data path %s has no folder %s/ (wanted: %s/<class>/<image>)" % (root, split, split))
        classes[split] = class_names(folder)
    if len(splits) > 1 and classes[splits[0]] != classes[splits[1]]:
        odd = sorted(set(classes[splits[0]]) ^ set(classes[splits[1]]))
        raise UserError("%s: %s/ and %s/ have different classes (%s is only in one)" % ((root,) + tuple(splits) + (odd[0],)))


def class_names(folder):
    """Return the names of the class folders in ascending order: the position is the class number."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not names:
        raise UserError("%s has no class folders (wanted: %s/<class>/<image>)" % (folder, folder))
    return names


class ImageFolder(torch.utils.data.Dataset):
    """The images below `root`/<class>/, in the order of class and file names.

    Takes keys (epoch, index) and gives (uint8 array (height, width, 3), class number, unreadable files met), after
    `transform(PIL image in RGB, random.Random)`. With `skip_bad_images` an unreadable file is replaced by the next
    readable one in training (`replace`) and left out in evaluation, where the array is None; without it the array is
    None as well, and `device_batches` stops with a UserError that names the file.
    """

    def __init__(self, root, transform, outputs, seed=0, skip_bad_images=False, replace=False):
        """`outputs`: those of the network; raises UserError where there are more classes."""
        self.root = root
        self.classes = class_names(root)
        if len(self.classes) > outputs:
            raise UserError("%s has %d classes, the network has %d outputs (--num_classes, MODEL.NUM_CLASSES in a configuration)"
                            % (root, len(self.classes), outputs))
        self._transform = transform
        self._seed = seed
        self._attempts = None if skip_bad_images and replace else 1
        paths, targets = [], []
        for number, name in enumerate(self.classes):
            found = _image_paths(root, name)
            if not found:
                raise UserError("class folder %s has no image" % os.path.join(root, name))
            paths += found
            targets += [number] * len(found)
        # Arrays, not lists: a million Python objects would be copied page by page into every worker.
        self._paths = np.array(paths)
        self.targets = np.array(targets, dtype=np.int64)

    def __len__(self):
        return len(self.targets)

    def path(self, index):
        """Return the path of an image."""
        return os.path.join(self.root, os.fsdecode(bytes(self._paths[index])))

    def __getitem__(self, key):
        epoch, first = key
        bad = []
        for offset in range(self._attempts or len(self)):
            index = (first + offset) % len(self)
            try:
                image = load_rgb(self.path(index))
            except _UNREADABLE as error:
                bad.append("%s (%s)" % (self.path(index), error))
                continue
            return self._transform(image, sample_rng(self._seed, epoch, index)), int(self.targets[index]), bad
        return None, -1, bad


def _image_paths(root, class_name):
    found = []
    for folder, _, names in sorted(os.walk(os.path.join(root, class_name), followlinks=True)):
        below = os.path.relpath(folder, root)
        found += [os.fsencode(os.path.join(below, name)) for name in sorted(names) if name.lower().endswith(_EXTENSIONS)]
    return found


def load_rgb(path):
    """Return the decoded PIL image in RGB. Raises OSError and others for unreadable files."""
    with open(path, "rb") as stream:
        image = Image.open(stream)
        image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def sample_rng(seed, epoch, index):
    """Return the random.Random from which the augmentation of one sample in one epoch draws."""
    return random.Random((seed << 80) + (epoch << 48) + index)


# --- which rank sees what, when ---------------------------------------------------------------------------------------

class TrainBatches(object):
    """A batch sampler: shuffled, sharded, able to start in the middle of an epoch.

    Epoch e's order is the permutation of torch's generator seeded with seed + e (PyTorch's DistributedSampler), and rank
    r takes every world_size-th of it. N ranks with batches of B/N together see in each step what one rank sees with B.
    """

    def __init__(self, length, batch_size, rank, seed=0, max_steps=None, drop_last=True, accumulate=1):
        """`batch_size` is that of one rank; `max_steps` ends each epoch early. With `drop_last` an epoch is a whole number of
        updates, of `accumulate` batches each. Without, it ends with a smaller batch, for which the order is repeated from its
        start until all ranks have equally many. Raises UserError when there is not a single update."""
        self.images, self.global_batch = length, batch_size * accumulate * rank.world_size
        self.step_images, self._rank, self._seed = batch_size * rank.world_size, rank, seed
        self._max_steps, self._drop_last, self._accumulate = max_steps, drop_last, accumulate
        self._epoch = self._first_step = 0
        if len(self) == 0:
            raise UserError("a batch of %d is larger than the data set of %d training images" % (self.global_batch, length))

    def set_epoch(self, epoch, first_step=0):
        """Choose the epoch that the next iteration is of, and the step that it starts with."""
        self._epoch, self._first_step = epoch, first_step

    def __len__(self):
        """Return the steps of a whole epoch."""
        if self._drop_last:
            steps = self.images // self.global_batch * self._accumulate
        else:
            steps = -(-self.images // self.step_images)
        return min(steps, self._max_steps or steps)

    def __iter__(self):
        generator = torch.Generator()
        generator.manual_seed(self._seed + self._epoch)
        order = torch.randperm(self.images, generator=generator).numpy()
        if not self._drop_last:
            order = np.resize(order, -(-self.images // self._rank.world_size) * self._rank.world_size)
        epoch = self._epoch
        for step in range(self._first_step, len(self)):
            part = order[step * self.step_images:(step + 1) * self.step_images]
            yield [(epoch, int(index)) for index in part[self._rank.rank::self._rank.world_size]]


class EvalBatches(object):
    """A batch sampler: in order, each image once over all ranks, nothing padded; a rank may get one batch fewer."""

    def __init__(self, length, batch_size, rank, max_steps=None):
        """`batch_size` is that of one rank; `max_steps` leaves the rest of the images out."""
        if max_steps:
            length = min(length, max_steps * batch_size * rank.world_size)
        self._indices = range(rank.rank, length, rank.world_size)
        self._batch_size = batch_size

    def __len__(self):
        return (len(self._indices) + self._batch_size - 1) // self._batch_size

    def __iter__(self):
        for start in range(0, len(self._indices), self._batch_size):
            yield [(0, index) for index in self._indices[start:start + self._batch_size]]


# --- to the device ----------------------------------------------------------------------------------------------------

def loader(dataset, batches, workers, device):
    """Return a DataLoader over an ImageFolder that gives (uint8 (N, 3, H, W), int64 (N,), unreadable files). Where this process is
    bound to some of the machine's CPUs, it has no more workers than those, and they stay there."""
    options = {}
    if _CPUS < (os.cpu_count() or 1):
        workers = min(workers, _CPUS)
    known = inspect.signature(torch.utils.data.DataLoader.__init__).parameters
    if workers > 0 and "persistent_workers" in known:
        options["persistent_workers"] = True
    if workers > 0:  # a spawned rank would spawn its workers too: slow to start, and the memory of the data set in each
        options["multiprocessing_context"] = "fork"
    if device.type == "npu" and "pin_memory_device" in known and not hasattr(torch, "accelerator"):
        options["pin_memory_device"] = "npu"
    return torch.utils.data.DataLoader(
        dataset, batch_sampler=batches, num_workers=workers, collate_fn=_collate, worker_init_fn=_worker_init,
        pin_memory=device.type != "cpu", **options)


def _collate(samples):
    bad = [message for _, _, messages in samples for message in messages]
    good = [(array, target) for array, target, _ in samples if array is not None]
    if not good:
        return torch.zeros(0, 3, 1, 1, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), bad
    images = torch.from_numpy(np.stack([array for array, _ in good])).permute(0, 3, 1, 2)
    return images, torch.tensor([target for _, target in good]), bad


def _worker_init(_):
    # Workers inherit the trainer's handlers: they must not wait for a step that they do not take, and the trainer
    # alone answers Ctrl-C (it then ends them).
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def device_batches(dataset, batches, workers, rank, mean=IMAGENET_MEAN, std=IMAGENET_STD, skip_bad_images=False):
    """Return the DeviceBatches of an ImageFolder in the order of a batch sampler. `workers`: loader processes of this rank."""
    return DeviceBatches(loader(dataset, batches, workers, rank.device), rank.device, mean, std, skip_bad_images)


class DeviceBatches(object):
    """Iterates a loader and gives (normalised float32 (N, 3, H, W), int64 (N,)) on the device.

    Raises UserError at an unreadable image, unless `skip_bad_images`; then `bad_images` collects their names.
    """

    def __init__(self, source, device, mean=IMAGENET_MEAN, std=IMAGENET_STD, skip_bad_images=False):
        self._source, self._device, self._skip_bad_images = source, device, skip_bad_images
        self._mean = 255 * torch.tensor(mean, device=device).view(1, -1, 1, 1)
        self._std = 255 * torch.tensor(std, device=device).view(1, -1, 1, 1)
        self.bad_images = set()

    def __len__(self):
        """Return the steps of a whole epoch."""
        return len(self._source)

    @property
    def images(self):
        """Images of the training set."""
        return self._source.batch_sampler.images

    @property
    def global_batch(self):
        """Images whose gradients make one update, over all ranks."""
        return self._source.batch_sampler.global_batch

    @property
    def step_images(self):
        """Images of a step, over all ranks: fewer than `global_batch` where gradients are accumulated."""
        return self._source.batch_sampler.step_images

    def of_epoch(self, epoch, first_step=0):
        """Return an iterator over the training batches of an epoch from `first_step` on."""
        self._source.batch_sampler.set_epoch(epoch, first_step)
        return iter(self)

    def __iter__(self):
        for images, targets, bad in self._source:
            if bad and not self._skip_bad_images:
                raise UserError("cannot read %s; --skip_bad_images goes on without such files" % bad[0])
            for message in set(bad) - self.bad_images:
                cli.print_line("skipped unreadable image " + message)
            self.bad_images.update(bad)
            if len(targets):
                yield self._normalized(images), targets.to(self._device, non_blocking=True)

    def count_bad(self, rank):
        """Return how many unreadable images all ranks have met (evaluation and training of a file count once each)."""
        return int(distributed.sum_over_ranks([len(self.bad_images)], rank)[0])

    def _normalized(self, images):
        images = images.to(self._device, non_blocking=True).contiguous().float()
        return images.sub_(self._mean).div_(self._std)

"""From the folders of ImageNet to the batches of one rank."""
import os

from common import data
from common.cli import UserError


class SequenceBatches(object):
    """A batch sampler over `sampler.keys(epoch)`, able to start in the middle of an epoch. The last batch may be smaller.

    A key is (draw, index): the number of the image, and a number from which its augmentation follows. `sampler.steps(batch)` is
    the length of an epoch; `max_steps` ends it earlier.
    """

    def __init__(self, sampler, batch_size, max_steps=None):
        self._sampler, self._batch_size, self._max_steps = sampler, batch_size, max_steps
        self._epoch = self._first_step = 0

    def set_epoch(self, epoch, first_step=0):
        """Choose the epoch that the next iteration is of, and the step that it starts with."""
        self._epoch, self._first_step = epoch, first_step

    def __len__(self):
        """Return the steps of a whole epoch."""
        steps = self._sampler.steps(self._batch_size)
        return min(steps, self._max_steps or steps)

    def __iter__(self):
        keys = self._sampler.keys(self._epoch)
        for step in range(self._first_step, len(self)):
            yield [(int(draw), int(index)) for draw, index in keys[step * self._batch_size:(step + 1) * self._batch_size]]


def training(args, rank, make_sampler, transform, mean, std):
    """Return the device batches of train/, in the order of `make_sampler(number of images, ranks, rank)`."""
    dataset = data.ImageFolder(os.path.join(args.imnet_path, "train"), transform, args.seed, args.skip_bad_images, replace=True)
    sampler = make_sampler(len(dataset), rank.world_size, rank.rank)
    return _on_device(dataset, SequenceBatches(sampler, args.batch, args.max_steps), args, rank, mean, std)


def validation(args, rank, transform, mean, std):
    """Return the device batches of val/: in order, each image once over all ranks."""
    dataset = data.ImageFolder(os.path.join(args.imnet_path, "val"), transform, skip_bad_images=args.skip_bad_images)
    return _on_device(dataset, data.EvalBatches(len(dataset), args.batch, rank, args.max_steps), args, rank, mean, std)


def _on_device(dataset, batches, args, rank, mean, std):
    if len(dataset.classes) > args.num_classes:
        raise UserError("%s has %d classes, the network has --num_classes %d" % (dataset.root, len(dataset.classes), args.num_classes))
    source = data.loader(dataset, batches, args.workers - 1, rank.device)
    return data.DeviceBatches(source, rank.device, mean, std, args.skip_bad_images)

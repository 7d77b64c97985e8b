"""From the folders of ImageNet to the batches of one rank."""
import os

from common import data, synthetic


class SequenceBatches(object):
    """A batch sampler over `sampler.keys(epoch)`, able to start in the middle of an epoch. The last batch may be smaller.

    A key is (draw, index): the number of the image, and a number from which its augmentation follows. `sampler.steps(batch)` is
    the length of an epoch; `max_steps` ends it earlier. `accumulate` batches of all ranks are the `global_batch` of an update.
    """

    def __init__(self, sampler, batch_size, max_steps=None, accumulate=1):
        self.images, self.step_images = sampler.num_images, batch_size * sampler.num_replicas
        self.run_length = data.packed.RUN if sampler.order else 1
        self.global_batch = self.step_images * accumulate
        self._sampler, self.batch_size, self._max_steps = sampler, batch_size, max_steps
        self._epoch = self._first_step = 0

    def set_epoch(self, epoch, first_step=0):
        """Choose the epoch that the next iteration is of, and the step that it starts with."""
        self._epoch, self._first_step = epoch, first_step

    def __len__(self):
        """Return the steps of a whole epoch."""
        steps = self._sampler.steps(self.batch_size)
        return min(steps, self._max_steps or steps)

    def __iter__(self):
        keys = self._sampler.keys(self._epoch)
        for step in range(self._first_step, len(self)):
            yield [(int(draw), int(index)) for draw, index in keys[step * self.batch_size:(step + 1) * self.batch_size]]


def training(args, rank, make_sampler, transform, recipe):
    """Return the device batches of train/, in the order of `make_sampler(number of images, ranks, rank, seed, order)`. `recipe`:
    a networks.Recipe."""
    if args.dummy:
        return synthetic.SyntheticBatches(synthetic.IMAGENET[0], args.batch_per_rank, args.input_size, args.num_classes, rank,
                                          args.max_steps, args.accumulate)
    dataset = data.ImageFolder(os.path.join(args.imnet_path, "train"), transform, args.num_classes, args.seed,
                               args.skip_bad_images, args.decoder)
    sampler = make_sampler(len(dataset), rank.world_size, rank.rank, seed=args.seed, order=dataset.order(args.shuffle_shards))
    return _on_device(dataset, SequenceBatches(sampler, args.batch_per_rank, args.max_steps, args.accumulate), args, rank, recipe)


def validation(args, rank, transform, recipe):
    """Return the device batches of val/: in order, each image once over all ranks."""
    if args.dummy:
        return synthetic.SyntheticBatches(synthetic.IMAGENET[1], args.batch_per_rank, args.input_size, args.num_classes, rank,
                                          args.max_steps, args.accumulate)
    dataset = data.ImageFolder(os.path.join(args.imnet_path, "val"), transform, args.num_classes, decoder=args.decoder)
    return _on_device(dataset, data.EvalBatches(len(dataset), args.batch_per_rank, rank, args.max_steps), args, rank, recipe)


def _on_device(dataset, batches, args, rank, recipe):
    return data.device_batches(dataset, batches, args.workers - 1, rank, recipe.mean, recipe.std, args.skip_bad_images)

"""The batches of training and evaluation, on the device."""
import itertools
import os

from PIL import ImageOps

from common import data, synthetic
from pycls.core.config import cfg, step_batch_size
from pycls.datasets import transforms
from pycls.datasets.augment import parse_spec


class TrainSampler(data.TrainBatches):
    """TrainBatches of which an iteration can be cut short, so that the loader's processes read nothing in vain."""

    count = None

    def __iter__(self):
        return itertools.islice(super().__iter__(), self.count)


class Loader(data.DeviceBatches):
    """Gives batches (N, 3, S, S), BGR, normalised, and labels (N,), on the device."""

    def __init__(self, dataset, sampler, rank, skip_bad_images):
        source = data.Loader(dataset, sampler, cfg.DATA_LOADER.NUM_WORKERS, rank.print)
        super().__init__(source, rank.device, transforms.MEAN, transforms.STD, skip_bad_images)
        self.dataset, self._sampler = dataset, sampler

    def first_inputs(self, epoch, count):
        """Return an iterator over the inputs of the first `count` training steps of an epoch; use it up."""
        self._sampler.count = count
        for inputs, _ in self.of_epoch(epoch):
            yield inputs
        self._sampler.count = None


class MadeUpBatches(synthetic.SyntheticBatches):
    """Stands in for a Loader with --dummy."""

    def first_inputs(self, epoch, count):
        """Return an iterator over the inputs of `count` training steps."""
        return (inputs for _, (inputs, _) in zip(range(count), self))


def made_up_loaders(rank):
    """Return what stands in for the Loaders of training and of evaluation with --dummy."""
    picture = cfg.TRAIN.IM_SIZE, cfg.MODEL.NUM_CLASSES, rank
    return (MadeUpBatches(synthetic.IMAGENET[0], step_batch_size(), *picture, cfg.TRAIN.MAX_STEPS, cfg.TRAIN.ACCUMULATE),
            MadeUpBatches(synthetic.IMAGENET[1], cfg.TEST.BATCH_SIZE // rank.world_size, *picture,
                          cfg.TEST.MAX_STEPS or cfg.TRAIN.MAX_STEPS, cfg.TRAIN.ACCUMULATE))


def construct_train_loader(args, rank):
    """Return the Loader of TRAIN.SPLIT: shuffled, sharded, whole batches only, augmented. (With either --decoder: OpenCV resizes.)

    Raises UserError for a folder that does not fit and for fewer images than an update has.
    """
    augmentation = parse_spec(cfg.TRAIN.AUGMENT)
    size, pca_std, in_float = cfg.TRAIN.IM_SIZE, cfg.TRAIN.PCA_STD, cfg.DATA_LOADER.RESIZE_IN_FLOAT

    def transform(image, rng):
        return transforms.train_transform(upright(image), size, rng.getrandbits(32), augmentation, pca_std, in_float)

    dataset = data.ImageFolder(os.path.join(args.data_path, cfg.TRAIN.SPLIT), transform, cfg.MODEL.NUM_CLASSES, cfg.RNG_SEED,
                               args.skip_bad_images, args.decoder)
    order_seed = (cfg.RNG_SEED - 1) % 2 ** 31  # the recipe's 1 gives the order of upstream's DistributedSampler, whose seed is 0
    sampler = TrainSampler(len(dataset), step_batch_size(), rank, order_seed, cfg.TRAIN.MAX_STEPS,
                           accumulate=cfg.TRAIN.ACCUMULATE, order=dataset.order(args.shuffle_shards))
    return Loader(dataset, sampler, rank, args.skip_bad_images)


def construct_test_loader(args, rank):
    """Return the Loader of TEST.SPLIT: in order, each image once over all ranks. Raises UserError as above."""
    test_size, size, in_float = cfg.TEST.IM_SIZE, cfg.TRAIN.IM_SIZE, cfg.DATA_LOADER.RESIZE_IN_FLOAT

    def transform(image, rng):
        return transforms.eval_transform(upright(image), test_size, size, in_float)

    dataset = data.ImageFolder(os.path.join(args.data_path, cfg.TEST.SPLIT), transform, cfg.MODEL.NUM_CLASSES, decoder=args.decoder)
    sampler = data.EvalBatches(len(dataset), cfg.TEST.BATCH_SIZE // rank.world_size, rank, cfg.TEST.MAX_STEPS)
    return Loader(dataset, sampler, rank, args.skip_bad_images)


def upright(image):
    """Return the picture turned as its EXIF orientation says (as OpenCV does)."""
    if "exif" in image.info:
        try:
            return ImageOps.exif_transpose(image)
        except Exception:
            pass  # a broken EXIF block says nothing of the orientation
    return image

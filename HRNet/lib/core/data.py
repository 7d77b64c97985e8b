"""ImageNet's pictures for HRNet: transforms and batches."""
import os

import numpy as np

from common import cli, data


def train_transform(size):
    """Return f(PIL image, random.Random) -> uint8 (size, size, 3): random resized crop (8 to 100 % of the area), flip."""
    def transform(image, rng):
        box = data.random_resized_crop_box(image.size[0], image.size[1], rng)
        array = np.asarray(data.crop_and_resize(image, box, size))
        return array[:, ::-1] if rng.random() < 0.5 else array
    return transform


def eval_transform(size):
    """Return f(PIL image, random.Random) -> uint8 (size, size, 3): shorter side to size / 0.875 rounded down, centre crop."""
    def transform(image, rng):
        return np.asarray(data.center_crop(data.resize_shorter(image, int(size / 0.875)), size))
    return transform


def make_train_batches(args, rank):
    """Return the training batches of this rank on its device; the last batch of an epoch may be smaller."""
    config = args.config
    root = os.path.join(args.data_path, config.DATASET.TRAIN_SET)
    dataset = data.ImageFolder(root, train_transform(config.MODEL.IMAGE_SIZE[0]), args.seed, args.skip_bad_images, replace=True)
    check_classes(dataset, config)
    check_last_batch(len(dataset), rank, config)
    batches = data.TrainBatches(len(dataset), config.TRAIN.BATCH_SIZE_PER_GPU, rank, args.seed, args.stop_step, drop_last=False)
    return on_device(dataset, batches, args, rank)


def make_eval_batches(args, rank):
    """Return the validation batches of this rank on its device: every image once over all ranks."""
    config = args.config
    root = os.path.join(args.data_path, config.DATASET.TEST_SET)
    dataset = data.ImageFolder(root, eval_transform(config.MODEL.IMAGE_SIZE[0]), skip_bad_images=args.skip_bad_images)
    check_classes(dataset, config)
    batches = data.EvalBatches(len(dataset), config.TEST.BATCH_SIZE_PER_GPU, rank, args.stop_step)
    return on_device(dataset, batches, args, rank)


def on_device(dataset, batches, args, rank):
    """Return a DeviceBatches over `dataset`."""
    source = data.loader(dataset, batches, args.workers, rank.device)
    return data.DeviceBatches(source, rank.device, skip_bad_images=args.skip_bad_images)


def check_classes(dataset, config):
    """Raise UserError where the network has too few outputs for the data set."""
    if len(dataset.classes) > config.MODEL.NUM_CLASSES:
        raise cli.UserError("%s has %d classes, the network has %d outputs (MODEL.NUM_CLASSES)"
                            % (dataset.root, len(dataset.classes), config.MODEL.NUM_CLASSES))


def check_last_batch(length, rank, config):
    """Raise UserError where an epoch ends with a single value per channel, of which BatchNorm knows no variance."""
    batch, size = config.TRAIN.BATCH_SIZE_PER_GPU, config.MODEL.IMAGE_SIZE[0]
    last = -(-length // rank.world_size) % batch or batch
    if last == 1 and size <= 32:
        raise cli.UserError("with batches of %d the last one of an epoch is a single image, which cannot be trained on at %d "
                            "pixels; take another batch size or larger images" % (batch, size))


def remark_on_classes(args):
    """Return a line for the log where the network has more outputs than the data set has classes, else ''."""
    config = args.config
    classes = len(data.class_names(os.path.join(args.data_path, config.DATASET.TRAIN_SET)))
    if classes == config.MODEL.NUM_CLASSES:
        return ""
    return "the data set has %d classes, the network %d outputs; MODEL.NUM_CLASSES %d would fit" % (
        classes, config.MODEL.NUM_CLASSES, classes)

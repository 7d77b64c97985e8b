"""ImageNet's pictures for HRNet: the batches of both sets."""
import os

from common import cli, data, synthetic, transforms


def make_batches(part, args, rank):
    """Return the batches of a part, TRAIN or TEST, on the device: shuffled, by random resized crop and flip, an epoch's last one
    may be smaller; or in order, each image once over all ranks."""
    is_train, config = part == "TRAIN", args.config
    batch, size, classes = config[part].BATCH_SIZE_PER_GPU, config.MODEL.IMAGE_SIZE[0], config.MODEL.NUM_CLASSES
    if args.dummy:
        return synthetic.SyntheticBatches(synthetic.IMAGENET[not is_train], batch, size, classes, rank, args.stop_step,
                                          args.accumulate)
    transform = transforms.train_transform(size) if is_train else eval_transform(size)
    dataset = data.ImageFolder(os.path.join(args.data_path, config.DATASET[part + "_SET"]), transform, classes,
                               args.seed if is_train else 0, is_train and args.skip_bad_images, args.decoder)
    if is_train:
        check_last_batch(len(dataset), rank, config)
        batches = data.TrainBatches(len(dataset), batch, rank, args.seed, args.stop_step, drop_last=False,
                                    accumulate=args.accumulate, order=dataset.order(args.shuffle_shards))
    else:
        batches = data.EvalBatches(len(dataset), batch, rank, args.stop_step)
    return data.device_batches(dataset, batches, args.workers, rank, skip_bad_images=args.skip_bad_images)


def eval_transform(size):
    """Return f(PIL image, random.Random) -> uint8 (size, size, 3): shorter side to size / 0.875 rounded down, centre crop."""
    return transforms.eval_transform(size, int(size / 0.875))


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
    if args.dummy:
        return ""
    classes = len(data.class_names(os.path.join(args.data_path, config.DATASET.TRAIN_SET)))
    if classes == config.MODEL.NUM_CLASSES:
        return ""
    return "the data set has %d classes, the network %d outputs; MODEL.NUM_CLASSES %d would fit" % (
        classes, config.MODEL.NUM_CLASSES, classes)

"""ImageNet's pictures for HRNet: the batches of both sets."""
import os

from common import cli, data, synthetic, transforms


def make_train_batches(args, rank):
    """Return the training batches of this rank on its device; the last batch of an epoch may be smaller."""
    config = args.config
    if args.dummy:
        return synthetic.SyntheticBatches(synthetic.IMAGENET[0], config.TRAIN.BATCH_SIZE_PER_GPU, config.MODEL.IMAGE_SIZE[0],
                                          config.MODEL.NUM_CLASSES, rank, args.stop_step, args.accumulate)
    root = os.path.join(args.data_path, config.DATASET.TRAIN_SET)
    dataset = data.ImageFolder(root, transforms.train_transform(config.MODEL.IMAGE_SIZE[0]), config.MODEL.NUM_CLASSES, args.seed,
                               args.skip_bad_images, replace=True, decoder=args.decoder)
    check_last_batch(len(dataset), rank, config)
    batches = data.TrainBatches(len(dataset), config.TRAIN.BATCH_SIZE_PER_GPU, rank, args.seed, args.stop_step, drop_last=False,
                                accumulate=args.accumulate, order=dataset.order(args.shuffle_shards))
    return data.device_batches(dataset, batches, args.workers, rank, skip_bad_images=args.skip_bad_images)


def eval_transform(size):
    """Return f(PIL image, random.Random) -> uint8 (size, size, 3): shorter side to size / 0.875 rounded down, centre crop."""
    return transforms.eval_transform(size, int(size / 0.875))


def make_eval_batches(args, rank):
    """Return the validation batches of this rank on its device: every image once over all ranks."""
    config = args.config
    if args.dummy:
        return synthetic.SyntheticBatches(synthetic.IMAGENET[1], config.TEST.BATCH_SIZE_PER_GPU, config.MODEL.IMAGE_SIZE[0],
                                          config.MODEL.NUM_CLASSES, rank, args.stop_step, args.accumulate)
    root = os.path.join(args.data_path, config.DATASET.TEST_SET)
    dataset = data.ImageFolder(root, eval_transform(config.MODEL.IMAGE_SIZE[0]), config.MODEL.NUM_CLASSES,
                               skip_bad_images=args.skip_bad_images, decoder=args.decoder)
    batches = data.EvalBatches(len(dataset), config.TEST.BATCH_SIZE_PER_GPU, rank, args.stop_step)
    return data.device_batches(dataset, batches, args.workers, rank, skip_bad_images=args.skip_bad_images)


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

"""The inputs that `benchmark.py input` compares. Each function opens one and returns an endless iterator, a batch at a time.

Ours are the models' own training batches, up to the bytes that travel to a device. NAME/cpu: up to the floats that a training on a
CPU gets. NAME/packed: read from a packed data set, with restart markers where jpegtran is installed. NAME/fast: --decoder=fast. GENet
and torchvision/cifar are given pictures of CIFAR's size, and their ratios are to torchvision/cifar. The others are set up as their own
documentation has them for ImageNet: random resized crop, flip, normalisation where they do that on the host.
"""
import itertools
import os
import sys
import types

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_HRNET = os.path.join(ROOT, "HRNet", "experiments", "cls_hrnet_w18_sgd_lr5e-2_wd1e-4_bs32_x100.yaml")
WORKERS = 0  # everything in one process, whose time is the time of it all


# --- ours -------------------------------------------------------------------------------------------------------------

def _alone():
    import torch
    from common import distributed
    return distributed.Rank(0, 1, 0, torch.device("cpu"))


def _resnet50(args, root, decoder):
    import main as program
    values = program.parser().parse_args(["--data", root, "--image-size", str(args.image_size), "--seed", "0", "--decoder", decoder])
    values.batch_per_rank, values.workers_per_rank = args.batch_size, WORKERS
    return program.make_batches("train", values, _alone())


def _hrnet(args, root, decoder):
    sys.path.insert(0, os.path.join(ROOT, "HRNet", "tools"))
    import train as program
    values = program.parser().parse_intermixed_args([
        root, "MODEL.IMAGE_SIZE", "[%d, %d]" % (args.image_size, args.image_size), "--cfg", _HRNET, "--device", "cpu", "--seed", "0",
        "--bs", str(args.batch_size), "--workers", str(WORKERS), "--decoder", decoder])
    values = program.options.resolved(values, [], program.options.device_layout(values))
    return program.make_batches("TRAIN", values, _alone())


def _efficientnet(args, root, decoder):
    from pycls.core.config import cfg
    from pycls.datasets import loader
    cfg.TRAIN.IM_SIZE, cfg.TRAIN.BATCH_SIZE, cfg.DATA_LOADER.NUM_WORKERS = args.image_size, args.batch_size, WORKERS
    values = types.SimpleNamespace(data_path=root, decoder=decoder, skip_bad_images=False, shuffle_shards=False)
    return loader.construct_train_loader(values, _alone())


def _fixres(args, root, decoder):
    import main_resnet50_scratch as program
    from imnet_common import batches, networks, transforms
    values = program.parser().parse_args(["--imnet-path", root, "--workers", str(WORKERS + 1), "--decoder", decoder])
    values.batch_per_rank = args.batch_size
    return batches.training(values, _alone(), program.RASampler, transforms.train_pipeline(args.image_size),
                            networks.RECIPES["ResNet50"])


def _genet(args, root, decoder):
    import train as program
    values = program.parser().parse_args(["--data-path", args.cifar, "--seed", "0", "--device", "cpu"])
    values.folder, values.batch_per_rank, values.workers_per_rank = program.cifar.find_folder(args.cifar), args.batch_size, WORKERS
    return program.make_batches("train", values, _alone())


_OURS = {"ResNet50": _resnet50, "HRNet": _hrnet, "EfficientNet-B3": _efficientnet, "FixRes": _fixres, "GENet": _genet}


def _ours(name, args):
    model, *options = name.split("/")
    sys.path.insert(0, os.path.join(ROOT, model))
    batches = _OURS[model](args, args.packed if "packed" in options else args.data, "fast" if "fast" in options else "exact")

    def epochs():
        for epoch in itertools.count():
            batches.source.batch_sampler.set_epoch(epoch)
            yield from batches if "cpu" in options else batches.source
    return epochs()


# --- others -----------------------------------------------------------------------------------------------------------

def _torch_batches(args, dataset):
    import torch
    loader = torch.utils.data.DataLoader(dataset, args.batch_size, shuffle=True, num_workers=WORKERS, drop_last=True)
    return _endless(loader)


def _endless(loader):
    return itertools.chain.from_iterable(itertools.repeat(loader))


def _folder(args, transform):
    from common import device as devices
    return devices.import_torchvision().datasets.ImageFolder(os.path.join(args.data, "train"), transform)


def _torchvision_cifar(args):
    sys.path.insert(0, os.path.join(ROOT, "GENet"))
    import cifar
    from PIL import Image
    from cifar_batches import MEAN_STD
    from common import device as devices
    t = devices.import_torchvision().transforms
    transform = t.Compose([t.RandomCrop(32, padding=4), t.RandomHorizontalFlip(), t.ToTensor(), t.Normalize(*MEAN_STD["cifar10"])])
    images, labels = cifar.read_split(cifar.find_folder(args.cifar), "train")

    class Pictures(object):  # torchvision's own takes the published files alone
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            return transform(Image.fromarray(images[index].transpose(1, 2, 0))), labels[index]
    return _torch_batches(args, Pictures())


def _torchvision(args):
    from common import data, device as devices
    t = devices.import_torchvision().transforms
    return _torch_batches(args, _folder(args, t.Compose([
        t.RandomResizedCrop(args.image_size), t.RandomHorizontalFlip(), t.ToTensor(),
        t.Normalize(data.IMAGENET_MEAN, data.IMAGENET_STD)])))


def _torchvision_v2(args):
    import torch
    from common import data, device as devices
    devices.import_torchvision()
    from torchvision.transforms import v2
    return _torch_batches(args, _folder(args, v2.Compose([
        v2.ToImage(), v2.RandomResizedCrop(args.image_size, antialias=True), v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(data.IMAGENET_MEAN, data.IMAGENET_STD)])))


def _timm(args):
    from common import device as devices
    devices.import_torchvision()
    import timm.data
    import torch
    dataset = timm.data.create_dataset("", root=args.data, split="train")
    loader = timm.data.create_loader(
        dataset, (3, args.image_size, args.image_size), args.batch_size, is_training=True, num_workers=WORKERS, color_jitter=None,
        interpolation="bilinear", device=torch.device("cpu"), persistent_workers=False)
    return _endless(loader.loader)  # bytes: what is around it normalises on the device


def _dali(args):
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=args.batch_size, num_threads=1, device_id=None)
    def training():
        files, labels = fn.readers.file(file_root=os.path.join(args.data, "train"), random_shuffle=True)
        images = fn.decoders.image_random_crop(files, device="cpu", random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3])
        images = fn.resize(images, resize_x=args.image_size, resize_y=args.image_size, interp_type=types.INTERP_TRIANGULAR)
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels
    pipeline = training()
    pipeline.build()
    return iter(pipeline.run, None)


_PEERS = {"torchvision": _torchvision, "torchvision-v2": _torchvision_v2, "timm": _timm, "dali": _dali,
          "torchvision/cifar": _torchvision_cifar}

NAMES = ["ResNet50", "ResNet50/fast", "ResNet50/packed", "ResNet50/packed/fast", "ResNet50/cpu", "HRNet", "FixRes", "EfficientNet-B3",
         "EfficientNet-B3/fast", "EfficientNet-B3/packed", "EfficientNet-B3/packed/fast", "EfficientNet-B3/cpu", "GENet", "GENet/cpu"
         ] + list(_PEERS)
CIFAR = ("GENet", "GENet/cpu", "torchvision/cifar")


def open_candidate(name, args):
    """Return the endless iterator of a candidate of NAMES. `args`: data and packed (the folders of the data set), cifar (that of
    CIFAR-10), image_size, batch_size. Raises ImportError or UserError where what it needs is not installed."""
    return _PEERS[name](args) if name in _PEERS else _ours(name, args)

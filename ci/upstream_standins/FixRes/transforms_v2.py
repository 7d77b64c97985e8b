import numpy as np
from imnet_finetune.transforms import Resize
from port_of_fixres import transforms as port
from torchvision import transforms


def crop(img, i, j, h, w):
    return img.crop((j, i, j + w, i + h))


def center_crop_new(img, output_size):
    left, top = port.ShiftedCenterCrop(output_size).corner(*img.size, below=np.random.randint)
    return crop(img, top, left, output_size, output_size)


class CenterCrop(object):
    def __init__(self, size):
        self.size = size

    def __call__(self, img):
        return center_crop_new(img, self.size)


def get_transforms(input_size=224, test_size=224, kind="full", crop=True, need=("train", "val"), backbone=None):
    end = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    flip = [transforms.RandomHorizontalFlip(), transforms.ColorJitter(0.3, 0.3, 0.3)]
    made = {"train": [transforms.RandomResizedCrop(input_size)] + flip + end}
    if crop:
        made["val_test"] = [Resize(int(256 / 224 * test_size)), transforms.CenterCrop(test_size)] + end
        made["val_train"] = [Resize(int(256 / 224 * test_size))] + flip + [CenterCrop(test_size)] + end
    else:
        made["val"] = [Resize(test_size, largest=True)] + end
    return {name: transforms.Compose(steps) for name, steps in made.items()}

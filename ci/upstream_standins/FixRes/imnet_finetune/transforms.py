from port_of_fixres import transforms as port
from torchvision import transforms
from torchvision.transforms import functional


class Resize(transforms.Resize):
    def __init__(self, size, largest=False):
        super().__init__(size)
        self.largest = largest

    @staticmethod
    def target_size(w, h, size, largest=False):
        return port.resized_size(size, w, h, largest)[::-1]

    def __call__(self, image):
        return functional.resize(image, self.target_size(*image.size, size=self.size, largest=self.largest))


def get_transforms(input_size=224, test_size=224, kind="full", crop=True, need=("train", "val"), backbone=None):
    normalize = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    if backbone == "pnasnet5large":
        normalize = transforms.Normalize((0.5,) * 3, (0.5,) * 3)
    steps = [Resize(int(256 / 224 * test_size)), transforms.CenterCrop(test_size)] if crop else [Resize(test_size, largest=True)]
    return {"val": transforms.Compose(steps + [transforms.ToTensor(), normalize])}

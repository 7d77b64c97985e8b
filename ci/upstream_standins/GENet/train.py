"""Like upstream's, this asks for options and makes data sets as soon as it is imported."""
import argparse

import torchvision
import torchvision.transforms as transforms
from tensorboardX import SummaryWriter

writer = SummaryWriter()
parser = argparse.ArgumentParser()
parser.add_argument("--dataset")
for name, default in (("depth", 16), ("width", 8), ("learning_rate", 0.1), ("momentum", 0.9), ("weight_decay", 5e-4)):
    parser.add_argument("--" + name, default=default, type=type(default))
parser.add_argument("--nesterov", default=False)
args = parser.parse_args()
print(args)
if args.dataset == "cifar10":
    normalize = transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    data = torchvision.datasets.CIFAR10(root="nowhere", train=True, download=False, transform=None)
else:
    normalize = transforms.Normalize((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
    data = torchvision.datasets.CIFAR100(root="nowhere", train=True, download=False, transform=None)
end = [transforms.ToTensor(), normalize]
transform_train = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] + end)
transform_val = transforms.Compose(end)

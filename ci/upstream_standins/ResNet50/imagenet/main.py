"""Upstream's names and signatures, the port's meters; the networks are torchvision's here as there."""
import torchvision.models as models  # noqa: F401

from common import meters


class AverageMeter(meters.AverageMeter):
    pass


class ProgressMeter(object):
    def __init__(self, num_batches, meters, prefix=""):
        self.form, self.meters = "%s[{:%dd}/%d]" % (prefix, len(str(num_batches)), num_batches), meters

    def display(self, batch):
        print("\t".join([self.form.format(batch)] + [str(meter) for meter in self.meters]))


def adjust_learning_rate(optimizer, epoch, args):
    for group in optimizer.param_groups:
        group["lr"] = args.lr * 0.1 ** (epoch // 30)


def accuracy(output, target, topk=(1,)):
    right = output.topk(max(topk), 1)[1].t().eq(target.view(1, -1))
    return [right[:k].view(-1).float().sum(0, keepdim=True) * 100.0 / len(target) for k in topk]

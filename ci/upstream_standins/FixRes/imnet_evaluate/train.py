from common import meters


def accuracy_sp(output, target, topk=(1,)):
    right = output.topk(max(topk), 1)[1].t().eq(target.view(1, -1))
    return [right[:k].view(-1).float().sum().item() * 100.0 / len(target) for k in topk]


class HistoryMeter(meters.AverageMeter):
    def __init__(self):
        super().__init__("")

    def update(self, x, n=1):
        super().update(x, n)

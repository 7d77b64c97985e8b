from common import meters


class AverageMeter(meters.AverageMeter):
    def __init__(self):
        super().__init__("")

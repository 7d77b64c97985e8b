"""The models' own networks with an eighth of their channels, for tests of everything around a network (NARROW=1 in the environment):
a checkpoint is then a megabyte instead of a hundred, and writing it no longer the longest part of a training."""
import contextlib


def eighth(channels):
    """Return how many channels a layer has instead of so many; colours and other small counts stay."""
    return channels if channels <= 4 else -(-channels // 8)


def narrow(torch):
    """Have convolutions, BatchNorm and classifiers made narrow from now on; what a classifier gives stays."""
    conv, norm, linear = (kind.__init__ for kind in (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.Linear))

    def narrow_conv(self, inputs, outputs, *words, groups=1, **options):
        conv(self, eighth(inputs), eighth(outputs), *words, groups=eighth(groups), **options)

    torch.nn.Conv2d.__init__ = narrow_conv
    torch.nn.BatchNorm2d.__init__ = lambda self, channels, *words, **options: norm(self, eighth(channels), *words, **options)
    torch.nn.Linear.__init__ = lambda self, inputs, *words, **options: linear(self, eighth(inputs), *words, **options)


@contextlib.contextmanager
def narrowed(torch):
    """The same in this process, until the `with` ends."""
    before = [(kind, kind.__init__) for kind in (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.Linear)]
    narrow(torch)
    try:
        yield
    finally:
        for kind, init in before:
            kind.__init__ = init

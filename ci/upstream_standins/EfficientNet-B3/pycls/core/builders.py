from pycls.core.losses import SoftCrossEntropyLoss


def build_loss_fun():
    return SoftCrossEntropyLoss()

from port_of_fixres import pnasnet as port


def pnasnet5large(num_classes=1000, pretrained="imagenet"):
    assert not pretrained, "a download"
    return port.PNASNet5Large(num_classes)

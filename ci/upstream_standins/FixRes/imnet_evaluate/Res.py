from port_of_fixres import resnext as port

Bottleneck = port.Bottleneck


def ResNet(block, layers, groups=1, width_per_group=64):
    return port.ResNeXt(layers, groups, width_per_group)

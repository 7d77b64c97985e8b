"""The port's modules, whose packages have the names of upstream's."""
from ports import load

adaptation, transforms = load("FixRes/imnet_finetune/adaptation.py"), load("FixRes/imnet_common/transforms.py")
pnasnet, resnext = load("FixRes/imnet_common/pnasnet.py"), load("FixRes/imnet_common/resnext.py")

"""The networks that MODEL.NAME may name."""
from lib.models import cls_hrnet

FACTORIES = {"cls_hrnet": cls_hrnet.get_cls_net}


def build_model(config):
    """Return the initialised network that `config` describes. Raises ValueError where it describes none."""
    if config.MODEL.NAME not in FACTORIES:
        raise ValueError("MODEL.NAME is %r, it should be one of %s" % (config.MODEL.NAME, ", ".join(FACTORIES)))
    return FACTORIES[config.MODEL.NAME](config)

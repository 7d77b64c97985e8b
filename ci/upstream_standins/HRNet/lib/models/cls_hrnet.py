import config  # noqa: F401 (which knows where the port is)
from lib.models import build_model


def get_cls_net(config, **kwargs):
    return build_model(config)

import config as knows_where_the_port_is  # noqa: F401
from lib.models import build_model


def get_cls_net(config, **kwargs):
    return build_model(config)

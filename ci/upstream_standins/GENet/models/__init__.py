from .wideresnet import *  # noqa: F401, F403 (as upstream does)

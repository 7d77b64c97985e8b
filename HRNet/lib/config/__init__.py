"""The configuration tree. `config` is the tree that upstream's programs share; `new_config` gives a separate one."""
from lib.config.default import RANGES, new_config, unread_settings, update_config

config = new_config()

__all__ = ["RANGES", "config", "new_config", "unread_settings", "update_config"]

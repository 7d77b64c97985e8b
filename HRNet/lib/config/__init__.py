"""The configuration tree."""
from lib.config.default import RANGES, new_config, unread_settings, update_config

__all__ = ["RANGES", "new_config", "unread_settings", "update_config"]

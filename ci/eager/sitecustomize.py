"""Python imports this at its start, where its folder is on PYTHONPATH."""
import eager  # noqa: F401

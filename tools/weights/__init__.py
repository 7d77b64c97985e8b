"""The verbs of tools/weights.py, each a module with `add_flags(parser)` and `run(args)`; see tools/verbs.py."""

"""The verbs of tools/runs.py, each a module with `add_flags(parser)` and `run(args)`; see tools/verbs.py."""

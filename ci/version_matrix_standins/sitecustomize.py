"""Python imports this at its start from a folder on PYTHONPATH; what a script runs before it needs torch is left alone."""
import importlib

import eager

eager.After("torch", lambda torch: importlib.import_module("npu_stand_in"))

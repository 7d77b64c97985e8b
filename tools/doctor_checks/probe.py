"""Import one module and print what it says of itself as a line of JSON. doctor.py runs this in a process of its own: the import
can raise anything, crash or hang."""
import importlib.util
import json
import os
import sys
import warnings

sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # common/; not this folder


def _torch(facts):
    import torch
    facts.update(version=torch.__version__, cuda=torch.version.cuda)
    facts["count"] = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        import numpy
        facts["numpy"] = numpy.__version__
        torch.zeros(1).numpy()
    except Exception as error:
        facts["numpy_error"] = str(error)


def _torch_npu(facts):
    import torch
    if not hasattr(torch, "npu"):  # the Ascend build of PyTorch 1.5 has it built in
        import torch_npu
        facts["version"] = torch_npu.__version__
    facts["count"] = torch.npu.device_count() if torch.npu.is_available() else 0


def _torchvision(facts):
    try:
        import torchvision
    except RuntimeError:  # the models get around what it says here
        from common.device import import_torchvision
        torchvision = import_torchvision()
    facts["version"] = torchvision.__version__


def _apex(facts):
    facts["parts"] = os.listdir(list(importlib.util.find_spec("apex").submodule_search_locations)[0])
    from apex import amp
    facts["amp"] = hasattr(amp, "initialize")


def _dllogger(facts):
    import dllogger
    facts["backend"] = hasattr(dllogger, "JSONStreamBackend")


def main(module):
    """Return the facts of a module, {} where there is no plug-in."""
    facts = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            globals()["_" + module](facts)
        except BaseException as error:  # SystemExit as well
            if getattr(error, "name", None) == module and isinstance(error, ImportError):
                return facts
            facts["error"] = "%s: %s" % (type(error).__name__, (str(error).splitlines() or [""])[0])
    facts["warnings"] = [str(each.message) for each in caught]
    return facts


if __name__ == "__main__":
    print("\ndoctor: " + json.dumps(main(sys.argv[1])))
    sys.stdout.flush()
    os._exit(0)  # the end of a device's runtime can crash or hang, and says nothing more

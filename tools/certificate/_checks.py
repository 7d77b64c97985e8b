"""What every stage of a certificate shares: a check, and the case that is certified."""
import glob
import os
from collections import namedtuple

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# `figure` beside its `bound`, numbers or text, and `source`, where the bound comes from. `passed`: True, False, or None where
# it can mean nothing on this device; `note` then says why. certify.py puts in the number of the `stage`.
Check = namedtuple("Check", "model what figure bound source passed note stage", defaults=("", None))

# What is certified: `device` as torch names it (npu:0, cuda:0, cpu), `models`, whether it is the `quick` form, how many programs
# run side by side (`jobs`; `slots` is a semaphore of so many), the folder `output_path`, that of the data, how many `seeds`.
Case = namedtuple("Case", "device models quick jobs slots output_path data_path seeds")


def models():
    """Return the models of this checkout, by the rule of ci/: directories with test/train_full_1p.sh."""
    return sorted(path.split(os.sep)[-3] for path in glob.glob(os.path.join(glob.escape(ROOT), "*", "test", "train_full_1p.sh")))


def kind(device):
    """Return what the scripts call a device: npu, gpu or cpu."""
    name = device.partition(":")[0]
    return "gpu" if name == "cuda" else name


def is_simulated(device):
    """Return whether the NPU is ci/npu_sim's, whose arithmetic and speed are those of the host."""
    if not device.startswith("npu"):
        return False
    import torch_npu
    return "sim" in getattr(torch_npu, "__version__", "")


def at_most(model, what, figure, bound, source, note=""):
    """Return the Check of a figure that may not exceed its bound."""
    return Check(model, what, figure, bound, source, bool(figure <= bound), note)


def equal(model, what, figure, bound, source, note=""):
    """Return the Check of a figure that has to be its bound."""
    return Check(model, what, figure, bound, source, bool(figure == bound), note)


def meaningless(model, what, note):
    """Return the Check of what can mean nothing here."""
    return Check(model, what, "-", "-", "-", None, note)

"""pytest on the simulated NPU: the option --npu-sim, and a fixture that says what a test made the NPU do.

Installed, it is there by itself. Else: `ci/npu_sim/run python -m pytest -p pytest_npu_sim ...`.
"""

import os
import sys
import tempfile

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
USED = pytest.StashKey()


def pytest_addoption(parser):
    """`pytest --npu-sim` is `npu-sim run pytest` without a second process."""
    parser.addoption("--npu-sim", action="store_true", help="run the tests on simulated NPUs, as `npu-sim run pytest` does")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config):
    """Load the simulator before a conftest.py imports torch, for this process and its children."""
    if not early_config.known_args_namespace.npu_sim:
        return
    sys.path.insert(0, HERE)
    import npu_sim_run

    npu_sim_run.prepare(os.environ)
    sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)
    if npu_sim_run.required_by_default(["pytest"]) and "NPU_SIM_USED" not in os.environ:  # else who set it looks
        early_config.stash[USED] = tempfile.NamedTemporaryFile("r", prefix="npu_sim_")
        os.environ["NPU_SIM_USED"] = early_config.stash[USED].name
    try:
        import torch_npu  # noqa: F401
    except (ImportError, ValueError) as error:
        raise pytest.UsageError("npu_sim: %s" % error) from error


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """Fail where all tests passed and none used an NPU."""
    used = session.config.stash.get(USED, None)
    if used and session.exitstatus == 0 and not used.read():
        print("\nnpu_sim: none of the tests used an NPU (NPU_SIM_REQUIRE=0 lets that pass)", file=sys.stderr)
        session.exitstatus = 1


@pytest.fixture
def npu_report():
    """The figures since the test began, `npu_report.host_waits_per_step` and the others of torch_npu._report.FIGURES, and
    `npu_report.waits`: which lines waited. A figure per step is None until the test has made two steps of an optimizer."""
    import torch_npu  # noqa: F401  (only where a test asks: it makes the process one of an NPU)
    from torch_npu import _report

    return _report.Recording()

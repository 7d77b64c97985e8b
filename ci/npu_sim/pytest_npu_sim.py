"""A pytest fixture that says what a test made the simulated NPU do. `ci/npu_sim/run python -m pytest -p pytest_npu_sim ...`"""

import pytest


@pytest.fixture
def npu_report():
    """The figures since the test began, `npu_report.host_waits_per_step` and the others of torch_npu._report.FIGURES, and
    `npu_report.waits`: which lines waited. A figure per step is None until the test has made two steps of an optimizer."""
    import torch_npu  # noqa: F401  (only where a test asks: it makes the process one of an NPU)
    from torch_npu import _report

    return _report.Recording()

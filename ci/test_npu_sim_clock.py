"""The simulated NPU's virtual clock: its checks, in processes where it is on."""
import pytest

import npu_sim
from test_npu_sim import built, check_names, outcomes, start_checks  # noqa: F401  (a fixture)

pytestmark = pytest.mark.skipif(npu_sim.skip_reason() is not None, reason=str(npu_sim.skip_reason()))
# Operators of 20 ms, 1 MB to the device in 200 ms, what the checks call them by; and so slow a tanh that nobody can miss it.
SLOW = dict(NPU_SIM_CLOCK="1", NPU_SIM_DEVICE_COUNT="16", NPU_SIM_CLOCK_TABLE=(
    "operator_us=20000,copy_us=0.001,to_device_gbs=0.005,to_host_gbs=0.005,"
    "collective_us=30000,matrix_gflops=100,vector_gbs=1e6,aten::tanh=7000000"))


@pytest.fixture(scope="session")
def one_device(tmp_path_factory):
    report = tmp_path_factory.mktemp("clock") / "one.xml"
    return outcomes(report, start_checks(report, ["check_clock.py"], **SLOW))


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clock")
    reports = [folder / ("rank%d.xml" % rank) for rank in range(2)]
    processes = [start_checks(report, ["check_clock_hccl.py"], RANK=str(rank), WORLD_SIZE="2",
                              INIT_METHOD="file://%s/meeting" % folder, **SLOW) for rank, report in enumerate(reports)]
    return [outcomes(report, process) for report, process in zip(reports, processes)]


@pytest.mark.parametrize("name", check_names("check_clock.py"))
def test_one_device(one_device, name):
    """What the check of this name in npu_sim/checks/check_clock.py says."""
    assert one_device[name] == []


@pytest.mark.parametrize("name", check_names("check_clock_hccl.py"))
def test_two_ranks(two_ranks, name):
    """What the check of this name in npu_sim/checks/check_clock_hccl.py says, on both ranks."""
    assert [rank[name] for rank in two_ranks] == [[], []]

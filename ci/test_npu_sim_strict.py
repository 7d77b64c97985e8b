"""Strict mode of the simulated NPU: what it refuses, at which level, and what it leaves alone."""
import pytest

import npu_sim

pytestmark = pytest.mark.skipif(npu_sim.skip_reason() is not None, reason=str(npu_sim.skip_reason()))

ASKING = "import torch\ntorch.cuda.manual_seed_all(0)\nif torch.cuda.is_available():\n    torch.zeros(1).cuda()\nprint('end')\n"


@pytest.fixture
def script(launch_fork, tmp_path):
    """A function that writes a script and runs it."""
    def run(source, **environment):
        path = tmp_path / "train.py"
        path.write_text(source)
        return launch_fork(path, **environment)

    return run


@pytest.mark.parametrize("level", ["error", "1", "warn", "allow", "0", ""])
def test_levels(script, level):
    """A CUDA call that does nothing is an error, a warning at its own line, or nothing; the message says how to change that."""
    done = script(ASKING, NPU_SIM_STRICT=level)
    refused = level in ("error", "1")
    assert (done.returncode, "end" in done.stdout) == (int(refused), not refused), done.stderr
    assert ("train.py:2" in done.stderr, "train.py:3" in done.stderr) == (level in ("error", "1", "warn"), level == "warn")
    assert ("NPU_SIM_STRICT=warn or allow lets it pass" in done.stderr) == ("train.py:2" in done.stderr)


AUTOCAST = """
import torch
layer, x = torch.nn.Linear(2, 2).npu(), torch.ones(2, 2).npu()
with torch.autocast("cpu"):
    layer(x), layer(x)
"""


@pytest.mark.parametrize("level, warnings, status", [("error", 1, 1), ("warn", 1, 0), ("allow", 0, 0)])
def test_levels_of_operators(script, level, warnings, status):
    """The levels hold for what the device's operators find, too, which warn once."""
    done = script(AUTOCAST, NPU_SIM_STRICT=level)
    assert done.returncode == status and done.stderr.count("autocast is enabled for 'cpu'") == warnings
    assert done.stderr.count("NPU_SIM_STRICT=warn") == warnings


def test_unknown_level(script):
    """A level that there is not is refused by its name."""
    done = script(ASKING, NPU_SIM_STRICT="yes")
    assert done.returncode == 1 and "NPU_SIM_STRICT must be error, warn or allow, not 'yes'" in done.stderr


SETTINGS = "torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = True"


ASKING_FOR_SETTINGS = [  # a source, and whether it passes
    ("if torch.cuda.is_available():\n    %s\n    torch.set_float32_matmul_precision('high')" % SETTINGS, True),
    ("if (1 and\n        torch.cuda.is_available()):\n    %s" % SETTINGS, True),
    ("if torch.cuda.is_available():\n    %s\nelse:\n    torch.backends.cudnn.enabled = True" % SETTINGS, True),
    ("if torch.cuda.is_available():\n    %s\n    torch.manual_seed(0)" % SETTINGS, False),
    ("if torch.cuda.is_available():\n    %s\nelse:\n    device = 'cpu'" % SETTINGS, False),
    ("if 1:\n    torch.backends.cudnn.benchmark = torch.cuda.is_available()", False),
    ("device = 'cuda' if torch.cuda.is_available() else 'cpu'", False),
    ("torch.cuda.is_available()", False)]
EACH = """
import runpy, sys, torch
for path in sys.argv[1:]:
    try:
        runpy.run_path(path)
        print("passes")
    except RuntimeError as error:
        print("refused" if path in str(error) and "torch.cuda.is_available()" in str(error) else error)
"""


def test_guards_of_settings(launch_fork, tmp_path):
    """Asking for CUDA in order to set TF32 or cuDNN is no mistake; as soon as anything else depends on it, it is one."""
    paths = []
    for number, (source, _) in enumerate(ASKING_FOR_SETTINGS):
        paths.append(tmp_path / ("%d.py" % number))
        paths[-1].write_text("import torch\n" + source)
    done = launch_fork("-c", EACH, *paths)
    assert done.stdout.splitlines() == ["passes" if passes else "refused" for _, passes in ASKING_FOR_SETTINGS], done.stderr


def test_libraries(launch_fork, tmp_path, monkeypatch):
    """Calls of a library's source checkout pass where NPU_SIM_LIBRARIES lists it, under any spelling of the path."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "library.py").write_text("import torch\nprint(torch.cuda.is_available())\n")
    (tmp_path / "train.py").write_text("import sys\nsys.path.insert(0, 'lib')\nimport library\n")
    monkeypatch.chdir(tmp_path)
    for listed, status in (("", 1), ("/none", 1), ("/none:lib", 0), (str(tmp_path / "lib"), 0), (str(tmp_path / "li"), 1)):
        done = launch_fork("train.py", NPU_SIM_LIBRARIES=listed)
        assert done.returncode == status, (listed, done.stderr)

"""The repository and the simulator use only names that the real torch_npu has."""
import os
import subprocess
import sys

import pytest

from torch_npu_api import names, usage, wheels

CI = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(CI)


@pytest.mark.parametrize("version", sorted(wheels.VERSIONS))
def test_repository(version):
    """No torch_npu or torch.npu name outside ci/npu_sim that a wheel lacks, unless hasattr was asked."""
    modules = names.load(version)
    uses = usage.of_tree(ROOT)
    absent = ["%s:%d: %s" % (path, line, dotted) for path, line, dotted in uses if usage.missing(dotted, modules)]
    assert not absent, "torch_npu %s lacks: %s" % (version, ", ".join(absent))
    assert any(path == os.path.join("common", "device.py") for path, _, _ in uses)  # the search does find uses


def test_simulator():
    """Every public name of the simulator is in the newest wheel, in the module of the same name."""
    real = names.load("2.13.0")
    simulated = names.of_directory(os.path.join(CI, "npu_sim", "torch_npu"))
    invented = ["%s.%s" % (module, name) for module in simulated for name in simulated[module]
                if name not in real.get(module, ())]
    assert not invented and "set_device" in simulated["torch_npu.npu"]


@pytest.mark.parametrize("version", sorted(wheels.VERSIONS))
@pytest.mark.skipif(sys.version_info < (3, 10), reason="the wheels' sources need the grammar of Python 3.10")
@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_lists_come_from_the_wheels(version):
    """The checked-in names are what the wheel holds (skipped where it can be neither found nor downloaded)."""
    try:
        wheel = wheels.fetch(version)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(str(error))
    assert names.of_wheel(wheel) == names.load(version)


MODULES = {"torch_npu": ["npu"], "torch_npu.npu": ["set_device", "amp", "config"], "torch_npu.npu.amp": ["autocast"],
           "torch_npu.npu.config": ["allow_internal_format"]}


@pytest.mark.parametrize("source, expected", [
    ("import torch\ntorch.npu.set_device(0)", []),
    ("import torch\ntorch.npu.set_devise(0)", ["torch_npu.npu.set_devise"]),
    ("import torch as t\nt.npu.amp.scale(t.npu.nothing)", ["torch_npu.npu.amp.scale", "torch_npu.npu.nothing"]),
    ("import torch_npu as n\nn.npu.amp.autocast().anything\nn.npu_foo(1)", ["torch_npu.npu_foo"]),
    ("from torch_npu.npu import nothing", ["torch_npu.npu.nothing"]),
    ("from torch.npu.amp import nothing", ["torch_npu.npu.amp.nothing"]),
    ("import torch_npu.nothing", ["torch_npu.nothing"]),
    ("import torch_npu\ntorch_npu.__version__", []),
    ("import torch\ntorch.npu.config.allow_internal_format = 1\ntorch.npu.config.format = 1", ["torch_npu.npu.config.format"]),
    ("import torch\nif hasattr(torch.npu, 'x'):\n    torch.npu.x()", []),
    ("import torch\nif hasattr(torch.npu, 'x'):\n    torch.npu.y()", ["torch_npu.npu.y"]),
    ("import torch\nif hasattr(torch.npu, 'x'):\n    pass\ntorch.npu.x()", ["torch_npu.npu.x"]),
    ("import torch\nif not hasattr(torch.npu, 'x'):\n    torch.npu.x()\nelse:\n    torch.npu.x.y()", ["torch_npu.npu.x"]),
    ("import torch\ndef f():\n    if not hasattr(torch.npu, 'x'):\n        return\n    torch.npu.x()", []),
    ("import torch\ndef f():\n    if not hasattr(torch.npu, 'x'):\n        return\ntorch.npu.x()", ["torch_npu.npu.x"]),
    ("import torch\na = torch.npu.x() if hasattr(torch.npu, 'x') else 0\nb = hasattr(torch.npu, 'x') and torch.npu.x", []),
    ("import torch\nif 1 or hasattr(torch.npu, 'x'):\n    torch.npu.x()", ["torch_npu.npu.x"]),
    ("import torch\ngetattr(torch.npu, 'x', None)\ngetattr(torch.npu, 'y')", ["torch_npu.npu.y"]),
    ("import torch\napi = torch.npu\napi.x()\ndef f(api):\n    api.y()", ["torch_npu.npu.x"]),
    ("import torch\ndef api(kind):\n    return getattr(torch, kind)\napi('npu').x()\nm = api('npu')\nm.y()",
     ["torch_npu.npu.x", "torch_npu.npu.y"]),
    ("text = 'torch.npu.x'  # torch.npu.y", []),
])
def test_uses_are_found(source, expected):
    """The search sees through aliases, functions and guards, and reports each missing name."""
    absent = [usage.missing(dotted, MODULES) for _, dotted in usage.of_source(source)]
    assert sorted(name for name in absent if name) == expected


def test_uses_in_shell():
    """Python that a shell script runs is searched, comments are not."""
    text = "# torch.npu.a\npython -c 'import torch_npu; print(torch.npu.b(), torch_npu.npu.c)'\n"
    assert usage.of_shell(text) == [(2, "torch_npu.npu.b"), (2, "torch_npu.npu.c")]


def test_only_the_sources_are_searched(tmp_path):
    """Virtual environments, hidden directories and the simulator are left out; everything else is searched."""
    for folder in ("Model/test", ".venv-1.8/lib", "env/lib", "ci/npu_sim", ".git", ".ci"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.py").write_text("import torch\ntorch.npu.x()\n")
        (tmp_path / folder / "b.sh").write_text("python -c 'torch.npu.y()'\n")
    (tmp_path / "env" / "pyvenv.cfg").write_text("")
    found = usage.of_tree(str(tmp_path))
    assert {os.path.dirname(path) for path, _, _ in found} == {"Model/test", ".ci"} and len(found) == 4


def test_names_are_read_without_importing(tmp_path):
    """Assignments, imports, star imports, conditionals, submodules, __all__, instances and what other modules assign to the
    package all give names; privates do not."""
    package = tmp_path / "torch_npu"
    (package / "npu").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit\n__all__ = ['late']\nfrom os import sep\nfrom torch_npu.npu import *\n")
    (package / "npu" / "__init__.py").write_text(
        "from . import _impl\nfrom ._impl import *\nif 1:\n    def f(): pass\nx, _y = 1, 2\nconfig = _impl.Config()\n")
    (package / "npu" / "_impl.py").write_text(
        "__all__ = ['g']\ndef g(): pass\n"
        "def h():\n    import torch_npu\n    torch_npu.patched = torch_npu.npu.no = torch_npu._z = 1\n"
        "class Config:\n    def __setattr__(self, name, value):\n        if name == 'format': pass\n    def m(self): self.n = 1\n")
    assert names.of_directory(str(package)) == {
        "torch_npu": ["config", "f", "g", "late", "npu", "patched", "x"], "torch_npu.npu": ["config", "f", "g", "x"],
        "torch_npu.config": ["format", "m", "n"], "torch_npu.npu.config": ["format", "m", "n"]}

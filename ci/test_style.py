"""The limits of the house: the repository keeps them, and measure_style.py sees each one that is broken."""
import os
import subprocess
import sys

import pytest

from conftest import CI, ROOT, environment
from measure_style import Row, broken, measure


def function(lines, head="def f():"):
    """Return the text of a documented function of so many lines."""
    return "\n".join([head, '    """Do."""'] + ["    pass"] * (lines - 2)) + "\n"


def functions(*lines):
    """Return the text of documented functions of so many lines each."""
    return "".join(function(each, "def f%d():" % number) for number, each in enumerate(lines))


def nested(*blocks):
    """Return the text of a private function in which each block is inside the one before."""
    return "def _f():\n" + "".join("    " * depth + block + "\n" for depth, block in enumerate(blocks + ("pass",), 1))


def in_all(lines):
    """Return files of common/ that, with small.py, have so many lines together."""
    full, rest = divmod(lines - len(SMALL.splitlines()), 300)
    return dict([("common/full%d.py" % number, "\n" * 300) for number in range(full)], **{"common/rest.py": "\n" * rest})


SMALL = functions(*[2] * 8)  # is in every tree as common/small.py, so that no other function is the median
ELIF = """def _f(a):
    for b in a:
        for c in b:
            if c:
                pass
            elif b:
                pass
"""
ELSE_IF = """def _f(a):
    for b in a:
        for c in b:
            if c:
                pass
            else:
                if b:
                    pass
"""
HANDLER = """def _f():
    try:
        pass
    except E:
        while a:
            with b:
                if c:
                    pass
"""

BROKEN = [
    ({"common/a.py": "\n" * 301}, "common/a.py:301 a.py: a file of 301 lines, allowed 300"),
    (in_all(5126), "common:1 common: 5126 lines in all, allowed 5125"),
    ({"common/a.py": functions(*[8] * 9)}, "common:1 common: a median function of 8 lines, allowed 7.5"),
    ({"common/a.py": "\n" + function(61)}, "common/a.py:2 f: a function of 61 lines, allowed 60"),
    ({"common/a.py": "@b(\n    1)\n" + function(61, "async def f():")}, "common/a.py:3 f: a function of 61 lines, allowed 60"),
    ({"common/a.py": "class _A:\n    def f(self):\n" + "        pass\n" * 60},
     "common/a.py:2 _A.f: a function of 61 lines, allowed 60"),
    ({"common/a.py": function(2, "def f(a, b, c, d, e, g):")}, "common/a.py:1 f: 6 required parameters, allowed 5"),
    ({"common/a.py": function(2, "def f(a, b, c, d, x=1, *, e, y=1, g):")}, "common/a.py:1 f: 6 required parameters, allowed 5"),
    ({"common/a.py": "def _f():\n    def g(a, b, c, d, e, f):\n        pass\n"},
     "common/a.py:2 _f.g: 6 required parameters, allowed 5"),
    ({"common/a.py": nested("if a:", "for b in c:", "while d:", "with e:")}, "common/a.py:1 _f: nesting of 4, allowed 3"),
    ({"common/a.py": nested("if a:", "if b:", "def g():", "if c:", "if d:")}, "common/a.py:1 _f: nesting of 4, allowed 3"),
    ({"common/a.py": ELSE_IF}, "common/a.py:1 _f: nesting of 4, allowed 3"),
    ({"common/a.py": HANDLER}, "common/a.py:1 _f: nesting of 4, allowed 3"),
    ({"common/a.py": "def f():\n    pass\n"}, "common/a.py:1 f: 1 docstring missing, allowed 0"),
    ({"common/a.py": "try:\n    import b\nexcept ImportError:\n    def f():\n        pass\n"},
     "common/a.py:4 f: 1 docstring missing, allowed 0"),
    ({"common/a.py": "class A:\n    pass\n"}, "common/a.py:1 A: 1 docstring missing, allowed 0"),
    ({"common/a.py": 'class A:\n    """A."""\n\n    @property\n    def f(self):\n        pass\n'},
     "common/a.py:5 A.f: 1 docstring missing, allowed 0"),
    ({"Net/lib/a.py": function(73)}, "Net/lib/a.py:1 f: a function of 73 lines, allowed 72"),
    ({"Net/a.py": function(2, "def f(a, b, c, d, e, g, h):")}, "Net/a.py:1 f: 7 required parameters, allowed 6"),
    ({"tools/runs/a.py": function(73)}, "tools/runs/a.py:1 f: a function of 73 lines, allowed 72"),
    ({"tools/a.py": function(2, "def f(a, b, c, d, e, g, h):")}, "tools/a.py:1 f: 7 required parameters, allowed 6"),
]

KEPT = [
    in_all(5125),
    {"common/a.py": "\n" * 300},
    {"common/a.py": functions(*[7] * 9 + [8] * 17)},  # with small.py a median of 7.5
    {"common/a.py": function(60)},
    {"common/a.py": 'class _A:\n    def f(self, a, b, c, d, e, f=1, *, g=1, **h):\n        pass\n'},
    {"common/a.py": nested("for a in b:", "while c:", "with d:")},
    {"common/a.py": ELIF},
    {"common/a.py": nested("if a:", "if b:", "for c in [d for d in e if d]:").replace("pass", "f = lambda: [g for g in c if g]")},
    {"common/a.py": 'class A:\n    """A."""\n\n    def __init__(self):\n        pass\n\n    def forward(self):\n        pass\n'},
    {"common/a.py": 'class A:\n    """A."""\n\n    @f.setter\n    def f(self, value):\n        pass\n'},
    {"common/a.py": function(2) + "    def g():\n        pass\n"},
    {"Net/a.py": nested("if a:", "if b:", "if c:", "if d:") + function(72, "def f(a, b, c, d, e, g):") + "\n" * 300},
    {"Net/a.py": "class A:\n    def f(self):\n        pass\n"},
    {"ci/a.py": function(99), "Net/test/output/0/a.py": function(99), "Net/.venv/a.py": function(99), "other/a.py": function(99)},
]


def write(root, files):
    """Write a tree with a model, Net, small.py in common/, and the files {path: text}."""
    for path, text in dict({"common/small.py": SMALL, "Net/test/train_full_1p.sh": ""}, **files).items():
        os.makedirs(os.path.join(str(root), os.path.dirname(path)), exist_ok=True)
        with open(os.path.join(str(root), path), "w") as stream:
            stream.write(text)


def run(root):
    return subprocess.run([sys.executable, os.path.join(CI, "measure_style.py"), str(root)], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, env=environment())


def test_the_repository_keeps_every_limit():
    """Protects the shape of common/, of the models and of tools/ (DESIGN, section 4)."""
    found = broken(ROOT)
    assert not found, "\n".join([""] + found)


@pytest.mark.parametrize("files, line", BROKEN, ids=[line for _, line in BROKEN])
def test_a_broken_limit_is_reported_and_nothing_else(tmp_path, files, line):
    """Each limit is measured, in the rooms that it is for, and its line says where."""
    write(tmp_path, files)
    assert broken(str(tmp_path)) == ["BROKEN: " + line]


@pytest.mark.parametrize("files", KEPT, ids=range(len(KEPT)))
def test_what_is_just_within_the_limits_is_not_reported(tmp_path, files):
    """A limit is itself allowed; elif, comprehensions, overrides, private names and other folders do not count."""
    write(tmp_path, files)
    assert broken(str(tmp_path)) == []


def test_the_rows_of_the_table(tmp_path):
    """Every column says what its heading says."""
    write(tmp_path, {"Net/a.py": nested("if a:", "if b:") + "def g(a, b=1):\n    pass\n\n\nclass A:\n    pass\n"})
    assert measure(str(tmp_path)) == [
        Row("common", 1, 16, ("small.py", 16), 8, 2, ("f0", 2), ("f0", 0), ("f0", 0), 0),
        Row("Net", 1, 10, ("a.py", 10), 2, 3, ("_f", 4), ("g", 1), ("_f", 2), 2)]


def test_the_exit_status_and_the_last_line(tmp_path):
    """0 when all limits are kept, 1 when one is broken, 2 where there is nothing to measure."""
    assert run(tmp_path).returncode == 2
    write(tmp_path, {})
    kept = run(tmp_path)
    assert (kept.returncode, kept.stdout.splitlines()[-1]) == (0, "all limits of the house are kept"), kept.stderr
    write(tmp_path, {"tools/a.py": function(73)})
    failed = run(tmp_path)
    assert (failed.returncode, failed.stdout.splitlines()[-1].split()[0]) == (1, "BROKEN:"), failed.stderr

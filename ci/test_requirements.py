"""What the requirements and constraints files promise: an installed PyTorch stays, every pin is to be had for aarch64 too, and
tools/make_venv.sh installs what the files say now.

What asks the package index runs in the 2.1 column of ci/version_matrix.sh alone, and nothing is downloaded: the pip there reads what
a package says of itself.
"""
import glob
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from conftest import MODELS, ROOT, assert_bad_input
from test_versions import HERE, each_model, link_environment, requirements

asks_index = pytest.mark.skipif(HERE != "2.1", reason="the 2.1 column of ci/version_matrix.sh asks the package index")

MODELS_FILES = dict((version, tuple("%s/%s_requirements.txt" % (model, version) for model in MODELS))
                    for version in ("1.5", "1.8", "2.x"))
OLDEST, NEWEST = "tools/2.1_constraints.txt", "tools/2.13_constraints.txt"
COMMANDS = ("tools/requirements.txt", "ci/requirements.txt")
MATRIX = ("ci/version_matrix_requirements.txt",)


def specifiers(*paths, **machine):
    """Return {name: specifiers} of what the files ask for (of the last one where several do)."""
    return dict((plain(requirement.name), requirement.specifier) for path in paths for requirement in requirements(path, **machine))


def plain(name):
    """Return the name of a package as indexes write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


# --- ranges and pins --------------------------------------------------------------------------------------------------

# Machines that people have. Ascend: what its plug-in's page says to install, with the torchvision of each PyTorch.
MACHINES = {
    "torch_npu 2.1 on aarch64": dict(torch="2.1.0", torchvision="0.16.0", numpy="1.21.6", pillow="9.5.0", pyyaml="6.0.1"),
    "torch_npu 2.1 on x86_64": dict(torch="2.1.0+cpu", torchvision="0.16.0+cpu", numpy="1.26.4", pillow="10.4.0", tensorboard="2.15.2"),
    "torch_npu 2.5": dict(torch="2.5.1", torchvision="0.20.1", numpy="1.26.4", pillow="11.0.0", pyyaml="6.0.2"),
    "torch_npu 2.7": dict(torch="2.7.1+cpu", torchvision="0.22.1+cpu", numpy="1.26.4", pillow="11.3.0"),
    "torch_npu 2.10": dict(torch="2.10.0", torchvision="0.25.0", numpy="2.2.6", pillow="12.0.0"),
    "NVIDIA's container 23.10": dict(torch="2.1.0a0+32f93b1", torchvision="0.16.0a0", numpy="1.22.2"),
    "CUDA from the index": dict(torch="2.14.1", torchvision="0.29.1", numpy="2.4.6"),
}


@each_model
@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_ranges_admit_what_people_have(machine, model):
    """No version of what a machine has is outside a model's ranges: pip then keeps it."""
    asked = specifiers("%s/2.x_requirements.txt" % model)
    found = dict((name, asked[name]) for name in MACHINES[machine] if name in asked)
    assert {"torch", "numpy"} <= set(found)
    # prereleases: pip keeps an installed one that fits.
    assert not [name for name in found if not found[name].contains(MACHINES[machine][name], prereleases=True)]


@each_model
def test_ranges_are_as_wide_as_is_proved(model):
    """A range of a model begins with the oldest version that the tests run on and admits all of the newest one's major release, and
    nothing after it; numpy is open, OpenCV ends earlier."""
    oldest, newest = specifiers(OLDEST), specifiers(NEWEST)
    for name, asked in specifiers("%s/2.x_requirements.txt" % model).items():
        if name == "numpy":
            assert not asked
            continue
        assert sorted(part.operator for part in asked) == ["<", ">="], name
        first = [part.version for part in asked if part.operator == ">="][0]
        assert Version(Version(first).base_version) == version_of(oldest[name]), name
        if name == "opencv-python-headless":  # later ones replace a numpy 1, which PyTorch 2.1 and 2.2 need
            assert asked.contains("4.11.0.86") and not asked.contains("4.12.0.88")
            continue
        major = version_of(newest[name]).release[0]
        assert asked.contains("%d.999" % major) and not asked.contains("%d.0" % (major + 1)), name


def version_of(pin):
    """Return the one version that the specifiers `pin` admit."""
    assert [part.operator for part in pin] == ["=="], pin
    return Version(next(iter(pin)).version)


@pytest.mark.parametrize("constraints, python, files", [
    (NEWEST, "3.11", MODELS_FILES["2.x"] + COMMANDS), (OLDEST, "3.10", MODELS_FILES["2.x"] + MATRIX)])
def test_constraints_pin_all_that_is_asked_for(constraints, python, files):
    """Each package of the requirements files has one exact version in the constraints, inside the range, and no other is named."""
    pins, named = specifiers(constraints, python_version=python), set()
    for path in files:
        for name, asked in specifiers(path, python_version=python).items():
            version = version_of(pins[name] if name in pins else asked)
            assert asked.contains(version), (path, name)
            named.add(name)
    assert set(pins) <= named


# --- tools/make_venv.sh -----------------------------------------------------------------------------------------------

def test_what_changes_is_installed_again(tmp_path):
    """make_venv.sh calls pip once for the same files, and again after a requirement or a constraint has changed, or after pip
    failed."""
    shutil.copy(os.path.join(ROOT, "tools", "make_venv.sh"), str(make_folder(tmp_path / "tools")))
    python = make_folder(tmp_path / "venv" / "bin") / "python"
    python.write_text('#!/bin/sh\n[ "$1" != -m ] || { echo "$@" >>calls; exec test ! -e broken; }\n')
    python.chmod(0o755)
    (tmp_path / "r.txt").write_text("torch>=2\n")
    (tmp_path / "c.txt").write_text("torch==2.1\n")

    def calls():
        (tmp_path / "calls").write_text("")
        done = subprocess.run(["bash", "tools/make_venv.sh", "--constraints=c.txt", "r.txt"], cwd=str(tmp_path),
                              env=dict(os.environ, VENV="venv"))
        return (tmp_path / "calls").read_text().splitlines(), done.returncode

    first = calls()
    assert len(first[0]) == 1 and first[0][0].endswith(" -c c.txt -r r.txt") and calls() == ([], 0)
    for name, words in (("c.txt", "torch==2.2\n"), ("r.txt", "torch>=2.1\n")):
        (tmp_path / name).write_text(words)
        (tmp_path / "broken").write_text("")
        assert calls() == (first[0], 1)
        (tmp_path / "broken").unlink()
        assert calls() == first and calls() == ([], 0)


@pytest.mark.parametrize("words, said", [([], "no requirements file"), (["--constraint=c.txt"], "no file --constraint=c.txt"),
                                         (["no.txt"], "no file no.txt")])
def test_make_venv_of_no_file(tmp_path, words, said):
    """One line and status 2 before a folder is made. Defect: without a file it waited for the terminal."""
    done = subprocess.run(["bash", os.path.join(ROOT, "tools", "make_venv.sh")] + words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, env=dict(os.environ, VENV=str(tmp_path / "venv")))
    assert_bad_input(done, said)
    assert not (tmp_path / "venv").exists()


def make_folder(path):
    path.mkdir(parents=True)
    return path


@pytest.mark.parametrize("script", ["tools/quickstart.sh", "ci/run_tests.sh"])
def test_commands_install_exact_versions(script):
    """The README's two commands install the versions of the constraints file, not the newest of each range."""
    with open(os.path.join(ROOT, script)) as stream:
        calls = [line for line in stream if "make_venv.sh" in line]
    assert calls and all(" --constraints=%s " % NEWEST in line for line in calls)


# --- what pip would do ------------------------------------------------------------------------------------------------

def would_install(python, tmp_path, *arguments, **variables):
    """Return {name: version} of what `python -m pip install` with the arguments would install. Skips where no index answers."""
    report = str(tmp_path / "report.json")
    done = subprocess.run([str(python), "-m", "pip", "install", "--dry-run", "--quiet", "--retries=2", "--report", report]
                          + list(arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
                          env=dict(os.environ, **variables))
    if done.returncode and "connection broken" in done.stderr and not re.search(r"from versions: \d", done.stderr):
        pytest.skip("no package index answers")
    assert not done.returncode, done.stderr
    with open(report) as stream:
        found = [install["metadata"] for install in json.load(stream)["install"]]
    return dict((plain(package["name"]), package["version"]) for package in found)


@asks_index
@each_model
def test_torch_stays(tmp_path, model):
    """On a machine that has PyTorch 2.1, numpy 1.26 and torchvision (if the model asks for it), and nothing else, installing the
    model's requirements brings what is missing and replaces none of these."""
    path = "%s/2.x_requirements.txt" % model
    asked = specifiers(path)
    has = [Requirement(name) for name in ("torch", "numpy", "torchvision") if name in asked]
    python = os.path.join(link_environment(has, tmp_path / "machine"), "python")
    found = would_install(python, tmp_path, "-r", os.path.join(ROOT, path))
    assert not {"torch", "numpy", "torchvision"} & set(found), found
    assert {"pyyaml", "yacs", "tensorboard"} & set(asked) <= set(found)


@asks_index
def test_torch_stays_with_the_constraints(tmp_path):
    """Where torchvision is missing beside PyTorch 2.1, the constraints file makes pip take the one that goes with it."""
    python = os.path.join(link_environment([Requirement("torch"), Requirement("numpy")], tmp_path / "machine"), "python")
    found = would_install(python, tmp_path, "-c", os.path.join(ROOT, OLDEST),
                          "-r", os.path.join(ROOT, "FixRes/2.x_requirements.txt"))
    assert found.pop("torchvision") == "0.16.0" and not {"torch", "numpy"} & set(found), found


@asks_index
def test_torch_stays_beside_its_plugin(tmp_path):
    """Where torchvision is missing beside torch_npu, tools/npu_requirements.txt before a model's file keeps the plug-in and its PyTorch,
    as pyproject.toml's extra has it. (After the file, pip replaces both by the newest.)"""
    python = os.path.join(link_environment([Requirement("numpy")], tmp_path / "machine"), "python")
    site, = glob.glob(str(tmp_path / "machine" / "lib" / "python*" / "site-packages"))
    for name, version, needs in (("torch", "2.10.0+cpu", ""), ("torch_npu", "2.10.0", "Requires-Dist: torch==2.10.0+cpu\n")):
        folder = os.path.join(site, "%s-%s.dist-info" % (name, version))
        os.mkdir(folder)
        for file, words in (("METADATA", "Metadata-Version: 2.1\nName: %s\nVersion: %s\n%s" % (name, version, needs)), ("RECORD", "")):
            with open(os.path.join(folder, file), "w") as stream:
                stream.write(words)
    found = would_install(python, tmp_path, "-r", os.path.join(ROOT, "tools/npu_requirements.txt"),
                          "-r", os.path.join(ROOT, "FixRes/2.x_requirements.txt"))
    assert found["torchvision"] == "0.25.0" and not {"torch", "torch-npu", "numpy"} & set(found), found


# Files that are installed together, and for which Python. (torch_npu is published from Python 3.8 on.)
TOGETHER = [("3.7", MODELS_FILES["1.5"] + MATRIX), ("3.7", MODELS_FILES["1.8"] + MATRIX), ("3.8", MODELS_FILES["2.x"]),
            ("3.10", MODELS_FILES["2.x"] + COMMANDS[:1]), ("3.10", MODELS_FILES["2.x"] + MATRIX + (OLDEST,)),
            ("3.11", MODELS_FILES["2.x"] + COMMANDS), ("3.11", MODELS_FILES["2.x"] + COMMANDS + (NEWEST,)),
            ("3.11", MODELS_FILES["2.x"] + ("tools/npu_requirements.txt",))]
# Pins that no index has for aarch64, and why that is no fault; nothing else may be missing.
NOT_FOR_AARCH64 = {"torch==1.5.0": "the maker of the NPU has built it: 1.5.0+ascend, which comes with the plug-in in one"}
PLATFORMS = ["manylinux2014_aarch64"] + ["manylinux_2_%d_aarch64" % glibc for glibc in range(17, 29)]


def on_aarch64(tmp_path, python, wanted):
    """Return {name: version} of what pip would take of the specifications `wanted` for Linux on aarch64, their wheels only."""
    (tmp_path / "wanted.txt").write_text("\n".join(wanted))
    target = ["--target", str(tmp_path), "--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    return would_install(sys.executable, tmp_path, *target, *["--platform=" + platform for platform in PLATFORMS],
                         "-r", str(tmp_path / "wanted.txt"))


@asks_index
@pytest.mark.parametrize("python, files", TOGETHER)
def test_all_is_there_for_aarch64(tmp_path, python, files):
    """Every pin and every range of the requirements and constraints files has a wheel for aarch64."""
    wanted = {}
    for path in files:
        for requirement in requirements(path, python_version=python, platform_machine="aarch64"):
            wanted["%s%s" % (requirement.name, requirement.specifier)] = plain(requirement.name)
    wanted = dict((line, name) for line, name in wanted.items() if line not in NOT_FOR_AARCH64)
    assert set(on_aarch64(tmp_path, python, sorted(wanted))) == set(wanted.values())


@asks_index
@pytest.mark.parametrize("pin", sorted(NOT_FOR_AARCH64))
def test_what_is_not_there_for_aarch64(tmp_path, pin):
    """An exception that is needed no more goes."""
    with pytest.raises(AssertionError, match="No matching distribution|ResolutionImpossible"):
        on_aarch64(tmp_path, "3.7", [pin])


def test_every_file_is_looked_at():
    """A new requirements or constraints file is resolved for aarch64 as well."""
    written = [os.path.relpath(path, ROOT) for kind in ("requirements", "constraints")
               for path in glob.glob(os.path.join(glob.escape(ROOT), "*", "*%s.txt" % kind))]
    assert len(written) > 15 and set(written) == {path for _, files in TOGETHER for path in files}


@asks_index
def test_only_a_missing_index_is_no_failure(tmp_path):
    """A test skips where nothing answers; a pin that an index does not have is a failure."""
    nothing = dict(PIP_CONFIG_FILE=os.devnull, PIP_FIND_LINKS="", PIP_INDEX_URL="http://127.0.0.1:9/simple")
    with pytest.raises(pytest.skip.Exception):
        would_install(sys.executable, tmp_path, "no-such-package==1", **nothing)
    page = make_folder(tmp_path / "simple" / "no-such-package") / "index.html"
    page.write_text('<a href="no_such_package-2-py3-none-any.whl">2</a>')
    with pytest.raises(AssertionError, match="No matching distribution"):
        would_install(sys.executable, tmp_path, "no-such-package==1", **dict(nothing, PIP_INDEX_URL=(tmp_path / "simple").as_uri()))

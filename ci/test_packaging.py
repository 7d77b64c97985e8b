"""What belongs to the project as a whole: packages are listed once, forges and containers call what exists, templates ask for reports."""
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import setuptools
import yaml
from packaging.requirements import Requirement
from setuptools.config.pyprojecttoml import apply_configuration

from conftest import MODELS, ROOT, environment
from test_requirements import plain, requirements

COMMANDS = ["bash tools/quickstart.sh", "bash ci/run_tests.sh"]
IMAGES = {"cpu": "cpu", "cuda": "gpu", "npu": "npu"}  # the Dockerfile's name, and what its device is called elsewhere
OF_MODELS = ["%s/2.x_requirements.txt" % model for model in MODELS] + ["tools/requirements.txt"]
EXTRAS = {"cpu": OF_MODELS, "gpu": OF_MODELS, "npu": ["tools/npu_requirements.txt"] + OF_MODELS,
          "dev": ["tools/requirements.txt", "ci/requirements.txt"]}
each_image = pytest.mark.parametrize("image", sorted(IMAGES))


def read(path):
    """Return the text of a file of the repository."""
    with open(os.path.join(ROOT, path), encoding="utf-8") as stream:
        return stream.read()


def tracked():
    """Return the paths of all files that git keeps, or would."""
    done = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, stdout=subprocess.PIPE,
                          universal_newlines=True, check=True)
    return [path for path in done.stdout.splitlines() if os.path.isfile(os.path.join(ROOT, path))]


# --- pyproject.toml ---------------------------------------------------------------------------------------------------

def test_extras_are_the_requirements_files():
    """Each extra asks for what its files ask for, of all models: setuptools, which builds the metadata, reads them."""
    found = apply_configuration(setuptools.Distribution(), os.path.join(ROOT, "pyproject.toml")).extras_require
    assert set(found) == set(EXTRAS)
    for extra, files in EXTRAS.items():
        lines = [line.split(" #")[0] for path in files for line in read(path).splitlines() if line and not line.startswith("#")]
        assert {str(Requirement(line)) for line in found[extra]} == {str(Requirement(line)) for line in lines}, extra
    assert found["npu"][0].startswith("torch_npu")  # before torchvision, or pip takes the newest of both: ci/test_requirements.py


def test_a_package_is_asked_for_in_one_way():
    """No two files of an extra give one package different ranges, and no dependency stands in pyproject.toml itself."""
    for files in EXTRAS.values():
        ranges = {}
        for path in files:
            for requirement in requirements(path):
                known = ranges.setdefault(plain(requirement.name), str(requirement.specifier))
                assert known in ("", str(requirement.specifier)) or not requirement.specifier, (path, requirement)
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert project["dynamic"] == ["optional-dependencies"] and "dependencies" not in project


def test_the_linters_are_set_once():
    """Ruff and pytest have no other configuration that would take the place of pyproject.toml's."""
    others = re.compile(r"(^|/)(\.?ruff\.toml|pytest\.(ini|toml)|tox\.ini|setup\.cfg|\.flake8)$")
    assert [path for path in tracked() if others.search(path)] == []
    assert [path for path in tracked() if path.endswith("pyproject.toml") and "tool.ruff" in read(path)] == ["pyproject.toml"]


def test_ruff_refuses_syntax_of_a_later_python(tmp_path):
    """Python 3.7 is what the models have to run on: ruff says where a line needs a later one, and finds an undefined name."""
    (tmp_path / "late.py").write_text("if (found := 1):\n    print(found, undefined)\n")
    shutil.copy(os.path.join(ROOT, "pyproject.toml"), str(tmp_path))  # ruff does not take the path of one with a $
    done = subprocess.run(["ruff", "check", "--output-format=concise", "--no-cache"], stdout=subprocess.PIPE, universal_newlines=True,
                          env=environment(), cwd=str(tmp_path))
    assert done.returncode == 1 and "3.8" in done.stdout and "F821" in done.stdout, done.stdout


# --- forges -----------------------------------------------------------------------------------------------------------

def commands_of(path):
    """Return the shell commands of a workflow file of GitHub (`run`) or Gitee Go (`commands`), in order."""
    content = yaml.safe_load(read(path))
    if path.startswith(".github"):
        return [step["run"] for job in content["jobs"].values() for step in job["steps"] if "run" in step]
    return [command for stage in content["stages"] for step in stage["steps"] for command in step["commands"]]


@pytest.mark.parametrize("path", [".github/workflows/tests.yml", ".workflow/tests.yml"])
def test_workflows_call_the_two_commands(path):
    """Both forges run the README's two commands and nothing else, on the Python of the constraints file."""
    assert commands_of(path) == COMMANDS
    assert all(command in read("README.md") for command in COMMANDS)
    assert re.findall(r"python-?[vV]ersion: ['\"]([\d.]+)['\"]", read(path)) == ["3.11"] * 2
    assert "Python 3.11" in read("tools/2.13_constraints.txt")


def test_every_yaml_file_parses():
    """A file that a forge cannot read does nothing there, and says nothing here."""
    found = [path for path in tracked() if path.endswith((".yml", ".yaml"))]
    assert {".pre-commit-config.yaml", ".github/ISSUE_TEMPLATE/problem.yml", ".gitee/ISSUE_TEMPLATE/problem.yml"} <= set(found)
    for path in found:
        assert list(yaml.safe_load_all(read(path))), path


@pytest.mark.parametrize("forge", [".github", ".gitee"])
def test_templates_ask_for_reports(forge):
    """An issue has to come with report.json and what the doctor says, a pull request with reports; what they name exists."""
    form = yaml.safe_load(read(forge + "/ISSUE_TEMPLATE/problem.yml"))
    needed = {item["id"] for item in form["body"] if item.get("validations", {}).get("required")}
    assert {"command", "report", "doctor"} <= needed
    pull = read(glob.glob(os.path.join(ROOT, forge, "PULL_REQUEST_TEMPLATE*.md"))[0])
    for text in (pull, read(forge + "/ISSUE_TEMPLATE/problem.yml")):
        assert "report.json" in text
        for name in re.findall(r"(?:tools|ci|ResNet50)/[\w/.]+\.(?:py|sh)", text) + re.findall(r"`([A-Z]+\.md)`", text):
            assert os.path.isfile(os.path.join(ROOT, name)), name


def test_both_forges_ask_the_same():
    """The Chinese form has the fields of the English one, the same of them required."""
    forms = [yaml.safe_load(read(forge + "/ISSUE_TEMPLATE/problem.yml"))["body"] for forge in (".github", ".gitee")]
    shapes = [[(item["type"], item["id"], item.get("validations")) for item in form] for form in forms]
    assert shapes[0] == shapes[1]


def test_the_hooks_call_what_the_tests_begin_with():
    """pre-commit takes its configuration, whose one hook is the script that ci/run_tests.sh begins with."""
    subprocess.run([sys.executable, "-m", "pre_commit", "validate-config"], cwd=ROOT, env=environment(), check=True)
    hooks = [hook for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"] for hook in repo["hooks"]]
    assert [hook["entry"] for hook in hooks] == ["bash ci/lint.sh"]
    assert "\nbash ci/lint.sh\n" in read("ci/run_tests.sh")


# --- containers -------------------------------------------------------------------------------------------------------

def instructions(image):
    """Return [(instruction, words)] of an image's Dockerfile, continued lines joined and comments left out."""
    text = re.sub(r"^#.*\n", "", read("docker/Dockerfile." + image), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line]


def copied(image):
    """Return the paths of single files that the Dockerfile copies, without the last COPY, which copies all."""
    copies = [words.split() for name, words in instructions(image) if name == "COPY"]
    assert copies[-1] == ["--chown=trainer:trainer", ".", "."]
    return [os.path.relpath(path, ROOT) for words in copies[:-1] for word in words[:-1]
            for path in glob.glob(os.path.join(ROOT, word)) or [word]]


@each_image
def test_an_image_copies_what_its_packages_need(image):
    """All that pip reads before the programs are copied is there: the project's metadata and the files of all extras. A file that does
    not exist, or that .dockerignore leaves out, would end the build."""
    found = copied(image)
    assert set(sum(EXTRAS.values(), [])) | {"pyproject.toml", "README.md", "LICENSE"} <= set(found)
    assert set(found) <= set(tracked())
    assert not [path for path in found if ignored(path)]
    installs = [words for name, words in instructions(image) if name == "RUN" and "pip install" in words]
    assert len(installs) == 1 and '".[%s]"' % IMAGES[image] in installs[0] and "--no-cache-dir" in installs[0]


def ignored(path):
    """Return whether .dockerignore leaves a path out, by patterns that name a folder, end in * or begin with **/."""
    patterns = [line for line in read(".dockerignore").splitlines() if line and not line.startswith("#")]
    anywhere = [pattern[3:] for pattern in patterns if pattern.startswith("**/")]
    parts = path.split("/")
    return any(matches(part, pattern) for part in parts for pattern in anywhere) or any(
        matches(parts[0], pattern) for pattern in patterns if not pattern.startswith("**/"))


def matches(name, pattern):
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), name) is not None


def test_images_have_the_programs_and_no_more():
    """.dockerignore leaves out what .gitignore does and history, and none of the programs, their tests and job files."""
    left_out = {path.split("/")[0] for path in tracked() if ignored(path)}
    assert left_out == {".ci", ".github", ".gitee", ".workflow", "docker"}
    assert ignored(".git/config")
    for line in read(".gitignore").splitlines():
        assert ignored(line.strip("/").replace("*", "x")), line


@each_image
def test_an_image_runs_as_a_user_and_has_a_health_check(image):
    """The last user is not root; the health check is the doctor, which knows the image's device, and answers for a CPU here."""
    found = instructions(image)
    assert [words for name, words in found if name == "USER"] == ["${UID}:${GID}"]
    assert {"ARG UID=1000", "ARG GID=1000"} <= {" ".join(each) for each in found}
    check, = [words for name, words in found if name == "HEALTHCHECK"]
    command = re.search(r"python tools/doctor\.py --device=\w+", re.sub(r'", "', " ", check)).group(0)
    assert command.endswith("=" + IMAGES[image])
    words = command.split() + ["--json" if image == "cpu" else "--help"]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, universal_newlines=True, env=environment())
    assert done.returncode == (image == "cpu" and json.loads(done.stdout)["wrong"] > 0), done.stdout


def test_the_plugin_of_the_image_fits_its_cann():
    """The versions that Dockerfile.npu starts with are a pair of the doctor's table."""
    args = dict(words.split("=", 1) for name, words in instructions("npu") if name == "ARG")
    pairs = [line.split()[1:4:2] for line in read("tools/doctor_checks/compatibility.txt").splitlines() if line.startswith("plugin")]
    assert [args["TORCH_NPU"], args["CANN"].split("-")[0]] in pairs


@each_image
def test_hadolint_finds_nothing(image):
    """And it does find what is wrong: an image as root of an unknown version."""
    path = os.path.join(ROOT, "docker", "Dockerfile." + image)
    lint = [os.path.join(os.path.dirname(sys.executable), "hadolint"), "--no-color"]
    done = subprocess.run(lint + [path], stdout=subprocess.PIPE, universal_newlines=True)
    assert (done.returncode, done.stdout) == (0, "")
    done = subprocess.run(lint + ["-"], input="FROM python:latest\nUSER root\n", stdout=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 1 and "DL3007" in done.stdout and "DL3002" in done.stdout


# --- the whole repository ---------------------------------------------------------------------------------------------

def test_containers_are_explained():
    """Every build argument is in the page's table with its default; each docker command is marked as not run."""
    page = read("docs/containers.md")
    for image in IMAGES:
        for name, words in instructions(image):
            if name == "ARG":
                argument, _, default = words.partition("=")
                row, = re.findall(r"^\| .*`%s`.*$" % argument, page, re.MULTILINE)
                assert "`%s` |" % default in row or not default and "none |" in row, (argument, default)
    shown = re.findall(r"^docker (?:.*\\\n)*.*$", page, re.MULTILINE)
    assert len(shown) == 6 and all(command.endswith("# not run") for command in shown)

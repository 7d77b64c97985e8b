"""The commands in the READMEs: every script in them exists and takes the options that it is shown with."""
import glob
import os
import re
import subprocess

import pytest

from conftest import MODELS, ROOT, environment

PAGES = ["README.md", "README.zh-CN.md"] + [model + "/README.md" for model in MODELS]


def commands(page):
    """Return the `bash …sh` and `python …py` commands in the page's code blocks, after the variables that the blocks set;
    continued lines are joined, comments left out."""
    with open(os.path.join(ROOT, page), encoding="utf-8") as stream:
        blocks = re.findall(r"^```[a-z]*\n(.*?)^```", stream.read(), re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    variables = "".join(line + "; " for line in lines if re.match(r"\w+=\S+$", line))
    return [variables + line.split(" #")[0].strip() for line in lines if re.match(r"(bash \S+\.sh|python3? \S+\.py)", line)]


@pytest.mark.parametrize("page", [page for page in PAGES if os.path.exists(os.path.join(ROOT, page))])
def test_commands_of_a_page_exist(page):
    """Each command answers --help, a script after it has checked the options shown (every script also runs in a smoke test)."""
    found = commands(page)
    assert found
    for command in found:
        if not re.search(r"(quickstart|run_tests|version_matrix)\.sh", command):
            command = re.sub(r"(--pth_path)=\S+", r"\1=README.md", command)
            asked = command + " --help" if "bash" in command else command.replace(".py", ".py --help", 1)
            done = subprocess.run(["bash", "-c", asked],
                                  cwd=os.path.dirname(os.path.join(ROOT, page)), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                  universal_newlines=True, env=environment())
            assert done.returncode == 0, command + "\n" + done.stderr


@pytest.mark.parametrize("page", [page for page in PAGES if os.path.exists(os.path.join(ROOT, page))])
def test_links_of_a_page_lead_somewhere(page):
    """Relative links and the tools that a page names are there."""
    with open(os.path.join(ROOT, page), encoding="utf-8") as stream:
        text = stream.read()
    for target in re.findall(r"\]\((?!http)([^)#]+)", text) + re.findall(r"`(tools/\w+\.(?:py|sh))", text):
        below = os.path.dirname(page) if not target.startswith("tools/") else ""
        places = [os.path.join(ROOT, below, target), os.path.join(ROOT, os.path.dirname(page), target)]
        assert any(os.path.exists(place) for place in places), target


def test_every_script_is_shown():
    """No script of a model is missing from its page."""
    for page in PAGES[2:]:
        if os.path.exists(os.path.join(ROOT, page)):
            with open(os.path.join(ROOT, page), encoding="utf-8") as stream:
                text = stream.read()
            for script in glob.glob(os.path.join(ROOT, os.path.dirname(page), "test", "*_*.sh")):
                assert os.path.basename(script) in text, script

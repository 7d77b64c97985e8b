"""The commands in the documents: each is run by a test, or the document says why not.

A document says it in a comment that readers do not see, anywhere in the command's section:

    <!-- not run (kubectl apply): no cluster here -->
    <!-- run by (--measure): ci/test_scaling.py::test_pinned_ranks --slow -->

In brackets stands what such commands have in them, several with commas; behind a test that runs only so, --slow. A comment above the
first section counts for the whole page. Commands without a comment are run by what RUN_BY names, the models' scripts by SCRIPTS. A block
without a language holds commands, up to a line `...`; other text is ```text. That a Chinese page has the same commands and comments is
tested in test_readmes.py.
"""
import ast
import collections
import functools
import glob
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

import resnet
from common import checkpoint
from conftest import MODELS, ROOT, assert_bad_input, environment, free_port, script_command
from test_genet_data import write_cifar

# Which test, or which of CI's scripts, runs the commands that begin so; several with commas.
RUN_BY = {
    "EfficientNet-B3/tools/test_net.py": "ci/test_efficientnet_scripts.py::test_evaluation_takes_a_folder, EfficientNet-B3/test/model.sh",
    "EfficientNet-B3/tools/time_net.py": "ci/test_efficientnet_scripts.py::test_time_net",
    "EfficientNet-B3/tools/train_net.py": "ci/test_efficientnet_scripts.py::test_overrides_and_an_earlier_checkpoint",
    "GENet/train.py": "ci/test_reliability_inputs.py::test_an_interpreter_without_docstrings_or_the_folder_of_the_program",
    "HRNet/tools/train.py": "ci/test_hrnet_scripts.py::test_lines_and_records, HRNet/test/model.sh",
    "HRNet/tools/valid.py": "ci/test_hrnet_scripts.py::test_valid_takes_final_state, HRNet/test/model.sh",
    "ResNet50/main.py": "ci/test_resnet50_scripts.py::test_fine_tuning_trains_fc_alone_however_a_batch_is_divided",
    "ResNet50/pth2onnx.py": "ci/test_documents.py::test_upstreams_exporter",
    "ci.campaign": "ci/test_campaign.py::test_short_campaign",
    "ci/cluster/slurm_two_nodes.sh": "ci/test_slurm.py::test_two_nodes",
    "ci/lint.sh": "ci/run_tests.sh",
    "ci/measure_style.py": "ci/lint.sh",
    "ci/npu_sim/run": "ci/test_npu_sim_mistakes.py::test_example_matches_the_cpu, ci/test_npu_sim_report.py::test_fixture",
    "ci/run_tests.sh": ".ci/run",
    "ci/version_matrix.sh": ".ci/run",
    "kubectl kustomize": "ci/test_deploy.py::test_kubectl_makes_the_same_of_the_overlays --slow",
    "npu-sim run": "ci/test_npu_sim_package.py::test_console_script",
    "pip install -r": "ci/test_requirements.py::test_torch_stays",
    "NPU_SIM_COMPILE=1 pip wheel": "ci/test_npu_sim_package.py::test_compiled_wheel",
    "pip install ./ci/npu_sim": "ci/test_npu_sim_package.py::test_console_script",
    "pre-commit install": "ci/test_documents.py::test_hooks_are_installed",
    "pytest --npu-sim": "ci/test_npu_sim_package.py::test_pytest_plugin",
    "sbatch": "ci/test_slurm.py::test_two_nodes",
    "tools/benchmark.py input": "ci/test_tools.py::test_inputs_are_compared",
    "tools/benchmark.py operators": "ci/test_step.py::test_operators_and_waits_of_a_step",
    "tools/benchmark.py scaling": "ci/test_scaling.py::test_the_table_of_a_run",
    "tools/benchmark.py step": "ci/test_tools.py::test_share_of_a_step_outside_the_model, ci/test_documents.py::test_a_step_of_resnet50",
    "tools/benchmark.py training": "ci/test_step.py::test_trainings_are_compared",
    "tools/certify.py": "ci/test_certificate.py::test_each_stage_can_fail",
    "tools/certify.sh": "ci/test_certificate.py::test_quick_certificate, ci/test_certificate.py::test_each_stage_can_fail",
    "tools/compare_devices.py": "ci/test_certificate_numbers.py::test_the_program_compares_and_keeps_what_it_saw",
    "tools/dataset.py check": "ci/test_tools.py::test_good_sets_are_good",
    "tools/dataset.py demo": "ci/test_tools.py::test_imagenet_layout, ci/test_genet_scripts.py::test_training_learns",
    "tools/dataset.py pack": "ci/test_packed.py::test_check_of_packed_data",
    "tools/dataset.py split": "ci/test_own_data.py::test_four_commands",
    "tools/doctor.py": "ci/test_doctor.py::test_this_machine",
    "tools/make_golden.py": "ci/test_make_golden.py::test_the_numbers_are_made_again",
    "tools/quickstart.sh": ".ci/run",
    "tools/runs.py curves": "ci/test_runs.py::test_the_picture_is_written_beside_the_records",
    "tools/runs.py page": "ci/test_runs.py::test_a_page_says_what_ran, ci/test_own_data.py::test_four_commands",
    "tools/runs.py table": "ci/test_runs.py::test_table",
    "tools/runs.py tensorboard": "ci/test_runs.py::test_events_of_an_old_run",
    "tools/weights.py export": "ci/test_weights.py::test_commands_of_the_page, ci/test_weights.py::test_logits_are_the_same_there_and_back",
    "tools/weights.py import": "ci/test_weights.py::test_commands_of_the_page, ci/test_weights.py::test_logits_are_the_same_there_and_back",
    "tools/weights.py networks": "ci/test_documents.py::test_figures_of_networks",
    "tools/weights.py onnx": "ci/test_weights.py::test_commands_of_the_page, ci/test_weights.py::test_onnx_gives_pytorchs_logits",
    "tools/weights.py predict": "ci/test_weights.py::test_commands_of_the_page, ci/test_weights.py::test_predict_names_what_the_network_finds",
}
# The tests of these files run every test/*.sh of every model (ci/test_all_scripts.py::test_finetuning sees to it), with these options.
SCRIPTS = ("ci/test_all_scripts.py", "ci/test_own_data.py", "ci/test_fixres_scripts.py", "ci/test_genet_scripts.py",
           "ci/test_documents.py::test_two_machines_by_hand")

BEGINS = re.compile(r"([A-Z_]+=\S+ )*(apt-get|atc|bash|ci/npu_sim/run|docker|kubectl|npu-sim|pip|pre-commit|pytest|python|sbatch|srun|torchrun|"
                    r"tools/\w+\.(py|sh)) ")
CALLED = {"torchrun": "torch.distributed.run", "ci/npu_sim/run": "launch"}  # what a test calls them
VERBS = re.compile(r"tools/(benchmark|dataset|runs|weights)\.py$")
BLOCK = re.compile(r"^```([a-z]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MARK = re.compile(r"<!-- (run by|not run) \((.+?)\): (.+?) -->")
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
FOLDERS = ("*.md", "[A-Z]*/*.md", ".git*/*.md", "ci/*/*.md", "deploy/*/*.md", "docs/*.md", "docs/*/README.md")
PAGES = sorted(os.path.relpath(path, ROOT) for pages in FOLDERS for path in glob.glob(os.path.join(glob.escape(ROOT), pages))
               if ".zh-CN." not in path and not path.endswith("CHANGELOG.md"))

# marks: the comments on it; line: continued lines joined, without comment; name: the program's path in the repository and its verb if it
# has verbs, or the line; words: the program, without folder and end, and the verb; options: without --, with underscores.
Command = collections.namedtuple("Command", "marks line name words options")


# --- what a document says ---------------------------------------------------------------------------------------------

def read(page):
    """Return a page's text."""
    with open(os.path.join(ROOT, page), encoding="utf-8") as stream:
        return stream.read()


def sections(page):
    """Return the texts of the page's sections, each with its heading."""
    text = read(page)
    covered = BLOCK.sub(lambda match: "`" * len(match.group()), text)
    places = [0] + [match.start() for match in re.finditer(r"^#+ ", covered, re.MULTILINE)] + [len(text)]
    return [text[start:end] for start, end in zip(places, places[1:])]


def commands_in(text):
    """Return the lines of the text's blocks of commands, continued ones joined, without comments, empty ones and what follows `...`."""
    blocks = [block.replace("\\\n", " ").partition("\n...\n")[0] for language, block in BLOCK.findall(text) if not language]
    lines = [" ".join(re.sub(r"(^| +)# .*", "", line).split()) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def command(page, marks, line):
    """Return the Command of a line, on which some of the marks are."""
    words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
    program = next((word for word in words if re.search(r"(\.(py|sh)|^ci\.campaign)$", word)), "")
    name, said = line, [CALLED.get(words[0], words[0])]
    if words[0] in ("bash", "python", program):
        verb = words[words.index(program) + 1:][:1] * bool(VERBS.search(program))
        here = os.path.normpath(os.path.join(os.path.dirname(page), program))
        name = here if os.path.exists(os.path.join(ROOT, here)) else program
        said = [os.path.basename(name).partition(".")[0] if "/" in name else name]
        name, said = " ".join([name] + verb), said + verb
    options = [word[2:].split("=")[0].replace("-", "_") for word in words if re.match(r"--\w", word)]
    return Command([mark for mark in marks if any(part in line for part in mark[1].split(", "))], line, name, said, options)


@functools.lru_cache(maxsize=None)
def commands(page):
    """Return the page's Commands: those in blocks, and code of several words within the text."""
    found, everywhere = [], MARK.findall(re.split(r"(?m)^## ", read(page), maxsplit=1)[0])
    for section in sections(page):
        marks = MARK.findall(section) + everywhere
        code = re.findall(r"`([^`]+)`", COMMENT.sub("", BLOCK.sub("", section)))
        lines = [line for line in commands_in(section) if not re.match(r"(export )?\w+=\S+$", line)]
        lines += [line for line in code if BEGINS.match(line)]
        found += [command(page, marks, re.sub(r" (…|\.\.\.)$", "", line)) for line in lines]
    return found


def is_script(found):
    """Whether the Command is a model's script."""
    return found.name.split("/")[0] in MODELS and found.name.endswith(".sh")


def run_by(found):
    """Return what runs the Command, as in RUN_BY; "" where the page says that nothing does; None where nothing is said."""
    for kind, _, what in found.marks:
        return what if kind == "run by" else ""
    if is_script(found):
        return ", ".join(SCRIPTS)
    begins = [start for start in RUN_BY if (found.name + " ").startswith(start.rstrip() + " ") or found.name == start]
    return RUN_BY[max(begins, key=len)] if begins else "tools/make_venv.sh" if packages(found) else None


def packages(found):
    """Whether the Command installs packages that requirements files name (which ci/run_tests.sh has make_venv.sh install)."""
    names = [re.split("[=<>~]", word)[0] for word in found.line.split()[2:] if word[0] != "-"]
    files = glob.glob(os.path.join(ROOT, "*", "*requirements.txt"))
    listed = {re.split(r"[^\w-]", line)[0].lower() for path in files for line in read(path).splitlines()}
    return found.line.startswith("pip install ") and bool(names) and set(names) <= listed


# --- what a test says -------------------------------------------------------------------------------------------------

@functools.lru_cache(maxsize=None)
def definitions(path):
    """Return {name: its definition} of a Python file of ci/: a node, or (file, name) of what is imported from another."""
    found = {}
    for node in ast.parse(read(path)).body:
        if isinstance(node, ast.ImportFrom) and os.path.exists(os.path.join(ROOT, "ci", "%s.py" % node.module)):
            found.update((alias.asname or alias.name, ("ci/%s.py" % node.module, alias.name)) for alias in node.names)
        for target in getattr(node, "targets", [node]):
            names = [part.id for part in ast.walk(target) if isinstance(part, ast.Name)] if target is not node else [getattr(node, "name", None)]
            found.update((name, node) for name in names)
    return found


@functools.lru_cache(maxsize=None)
def said_by(place):
    """Return the strings and names in a test `FILE::TEST` and in what it calls and takes as a fixture, or in a file, docstrings left
    out: without these nothing that runs a program can name it."""
    path, _, test = place.replace(" --slow", "").partition("::")
    if not path.endswith(".py"):
        text = re.sub(r"#.*", "", read(path)).replace("\\\n", " ")
        forwarded = " ".join(re.findall(r"\bforward ([\w =-]+)", text)).split()
        return "\n".join([text] + ["--" + word for word in forwarded if word[0] != "-"])  # a bare name is flag and option alike
    known = definitions(path)
    assert test in known or not test, "there is no test " + place
    assert place.endswith(" --slow") == is_slow(known, test), place
    todo, done, words = [(path, name) for name in ([test] if test else known)], set(), []
    while todo:
        where, name = todo.pop()
        node = definitions(where).get(name, ("ci/conftest.py", name) if where != "ci/conftest.py" else None)
        if (where, name) not in done and node is not None:
            done.add((where, name))
            names, strings = (set(), []) if isinstance(node, tuple) else inside(node)
            words += list(names) + strings
            todo += [node] if isinstance(node, tuple) else [(where, used) for used in names]
    return "\n".join(words)


def is_slow(known, test):
    """Whether a test of a file with these definitions runs with --slow only, whatever its parameters."""
    marks = [getattr(known.get("pytestmark"), "value", None)] + getattr(known.get(test), "decorator_list", [])
    parts = [part for mark in marks for part in getattr(mark, "elts", [mark])]
    return any(getattr(part, "attr", "") == "slow" for part in parts)


def inside(node):
    """Return the names and the strings in a node of Python's syntax, docstrings left out."""
    parts = list(ast.walk(node))
    documentation = {id(part.value) for part in parts if isinstance(part, ast.Expr)}
    names = {part.id for part in parts if isinstance(part, ast.Name)} | {part.arg for part in parts if isinstance(part, ast.arg)}
    strings = [text_of(part) for part in parts if id(part) not in documentation]
    return names, [text for text in strings if isinstance(text, str)]


def text_of(node):
    return node.value if isinstance(node, getattr(ast, "Constant", ())) else node.s if type(node).__name__ == "Str" else None


def missing(found, places):
    """Return which of the Command's program, verb and options the places do not say. A test that takes the commands of a page says them."""
    said = "\n".join(said_by(place) for place in places.split(", "))
    if re.search(r"^commands_in$", said, re.MULTILINE) and any(found in commands(page) for page in set(said.splitlines()) & set(PAGES)):
        return []
    wanted = [] if is_script(found) else found.words
    lacks = [word for word in wanted if not re.search(r"\b%ss?\b" % word.replace(".", r"\.").replace("-", "[-_]"), said)]
    return lacks + ["--" + option for option in found.options if not re.search(r"(?<![\w-])--?%s\b" % option.replace("_", "[_-]"), said)]


# --- the tests --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("page", PAGES)
def test_each_command_is_run_by_a_test_or_marked(page):
    """Whatever a page tells people to type is run with the same program, verb and options by the test that is named, or the page says
    why not; no comment is left over."""
    assert [found.line for found in commands(page) if run_by(found) is None] == []
    wrong = [(found.line, run_by(found), missing(found, run_by(found))) for found in commands(page) if run_by(found)]
    assert [problem for problem in wrong if problem[2]] == []
    used = {mark for found in commands(page) for mark in found.marks}
    assert [mark for mark in MARK.findall(read(page)) if mark not in used] == []
    assert len(re.findall("<!-- (?:run|not) ", read(page))) == len(MARK.findall(read(page)))


@pytest.mark.parametrize("page", PAGES)
def test_scripts_take_the_options_that_are_shown(page):
    """Each model's script answers --help after it has checked the options and values of a page. Commands of models' pages are those of
    someone who stands in the model's folder, of other pages in the repository's."""
    here = os.path.dirname(page) if os.path.dirname(page) in MODELS else ""
    for line in sorted({found.line for found in commands(page) if is_script(found) and found.line.startswith("bash ")}):
        words = re.sub(r"(--pth_path)=\S+", r"\1=README.md", line) + " --help"
        assert "Example:" in ends_well(["bash", "-c", words], os.path.join(ROOT, here)), line


def test_the_table_has_no_line_too_much():
    """Each line of RUN_BY is about some command."""
    names = [found.name + " " for page in PAGES for found in commands(page)]
    assert [start for start in RUN_BY if not any(name.startswith(start + " ") for name in names)] == []


@pytest.mark.parametrize("line, places, lacks", [
    ("python tools/dataset.py check /data", "ci/test_tools.py::test_good_sets_are_good", []),
    ("python tools/dataset.py pack /data", "ci/test_tools.py::test_good_sets_are_good", ["pack"]),
    ("python tools/runs.py table RUN --format=csv", "ci/test_tools.py::test_good_sets_are_good", ["runs", "table", "--format"]),
    ("bash GENet/test/train_full_1p.sh --data_path=/x --no_option=1", "ci/test_all_scripts.py", ["--no_option"]),
    ("python tools/doctor.py", "ci/test_documents.py::test_hooks_are_installed", ["doctor"])])
def test_what_a_test_does_not_run_is_seen(line, places, lacks):
    """The check itself: what stands only in docstrings, comments or other tests is no proof."""
    assert missing(command("README.md", [], line), places) == lacks


PAGE = """# A page
`pip` and `common/`; `python tools/no_such.py x`
<!-- not run (docker): none here -->
## One
```
# said
docker run a \\
    b   # so
cfg=x
unheard of
...
printed
```
<!-- run by (check): ci/test_x.py::test_y -->
| `docker ps` | `x y` |
```text
tree/
```
## Other
`tools/dataset.py check DIR ...`
"""


def test_what_is_a_command(tmp_path):
    """The check itself: each line of a block, and code that begins like a command; comments count in their section, those at the top
    everywhere. Whatever is no command has no place among them."""
    (tmp_path / "page.md").write_text(PAGE)
    found = [(each.line, run_by(each)) for each in commands(str(tmp_path / "page.md"))]
    assert found == [("python tools/no_such.py x", None), ("docker run a b", ""), ("unheard of", None), ("docker ps", ""),
                     ("tools/dataset.py check DIR", RUN_BY["tools/dataset.py check"])]


# --- commands that no other test runs ---------------------------------------------------------------------------------

def ends_well(words, folder, **variables):
    """Run a command in a folder, with status 0; return what it prints."""
    done = subprocess.run([str(word) for word in words], cwd=str(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, timeout=300, env=environment(**variables))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_two_machines_by_hand(tmp_path):
    """A script for several machines started twice with the options that say which machine this is, its address and that of the first."""
    write_cifar(tmp_path / "cifar-10-batches-py", per_batch=20)
    port = "--master_port=%d" % free_port()
    started = [subprocess.Popen(script_command(
        "GENet/test/train_performance_multinodes.sh", "--data_path=%s" % tmp_path, "--nnodes=2", "--node_rank=%d" % number, "--local_addr=127.0.0.1",
        "--master_addr=127.0.0.1", port, "--device=cpu", "--device_list=0", "--output_path=%s" % (tmp_path / str(number)), "--depth=10",
        "--width=1", "--batch_size=8", "--workers=0", "--opt_level=O0", "--train_epochs=1", "--max_steps=2"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, env=environment()) for number in range(2)]
    said = [process.communicate(timeout=600) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert ["Final Performance images/sec : " in stdout for stdout, _ in said] == [True, False]


def test_a_step_of_resnet50(tiny_imagenet, tmp_path):
    """benchmark.py step, with the options that README.md shows for ResNet50."""
    said = ends_well([sys.executable, "tools/benchmark.py", "step", "ResNet50/main.py", tiny_imagenet, "--batch-size=8", "--image-size=32",
                      "--epochs=1", "--max-steps=6", "--save-ckpt-path=%s" % tmp_path, "--workspace=%s" % tmp_path, "--arch=resnet18",
                      "--num-classes=4", "--device=cpu", "--workers=0"], ROOT)
    assert said.count(" ms") >= 3, said


def test_upstreams_exporter(tmp_path):
    """ResNet50/pth2onnx.py writes an ONNX file of what main.py saves."""
    pytest.importorskip("onnx")
    checkpoint.save({"state_dict": resnet.resnet18(1000).state_dict()}, str(tmp_path / "model_best.pth.tar"))
    program = os.path.join(ROOT, "ResNet50", "pth2onnx.py")
    said = ends_well([sys.executable, program, "model_best.pth.tar", "--arch=resnet18", "--image-size=32"], tmp_path)
    assert said.startswith("wrote resnet50_official.onnx") and (tmp_path / "resnet50_official.onnx").stat().st_size > 4e7


def test_figures_of_networks():
    """tools/weights.py networks counts what the table of HRNet's page says; a name of none is one line and status 2."""
    command = [sys.executable, "tools/weights.py", "networks", "hrnet_w18_small_v1"]
    figures = ends_well(command, ROOT).splitlines()[-1].partition("| 224 | ")[2]
    assert re.search(r"[\d,]{9} \|", figures) and "| w18_small_v1 | %s" % figures in read("HRNet/README.md")
    assert_bad_input(subprocess.run(command + ["alexnet"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, cwd=ROOT,
                                    env=environment()), "unknown network alexnet")


def test_hooks_are_installed(tmp_path):
    """`pre-commit install` takes the configuration of this repository."""
    pytest.importorskip("pre_commit")
    shutil.copy(os.path.join(ROOT, ".pre-commit-config.yaml"), str(tmp_path))
    ends_well(["git", "init", "--quiet"], tmp_path)
    ends_well([sys.executable, "-m", "pre_commit", "install"], tmp_path, PRE_COMMIT_HOME=str(tmp_path / "home"))
    assert "pre-commit" in (tmp_path / ".git" / "hooks" / "pre-commit").read_text()

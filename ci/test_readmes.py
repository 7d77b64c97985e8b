"""The pages: links lead somewhere, and a Chinese page says what the English one says. (Commands: test_documents.py.)"""
import collections
import glob
import os
import re
import subprocess

import pytest

from conftest import MODELS, ROOT, environment
from test_documents import MARK, read

ENGLISH = ["README.md"] + [model + "/README.md" for model in MODELS] + sorted(
    os.path.relpath(path, ROOT) for pages in (("docs", "*.md"), ("docs", "*", "README.md"), ("deploy", "*", "README.md"))
    for path in glob.glob(os.path.join(ROOT, *pages)) if ".zh-CN." not in path)
# What users of the vendor's model zoo look for in a model's page.
SECTIONS = ["概述", "准备训练环境", "准备数据集", "开始训练", "模型训练脚本参数说明", "训练结果展示", "版本说明", "FAQ"]
FENCE = re.compile(r"^```[a-z]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")

Section = collections.namedtuple("Section", "level title prose tables")


def in_chinese(page):
    """Return the name of the page's Chinese twin."""
    return page[:-len(".md")] + ".zh-CN.md"


def sections(page):
    """Return the page's Sections in order: `prose` without code blocks and tables, each table as a list of rows of cells."""
    text = FENCE.sub("", read(page))
    places = [match.start() for match in HEADING.finditer(text)] + [len(text)]
    return [section(text[start:end]) for start, end in zip(places, places[1:])]


def section(text):
    """Return one Section: a heading's line and what is under it."""
    marks, title = HEADING.match(text).groups()
    body = text.split("\n", 1)[1]
    tables = [[re.split(r"(?<!\\)\|", row)[1:-1] for row in table.strip().splitlines()]
              for table in re.findall(r"(?:^\|.*\n)+", body + "\n", re.MULTILINE)]
    return Section(len(marks), title, re.sub(r"^\|.*$", "", body, flags=re.MULTILINE), tables)


def facts(text):
    """Return what has no language: code, numbers of two digits or more, targets of links without the mark of the language."""
    code = re.findall(r"`([^`]+)`", text)
    text = re.sub(r"`[^`]+`", " ", text)
    links = [target.split("#")[0].replace(".zh-CN.", ".") for target in LINK.findall(text)]
    numbers = re.findall(r"\d+(?:[.,]\d+)+|\d{2,}", LINK.sub(" ", text))
    return set(code) | set(links) | {number.replace(",", "") for number in numbers}


def anchors(page):
    """Return the anchors that a forge makes of the page's headings."""
    return {re.sub(r"[^\w\- ]", "", part.title.lower()).strip().replace(" ", "-") for part in sections(page)}


@pytest.mark.parametrize("page", ENGLISH + [in_chinese(page) for page in ENGLISH])
def test_links_of_a_page_lead_somewhere(page):
    """Relative links, their anchors and the tools that a page names are there."""
    text, here = read(page), os.path.dirname(page)
    targets = [(target, (here,)) for target in LINK.findall(text) if not re.match(r"https?:", target)]
    targets += [(tool, (here, "")) for tool in re.findall(r"`(tools/\w+\.(?:py|sh))", text)]
    for target, folders in targets:
        path, _, anchor = target.partition("#")
        places = [os.path.normpath(os.path.join(folder, path)) if path else page for folder in folders]
        found = [place for place in places if os.path.exists(os.path.join(ROOT, place))]
        assert found, target
        assert not anchor or anchor in anchors(found[0]), target


def test_every_script_is_shown():
    """No script of a model is missing from its page."""
    for model in MODELS:
        text = read(model + "/README.md")
        for script in glob.glob(os.path.join(ROOT, model, "test", "*_*.sh")):
            assert os.path.basename(script) in text, script


def test_each_model_says_where_it_has_run():
    """A model's page says what has run on which device, and leads to the machines and certificates."""
    for model in MODELS:
        text = [part.prose for part in sections(model + "/README.md") if "../README.md#what-has-run-where" in part.prose]
        assert len(text) == 1 and all(re.search(r"\b%ss?\b" % device, text[0]) for device in ("CPU", "simulated NPU", "GPU", "no NPU")), model


@pytest.mark.parametrize("page", ENGLISH)
def test_a_chinese_page_says_what_the_english_says(page):
    """The two have the same headings, commands, comments and tables, and in each section, in each row of a table, the same options, file
    names, numbers and links: whoever changes one page has to change the other."""
    english, chinese = sections(page), sections(in_chinese(page))
    pairs = list(zip(english, chinese))
    assert [[(one.level, one.title), (other.level, other.title)] for one, other in pairs if one.level != other.level] == []
    assert len(english) == len(chinese)
    assert bare_blocks(page) == bare_blocks(in_chinese(page))
    assert MARK.findall(read(page)) == MARK.findall(read(in_chinese(page)))
    for one, other in pairs:
        assert facts(one.prose) ^ facts(other.prose) == set(), one.title
        shapes = [[[len(row) for row in table] for table in part.tables] for part in (one, other)]
        assert shapes[0] == shapes[1], one.title
        for row, translated in zip(sum(one.tables, []), sum(other.tables, [])):
            assert [facts(cell) for cell in row] == [facts(cell) for cell in translated], one.title


def bare_blocks(page):
    """Return the page's code blocks without comments."""
    return [re.sub(r"\s+#.*", "", block) for block in FENCE.findall(read(page))]


@pytest.mark.parametrize("page", ENGLISH)
def test_a_reader_finds_the_page_in_the_other_language(page):
    """Each page leads to its twin, and whoever reads Chinese is led to Chinese pages."""
    below, name = os.path.split(page)
    assert os.path.basename(in_chinese(page)) in LINK.findall(read(page))
    targets = [target.split("#")[0] for target in LINK.findall(read(in_chinese(page)))]
    assert name in targets
    twins = [target for target in targets if target != name and os.path.exists(os.path.join(ROOT, below, in_chinese(target)))]
    assert twins == []


def test_a_heading_has_one_translation():
    """The same section has the same name on every page, and a model's page has those that users of the vendor's pages look for."""
    names = collections.defaultdict(set)
    for page in ENGLISH:
        for one, other in zip(sections(page)[1:], sections(in_chinese(page))[1:]):
            names[one.title].add(other.title)
    assert {title: found for title, found in names.items() if len(found) > 1} == {}
    for model in MODELS:
        assert set(SECTIONS) <= {part.title for part in sections(model + "/README.zh-CN.md")}, model


# --- docs/migration.md ------------------------------------------------------------------------------------------------

def accepted(program, env):
    """Return the flags that a program's or a script's --help names, with underscores."""
    run = ["bash" if program.endswith(".sh") else "python", os.path.join(ROOT, program), "--help"]
    done = subprocess.run(run, stdout=subprocess.PIPE, universal_newlines=True, env=env, check=True)
    return set(flag.replace("-", "_") for flag in re.findall(r"(--?\w[\w-]*)", done.stdout))


def programs_in(text):
    """Return the programs and scripts of this repository that a text names, as code."""
    words = [code.split(" ")[0] for code in re.findall(r"`([^`]+)`", text)]
    return sorted(set(word for word in words if re.search(r"\.(py|sh)$", word) and os.path.isfile(os.path.join(ROOT, word))))


def rows_of_migration():
    """Yield (section, cells) of each row whose column `Here` says what to write instead."""
    for part in sections("docs/migration.md"):
        for table in part.tables:
            if [cell.strip() for cell in table[0]][1] == "Here":
                for row in table[2:]:
                    yield part, [cell.strip() for cell in row]


def test_what_migration_names_exists(forks):
    """The flags in the column `Here` are taken by the program that the row, or the section, is about; without one, by some script.
    The keys of configurations are in one of the trees."""
    scripts = [os.path.relpath(path, ROOT) for path in glob.glob(os.path.join(ROOT, "*", "test", "*_*.sh"))]
    flags = {program: accepted(program, environment(PATH=forks)) for program in scripts + programs_in(FENCE.sub("", read("docs/migration.md")))}
    of_scripts = set().union(*(flags[script] for script in scripts))
    trees = read("EfficientNet-B3/pycls/core/config.py") + read("HRNet/lib/config/default.py")
    seen = 0
    for part, row in rows_of_migration():
        programs = programs_in(row[1]) or programs_in(part.prose)
        known = set().union(*(flags[program] for program in programs)) if programs else of_scripts
        for code in re.findall(r"`([^`]+)`", row[1]):
            named = [flag.replace("-", "_") for flag in re.findall(r"(?:^| )(--[\w-]+)", code)]
            assert set(named) <= known, (part.title, row[1])
            assert not re.match(r"[A-Z]+\.[A-Z_]+$", code) or "_C.%s =" % code in trees, code
            seen += len(named)
    assert seen > 100

"""The table that version_matrix.sh ends with: a row for each model and kind of check, a column for each version of PyTorch.

Reads the folder of results: for each version the JUnit files of its tests, `environment` (what was installed) and, where there
are no figures, `state` (why). The exit status is 1 when a test has failed, or a check that every version needs was not made.
"""
import argparse
import glob
import os
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import OrderedDict, namedtuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# By the word that the names of a model's test files have for it. (As in conftest.py, but this program has to run without pytest.)
MODELS = OrderedDict((path.split(os.sep)[-3].lower().split("-")[0], path.split(os.sep)[-3])
                     for path in sorted(glob.glob(os.path.join(glob.escape(ROOT), "*/test/train_full_1p.sh")), reverse=True))
KINDS = ("golden", "unit", "requirements", "PyTorch stays", "1 device", "2 ranks", "Ascend stand-in", "checkpoints", "scripts")
# Kinds that every model must have passed on every version, none of their tests skipped (but of the golden ones); checkpoints from
# each other version. On 2.x the models run on the simulated NPU instead of the stand-ins.
NEEDED = ("golden", "requirements", "1 device", "2 ranks", "checkpoints")
NEEDED_ON = {"1.5": NEEDED + ("Ascend stand-in",), "1.8": NEEDED + ("Ascend stand-in",),
             "2.1": NEEDED + ("Ascend stand-in", "PyTorch stays"), "2.x": NEEDED}
VERSIONS = tuple(NEEDED_ON)
KIND_OF_TEST = {"test_requirements": "requirements", "test_one_device": "1 device", "test_two_ranks": "2 ranks",
                "test_as_ascend": "Ascend stand-in", "test_exchange": "checkpoints", "test_torch_stays": "PyTorch stays"}

Case = namedtuple("Case", "row name outcome")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", help="the folder")
    parser.add_argument("--allow-missing", action="store_true", help="a Python that is not on this machine is fine")
    args = parser.parse_args()
    states = OrderedDict((version, state(args.results, version)) for version in VERSIONS)
    cases = dict((version, read_cases(os.path.join(args.results, version))) for version in VERSIONS)
    print(table(states, cases))
    found = problems(states, cases, args.allow_missing)
    if found:
        print("\n%s\nThe logs: %s" % ("\n".join(found), os.path.join(args.results, "*", "*.log")))
    sys.exit(1 if found else 0)


def state(results, version):
    """Return why a version has no figures, or None."""
    try:
        with open(os.path.join(results, version, "state")) as stream:
            return stream.read().strip()
    except OSError:
        return None


def read_cases(folder):
    """Return the tests of a version; where two files have the same test, the later one counts."""
    found = OrderedDict()
    for name in ("tests.xml", "trained.xml", "exchange.xml"):
        if os.path.exists(os.path.join(folder, name)):
            for case in ElementTree.parse(os.path.join(folder, name)).getroot().iter("testcase"):
                module, test = case.get("classname").split(".")[-1], case.get("name")
                found[(module, test)] = Case(row_of(module, test), "%s::%s" % (module, test), outcome(case))
    return list(found.values())


def outcome(case):
    tags = [child.tag for child in case]
    return "failed" if "failure" in tags or "error" in tags else "skipped" if "skipped" in tags else "passed"


def row_of(module, test):
    """Return (model, kind) of a test: test_genet_golden is a golden test of GENet."""
    if module in ("test_versions", "test_requirements"):
        kind = KIND_OF_TEST.get(test.split("[")[0])
        model = [model for model in MODELS.values() if kind and re.search(r"\b%s\]$" % re.escape(model), test)]
        return (model[0], kind) if model else ("all", "code")
    words = module.split("_")
    if words[1] in MODELS and words[-1] in ("golden", "unit", "data", "scripts"):
        return MODELS[words[1]], {"data": "unit"}.get(words[-1], words[-1])
    return ("common", "unit") if words[1] == "common" else ("all", "other")


def count(cases, row):
    """Return how many tests of a row have passed, failed and been skipped."""
    return [sum(case.row == row and case.outcome == outcome for case in cases) for outcome in ("passed", "failed", "skipped")]


def table(states, cases):
    rows = [(model, kind) for model in MODELS.values() for kind in KINDS] + [("common", "unit"), ("all", "code"), ("all", "other")]
    lines = [["passed / failed / skipped", ""] + ["PyTorch " + version for version in states]]
    for row in rows:
        counts = [count(cases[version], row) for version in states]
        if any(sum(three) for three in counts):
            lines.append(list(row) + [why or ("%d / %d / %d" % tuple(three) if sum(three) else "-")
                                      for why, three in zip(states.values(), counts)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def problems(states, cases, allow_missing):
    """Return a line for each thing that is not as it has to be."""
    found = []
    for version, why in states.items():
        if why:
            if not (allow_missing and why.startswith("no Python")):
                found.append("PyTorch %s: %s" % (version, why))
            continue
        found += ["PyTorch %s: %s failed" % (version, case.name) for case in cases[version] if case.outcome == "failed"]
        others = sum(not states[other] for other in states) - 1
        for model in MODELS.values():
            for kind in NEEDED_ON[version]:
                passed, failed, skipped = count(cases[version], (model, kind))
                if not failed and (passed < (others if kind == "checkpoints" else 1)
                                   or skipped and kind not in ("golden", "checkpoints")):
                    found.append("PyTorch %s: not proved: %s, %s" % (version, model, kind))
    return found


if __name__ == "__main__":
    main()

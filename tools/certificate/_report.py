"""Stage 6, the report: certificate.json, certificate.md, and the page of the runs."""
import json
import os
import platform
import sys
import time

from benchmarks import _tables
from certificate import _digest, _scripts
from certificate._checks import ROOT, Check, is_simulated, kind
from common import cli, device as devices

FORMAT = 1
STAGES = {1: "Machine", 2: "Numbers", 3: "Long agreement", 4: "Behaviour", 5: "Speed"}
FORMS = {"quick": (1, 2, 3, 4), "full": (1, 2, 3, 4, 5)}  # the stages of each
VERDICTS = {True: "passed", False: "FAILED", None: "means nothing here"}


def certificate(case, checks, seconds, args):
    """Return the certificate as schema.json has it."""
    found = {
        "version": FORMAT, "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "form": "quick" if case.quick else "full",
        "device": identity(case.device), "models": list(case.models),
        "command": ["tools/certify.sh"] + [without_folders(word, case) for word in args],
        "checkout": _digest.checkout(os.environ.get("CERTIFY_COMMIT")),
        "stages": [_stage(number, checks, seconds) for number in sorted(seconds)],
        "checks": [_plain(check, case) for check in checks]}
    found["rows"] = rows(case)
    found["verdict"] = verdict(found)
    found["digest"] = _digest.of(found)
    return found


def verdict(found):
    """Return passed, failed, or incomplete where a stage of this form has not been run."""
    if any(stage["failed"] for stage in found["stages"]):
        return "failed"
    return "passed" if set(FORMS[found["form"]]) <= {stage["number"] for stage in found["stages"]} else "incomplete"


def _stage(number, checks, seconds):
    outcomes = [check.passed for check in checks if check.stage == number]
    return {"number": number, "name": STAGES[number], "passed": outcomes.count(True), "failed": outcomes.count(False),
            "meaningless": outcomes.count(None), "seconds": round(seconds[number], 1)}


def _plain(check, case):
    """Return a check as JSON can hold it: an infinity or a NaN becomes text."""
    found = check._asdict()
    for name in ("figure", "bound"):
        value = found[name]
        if hasattr(value, "item"):
            value = value.item()
        finite = not isinstance(value, float) or value - value == 0
        found[name] = value if isinstance(value, (int, float)) and finite else str(value)
    found["passed"] = None if check.passed is None else bool(check.passed)
    return {name: without_folders(value, case) if isinstance(value, str) else value for name, value in found.items()}


def without_folders(text, case):
    """Return a text without the folders of this machine: what is in them is named from the repository, OUT, DATA or PYTHON."""
    for folder, name in ((case.output_path, "OUT"), (case.data_path, "DATA"), (ROOT, ""), (sys.prefix, "PYTHON")):
        if folder:
            text = text.replace(folder + os.sep, name and name + os.sep).replace(folder, name or ".")
    return text


def identity(device):
    """Return what identifies the software and the hardware of a device."""
    import torch
    type_ = device.partition(":")[0]
    packages = {name: str(getattr(sys.modules[name], "__version__", ""))
                for name in ("torch_npu", "torchvision", "numpy", "PIL", "apex") if name in sys.modules}
    return {"kind": kind(device), "name": _tables.device_name(type_), "simulated": is_simulated(device),
            "count": devices.count(type_), "torch": torch.__version__, "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
            "python": platform.python_version(), "system": platform.platform(), "cpus": len(os.sched_getaffinity(0)),
            "packages": packages}


# --- files ------------------------------------------------------------------------------------------------------------

def run_folders(case):
    """Return the output paths of the runs that the report shows: of each model the device's first seed, and a performance run."""
    names = ["agreement/%s-%s-1" % (model, case.device.replace(":", "")) for model in case.models]
    names += ["speed/%s-made-up-data" % model for model in case.models]
    found = [os.path.join(case.output_path, name) for name in names]
    return [path for path in found if os.path.exists(os.path.join(path, "report.json"))]


def rows(case):
    """Return the rows of the models' result tables of the runs."""
    from runs import _runs
    return [_runs.row(run) for run in _runs.read(run_folders(case))] if run_folders(case) else []


def write(case, found):
    """Write the files of a certificate; return their paths, and why there is no page."""
    paths = [os.path.join(case.output_path, name) for name in ("certificate.json", "certificate.md")]
    for path, text in zip(paths, (json.dumps(found, indent=1, sort_keys=True) + "\n", markdown(found))):
        with cli.new_file(path + ".part") as stream:
            stream.write(text.encode())
        os.replace(path + ".part", path)
    folders, page = run_folders(case), os.path.join(case.output_path, "runs.html")
    if not folders:
        return paths, "no runs to show"
    problem = _scripts.tool("runs.py", "page", "--out", page, *folders)
    return paths + [page] * (not problem), problem


def markdown(found):
    """Return a certificate as a page of Markdown."""
    device, checkout = found["device"], found["checkout"]
    lines = ["# Certificate: %s, %s" % (device["name"], found["verdict"]), "",
             "Made %s, %s form, of %s." % (found["made"], found["form"], ", ".join(found["models"])), ""]
    if device["simulated"]:
        lines += ["The NPU is simulated (ci/npu_sim): arithmetic and speed are the host's and are no statement on a real NPU.", ""]
    lines += _table(("Stage", "Passed", "Failed", "Mean nothing here", "Seconds"), [
        ("%d %s" % (stage["number"], stage["name"]), stage["passed"], stage["failed"], stage["meaningless"], stage["seconds"])
        for stage in found["stages"]])
    facts = [(name, value) for name, value in sorted(device.items()) if value not in (None, {})]
    lines += ["## What was certified", ""] + _table(("", ""), facts + [
        ("commit", "%s%s" % (checkout["commit"], "" if checkout["clean"] is not False else ", with changes")),
        ("files", "%d, sha256 %s" % (checkout["files"], checkout["sha256"])), ("digest", found["digest"]),
        ("command", " ".join(found["command"]))])
    if found["rows"]:
        lines += ["## Rows", ""] + _table(list(found["rows"][0]), [map(_shown, row.values()) for row in found["rows"]])
    failed = [check for check in found["checks"] if check["passed"] is False]
    if failed:
        lines += ["## What failed", ""] + _checks(failed)
    for stage in found["stages"]:
        lines += ["## Stage %d: %s" % (stage["number"], stage["name"]), ""] + _checks(
            [check for check in found["checks"] if check["stage"] == stage["number"]])
    return "\n".join(lines).rstrip() + "\n"


def _checks(checks):
    return _table(("Model", "Check", "Figure", "Bound", "From", "Verdict", "Note"), [
        [check["model"], check["what"], _shown(check["figure"]), _shown(check["bound"]), check["source"], VERDICTS[check["passed"]],
         check["note"]] for check in checks])


def _shown(value):
    return "-" if value is None else "%.6g" % value if isinstance(value, float) else str(value)


def _table(head, rows):
    lines = [list(head), ["---"] * len(head)] + [list(row) for row in rows]
    return ["| %s |" % " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) for line in lines] + [""]


def line(check):
    """Return a check as a line on a terminal."""
    model = check.model + ": " if check.model else ""
    bound = "" if check.passed is None else "  %s (bound %s: %s)" % (_shown(check.figure), _shown(check.bound), check.source)
    note = "  [%s]" % check.note if check.note and check.passed is not True else ""
    return "  %-18s %s%s%s%s" % (VERDICTS[check.passed], model, check.what, bound, note)


def read(path):
    """Return the certificate in a file. Raises UserError for what is none."""
    try:
        with open(path, encoding="utf-8") as stream:
            found = json.load(stream)
        if found["version"] != FORMAT or not isinstance(found["checkout"]["sha256"], str) or not isinstance(found["checks"], list):
            raise ValueError("version %s, not %d" % (found["version"], FORMAT))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise cli.UserError("%s is no certificate that this program reads (%s)" % (path, getattr(error, "strerror", None) or error))
    return found


def checks_of(found, stages):
    """Return the checks of a certificate that are not of `stages`, and the seconds of their stages."""
    kept = [Check(**check) for check in found["checks"] if check["stage"] not in stages]
    return kept, {stage["number"]: stage["seconds"] for stage in found["stages"] if stage["number"] not in stages}

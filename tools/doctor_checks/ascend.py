"""torch_npu, CANN, driver and firmware, and the NPUs."""
import os
import re

from doctor_checks.compatibility import base, driver, lists, order, own_cann, plugins, pythons
from doctor_checks.machine import ABSENT, FULL, OK, WARNING, WRONG, Row, brief, installed_version
from doctor_checks.software import remedy

NODES = ("/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc")
# npu-smi info: "| 0 910B3 | OK | 95.0 ... |" and "| 0 | 0000:C1:00.0 | 0  0 / 0  3338 / 65536 |"; tensors are in the last pair.
CHIP = re.compile(r"^\|\s*\d+\s+(\S+)\s*\|\s*([A-Za-z]+)\s*\|.*\n.*?(\d+)\s*/\s*(\d+)\s*\|\s*$", re.MULTILINE)


def rows(machine):
    """Yield the rows, or one where nothing of Ascend is there."""
    cann, info = find_cann(machine), machine.keys("/usr/local/Ascend/driver/version.info")
    if not (machine.glob("/dev/davinci*") or cann or info or installed_version("torch_npu")):
        wanted = machine.device == "npu"
        yield Row(WRONG if wanted else ABSENT, "NPU", "no Ascend software and no /dev/davinci* here",
                  "a machine with NPUs, a container started with them, or --device=cpu" if wanted else "")
        return
    known = _cann(machine, cann)
    yield _plugin(machine, cann, known.status != WRONG)
    yield known
    yield _driver(machine, cann, info)
    yield _devices(machine, known.status != WRONG)


def find_cann(machine):
    """Return the keys of CANN's install.info (version, innerversion, compatible_version) and its home, {} where there is none:
    the CANN of the environment, else of the usual folders."""
    homes = [machine.environ.get(name) for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")]
    homes += [os.path.join(folder, name) for folder in ("/usr/local/Ascend", os.path.expanduser("~/Ascend"))
              for name in ("cann", "ascend-toolkit/latest", "nnae/latest")]
    for home in filter(None, homes):
        for path in machine.glob(home + "/ascend_*_install.info") + machine.glob(home + "/*-linux/ascend_*_install.info"):
            if "version" in machine.keys(path):
                return dict(machine.keys(path), home=home)
    return {}


def _plugin(machine, cann, loads):
    torch, version = machine.probe("torch").get("version", ""), installed_version("torch_npu")
    fitting, published = plugins(torch, cann.get("version", "")), pythons(torch)
    advised = "pip install torch-npu==%s" % fitting[0].version if fitting else "PyTorch " + " or ".join(
        list(dict.fromkeys(row.torch for row in plugins("", cann.get("version", ""))))[:3])
    if version and torch and base(version) != base(torch):
        return Row(WRONG, "torch_npu", "%s is for PyTorch %s, here is %s" % (version, base(version), torch),
                   "pip install torch==%s%s" % (base(version), ", or " + advised if fitting else ""))
    if not torch or "error" in machine.probe("torch"):
        return Row(ABSENT, "torch_npu", (version or "not installed") + ": PyTorch first")
    facts = machine.probe("torch_npu") if loads or not version else {"version": version}
    if not facts and published and machine.python not in published:
        return Row(WRONG, "torch_npu", "there is none for PyTorch %s with Python %s" % (base(torch), machine.python),
                   "Python " + " or ".join(published))
    if not facts:
        return Row(WRONG, "torch_npu", "not installed", advised)
    if "error" in facts:
        own = own_cann(version, cann.get("version", ""))
        return Row(WRONG, "torch_npu", "%s does not load: %s" % (facts["version"], brief(facts["error"], 66)), remedy(
            facts["error"], "CANN " + " or ".join(own) if own else "pip install --force-reinstall torch-npu==" + version))
    return Row(OK if loads else ABSENT, "torch_npu", (version or "built in") + ("" if loads else ", not loaded: CANN first"))


def _cann(machine, cann):
    plugin = installed_version("torch_npu")
    if not cann:
        return Row(WRONG, "CANN", "not in ASCEND_HOME_PATH, /usr/local/Ascend or ~/Ascend",
                   "install toolkit and kernels of CANN " + (" or ".join(own_cann(plugin)) or "for the torch_npu to use"))
    folders = [folder for folder in machine.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    missing = [name for name in ("ASCEND_HOME_PATH", "ASCEND_OPP_PATH") if not machine.environ.get(name)]
    if not any(machine.glob(folder + "/libascendcl.so") for folder in folders):
        missing.append("libascendcl.so in LD_LIBRARY_PATH")
    if missing:
        scripts = machine.glob(cann["home"] + "/set_env.sh") + machine.glob(os.path.dirname(cann["home"]) + "/set_env.sh")
        return Row(WRONG, "CANN", "%s is not set up in this shell: no %s" % (cann["version"], missing[0]),
                   "source " + (scripts + ["CANN's set_env.sh"])[0])
    own = own_cann(plugin, cann["version"])
    if own:
        fitting = [row.version for row in plugins(plugin, cann["version"]) if order(row.cann) == order(cann["version"])]
        return Row(WARNING, "CANN", "%s is not in the vendor's list for torch_npu %s" % (cann["version"], plugin),
                   " or ".join(["CANN " + " or ".join(own)] + ["pip install torch-npu==" + name for name in fitting[:1]]))
    return Row(OK, "CANN", "%s in %s" % (cann["version"], cann["home"]))


def _driver(machine, cann, info):
    version, inner = info.get("package_version", info.get("version")), info.get("innerversion")
    if not version:
        return Row(WRONG, "NPU driver", "no /usr/local/Ascend/driver/version.info",
                   "install driver and firmware (Ascend HDK); in a container mount /usr/local/Ascend/driver")
    own, oldest = driver(cann.get("version", ""))
    if inner and cann.get("compatible_version"):  # the later of the two lists what it runs with; CANN until 8.3
        fits = lists(cann["compatible_version"], inner) or lists(info.get("compatible_version", ""), cann.get("innerversion", ""))
    else:
        fits = not oldest or order(version) >= order(oldest)
    if not fits:
        return Row(WRONG, "NPU driver", "%s does not run with CANN %s" % (version, cann["version"]),
                   "driver and firmware %s, or the CANN of this driver" % (own or "that CANN's release notes name"))
    firmware = machine.keys("/usr/local/Ascend/firmware/version.info").get("version", "")
    ends = re.findall(r"\d+\.\d+\.\d+", info.get("compatible_version_fw", ""))
    if firmware and len(ends) == 2 and not order(ends[0]) <= order(firmware) <= order(ends[1]):
        return Row(WRONG, "NPU driver", "%s does not run with firmware %s" % (version, firmware),
                   "firmware %s to %s, that of the driver's Ascend HDK; then restart" % tuple(ends))
    return Row(OK, "NPU driver", version + (", firmware " + firmware if firmware else ""))


def _devices(machine, loads):
    nodes, value = machine.glob("/dev/davinci[0-9]*"), machine.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    lacking = ([] if nodes else ["/dev/davinci<number>"]) + [node for node in NODES if not machine.glob(node)]
    if lacking:
        return Row(WRONG, "NPUs", "no " + ", ".join(lacking),
                   "docker run --device=... for each NPU and for " + " ".join(NODES))
    if not all(os.access(machine.at(node), os.R_OK | os.W_OK) for node in nodes + list(NODES)):
        return Row(WRONG, "NPUs", "this user may not open /dev/davinci*", "usermod -aG HwHiAiUser <user>, then log in again")
    visible, fault = visible_npus(value, len(nodes))
    if fault:
        return Row(WRONG, "NPUs", "ASCEND_RT_VISIBLE_DEVICES=%s: %s" % (value, fault),
                   "numbers from 0 to %d in ascending order, commas, no spaces; or unset it" % (len(nodes) - 1))
    status, text = machine.run("npu-smi", "info")
    if status:  # None: a container often has no npu-smi
        return Row(WRONG, "NPUs", "npu-smi info: " + brief(next((line for line in text.splitlines() if "dcmi" in line), text)),
                   "end the other container that has the NPUs, mount the driver's files, or restart the machine")
    chips = CHIP.findall(text.partition("Process id")[0])
    for number, (name, health, used, total) in enumerate(chips):
        if health != "OK":
            return Row(WRONG, "NPUs", "NPU %d (%s) is in state %s" % (number, name, health),
                       "npu-smi info -t health says why; or take other NPUs")
        if int(used) > FULL * int(total):
            return Row(WARNING, "NPUs", "NPU %d has %s of %s MB in use" % (number, used, total),
                       "end the processes that npu-smi info lists, or take other NPUs")
    count = machine.probe("torch_npu").get("count", len(visible)) if loads else len(visible)
    if count != len(visible):
        return Row(WRONG, "NPUs", "torch_npu sees %d, but %d are there" % (count, len(visible)), "~/ascend/log says why")
    return Row(OK, "NPUs", "%d of %d visible%s" % (len(visible), len(nodes), ", %s, %s MB" % chips[0][::3] if chips else ""))


def visible_npus(value, present):
    """Return (the numbers in ASCEND_RT_VISIBLE_DEVICES, what is wrong with them or ""), for so many NPUs."""
    words = value.split(",") if value is not None else [str(number) for number in range(present)]
    numbers = [int(word) for word in words if re.match(r"\d+$", word)]
    if value is not None and not value.strip():
        return [], "no NPU is visible"
    if len(numbers) != len(words):
        return numbers, "it is read up to the first character that is no digit or comma"
    if numbers != sorted(set(numbers)):
        return numbers, "not in ascending order"
    return numbers, "there is no NPU %d" % numbers[-1] if numbers[-1] >= present else ""

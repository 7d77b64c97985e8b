"""Which versions of torch_npu, PyTorch, CANN, Python and the driver fit: what compatibility.txt says."""
import collections
import os
import re

Plugin = collections.namedtuple("Plugin", "version torch cann release")
PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "compatibility.txt")


def table(kind):
    """Return the lines of a kind, each a list of words, in the file's order."""
    with open(PATH, encoding="utf-8") as stream:
        lines = [line.partition("#")[0].split() for line in stream]
    return [words[1:] for words in lines if words[:1] == [kind]]


def order(version):
    """Return what versions of CANN and of drivers are sorted by: RC3 before 0; a community's suffix (.beta1) does not count."""
    found = re.match(r"(\d+)\.(\d+)\.(RC|T)?(\d+)", version, re.IGNORECASE)
    return (int(found.group(1)), int(found.group(2)), not found.group(3), int(found.group(4))) if found else ()


def base(version):
    """Return the three numbers that a plug-in and its PyTorch have in common: "2.1.0" of 2.1.0.post10 and of 2.1.0+cpu."""
    return "".join(re.findall(r"^\d+\.\d+\.\d+", version))


def plugins(torch, cann=""):
    """Return the Plugins for a version of PyTorch ("": any): those for a version of CANN where there are any, newest first."""
    rows = [row for row in (Plugin(*words) for words in table("plugin")) if base(torch) in ("", row.torch)]
    return [row for row in rows if order(row.cann) == order(cann)] or rows


def pythons(torch):
    """Return the versions of Python that the plug-in for a version of PyTorch is published for, [] where that is not known."""
    return next((words[1:] for words in table("python") if words[0] == base(torch)), [])


def own_cann(plugin, cann=""):
    """Return the versions of CANN that a plug-in was made for, [] where that is not known or it runs on `cann` as well: one of
    the same name that is as new (8.3.RC2 for 8.3.RC1), or one that the plug-in's release lists."""
    name = re.sub(r"\.?rc", ".rc", plugin.partition("+")[0])
    rows, here = [row for row in plugins(plugin) if row.version == name], order(cann)
    for row in rows:
        listed = [[order(word) for word in words] for words in table("range")]
        if here and (order(row.cann) <= here and order(row.cann)[:2] == here[:2] or any(
                first <= order(row.release) <= last and low <= here <= high for first, last, low, high in listed)):
            return []
    return [row.cann for row in rows]


def driver(cann):
    """Return (the driver of a version of CANN, the oldest that it runs with), "" for what is not known."""
    for name, own, oldest in table("driver"):
        if order(name) == order(cann) or order(name)[:2] == order(cann)[:2] and order(cann) >= (8, 5):
            return own, oldest.strip("?")
    return "", ""


def lists(compatible, inner):
    """Return whether "[V100R001C15],[V100R001C18,V100R001C21]", versions and ranges, has the version "V100R001C20SPC001"."""
    def numbers(text):
        return [int(number) for number in re.findall(r"[VRC](\d+)", text.partition("SPC")[0])]
    ranges = [[numbers(end) for end in part.split(",")] for part in re.findall(r"\[([^\]]+)\]", compatible)]
    return any(ends[0] <= numbers(inner) <= ends[-1] for ends in ranges)

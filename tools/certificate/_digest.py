"""The digest of a certificate: over the files of the checkout that can change a result, and over what the certificate says."""
import hashlib
import json
import os

from checkout import git
from certificate._checks import ROOT, models

ROOMS = ("common", "tools", "ci", "deploy")  # and the models
_ENDS = (".py", ".sh", ".yaml", ".json", ".txt", ".toml", ".cpp", ".h", ".html", ".xml")
_LEFT_OUT = ("__pycache__", "output", "build")


def files():
    """Return the paths that count, in order: sources, settings and golden numbers; no documents, no output."""
    found = []
    for room in ROOMS + tuple(models()):
        for below, folders, names in os.walk(os.path.join(ROOT, room)):
            folders[:] = [name for name in folders if name not in _LEFT_OUT and name[0] != "." and not name.endswith("-info")]
            found += [os.path.relpath(os.path.join(below, name), ROOT) for name in names if name.endswith(_ENDS)]
    return sorted(found)


def checkout(commit=None):
    """Return what identifies this checkout: commit (None without git), whether it is clean, number and digest of its files."""
    digest = hashlib.sha256()
    paths = files()
    for path in paths:
        with open(os.path.join(ROOT, path), "rb") as stream:
            digest.update(("%s\0%s\n" % (path, hashlib.sha256(stream.read()).hexdigest())).encode())
    commit = commit or git(ROOT, "rev-parse", "HEAD")
    status = git(ROOT, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "clean": None if status is None else not status, "files": len(paths), "sha256": digest.hexdigest()}


def of(certificate):
    """Return the digest of a certificate: of all that it says but the digest."""
    said = {key: value for key, value in certificate.items() if key != "digest"}
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def problems(certificate):
    """Return in lines why this certificate is none of this checkout, [] where it is one."""
    found = [] if of(certificate) == certificate.get("digest") else ["it has been changed since it was made: its digest is another"]
    here, there = checkout(), certificate["checkout"]
    if here["sha256"] != there["sha256"]:
        found.append("this checkout is another: its %d files have the digest %.12s, the certified %d files (commit %.12s) %.12s" % (
            here["files"], here["sha256"], there["files"], there["commit"] or "unknown", there["sha256"]))
    return found

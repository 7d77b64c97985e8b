"""A checkout of upstream: is it the right one, its modules, and the record of what of it was used."""
import contextlib
import hashlib
import importlib
import os
import platform
import sys
from collections import namedtuple

import numpy
import PIL
import torch

from checkout import git
from common import cli

# Where upstream is. repository: on GitHub, commit: of the port, mark: a file by which a checkout is known, paths: the folders of the
# checkout that its own programs have on sys.path.
Source = namedtuple("Source", "repository commit mark paths")


class Upstream(object):
    """Upstream's code in `folder`; `open` makes it importable.

    Raises UserError where it is not upstream's checkout, and, unless `any_commit`, where it is not at `source.commit` or has changed
    files.
    """

    def __init__(self, folder, source, any_commit=False):
        self._folder, self._source = os.path.realpath(folder), source
        if not os.path.isfile(os.path.join(self._folder, source.mark)):
            raise cli.UserError("--upstream=%s is not a checkout of %s: there is no %s" % (folder, source.repository, source.mark))
        self.commit = git(self._folder, "rev-parse", "HEAD")
        self.is_changed = bool(git(self._folder, "status", "--porcelain", "--untracked-files=no"))
        if (self.commit != source.commit or self.is_changed) and not any_commit:
            found = (self.commit or "not in git") + (" with changed files" if self.is_changed else "")
            raise cli.UserError("--upstream=%s is %s, the port is of commit %s: check that out, or say --any-commit" % (
                folder, found, source.commit))
        self._read, self._stand_ins = set(), {}

    def open(self):
        """Put the code on sys.path, for the rest of this process; return self."""
        sys.path[:0] = [os.path.join(self._folder, path) for path in self._source.paths]
        sys.dont_write_bytecode = True  # the checkout stays as it is
        torch.set_num_threads(1)  # sums in one order
        return self

    def __str__(self):
        return "%s at %s" % (self._source.repository, self.commit or "no commit")

    def take(self, module, *names):
        """Import a module of upstream's; return it, or, with names, what it calls so. Raises UserError where one is missing."""
        try:
            found = importlib.import_module(module)
        except Exception as error:  # whatever another PyTorch may make of it
            raise cli.UserError("upstream's %s does not import: %s" % (module, " ".join(str(error).split()) or type(error).__name__))
        lacking = [name for name in names if not hasattr(found, name)]
        if lacking:
            raise cli.UserError("upstream's %s has no %s: is this commit the port's?" % (module, ", ".join(lacking)))
        values = [getattr(found, name) for name in names]
        return found if not names else values[0] if len(names) == 1 else values

    def file(self, path):
        """Return where a file of the checkout is, and note that it was used. Raises UserError where it is missing."""
        if not os.path.isfile(os.path.join(self._folder, path)):
            raise cli.UserError("upstream has no %s: is this commit the port's?" % path)
        self._read.add(path)
        return os.path.join(self._folder, path)

    def stand_in(self, what, why):
        """Note that something of ours stands where upstream's own does not work here."""
        self._stand_ins[what] = why

    def without_module(self, name, why, **contents):
        """Let an empty module, with `contents`, stand for one that upstream imports and that is not installed."""
        try:
            importlib.import_module(name)
        except ImportError:
            module = sys.modules[name] = type(sys)(name)
            vars(module).update(contents)
            self.stand_in(name, why)

    @contextlib.contextmanager
    def older_view(self):
        """In here, Tensor.view takes a tensor that does not lie in one piece, as a top-k's columns did before PyTorch 1.7."""
        original = torch.Tensor.view
        self.stand_in("torch.Tensor.view", "reshape, in upstream's accuracy: columns of a top-k no longer lie in one piece")
        torch.Tensor.view = torch.Tensor.reshape
        try:
            yield
        finally:
            torch.Tensor.view = original

    def origin(self):
        """Return the record of the golden file: upstream, its files with their digests, stand-ins, versions."""
        return {"program": "tools/make_golden.py", "repository": self._source.repository, "commit": self.commit,
                "changed_files": self.is_changed, "commit_of_the_port": self._source.commit, "versions": _versions(),
                "sources": {path: _digest(os.path.join(self._folder, path)) for path in sorted(self._used())},
                "stand_ins": dict(self._stand_ins)}

    def _used(self):
        files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
        inside = [os.path.relpath(os.path.realpath(file), self._folder) for file in files if file]
        return self._read | {path for path in inside if not path.startswith(os.pardir)}

    def versions(self, form):
        """Return those keys of a golden file that say with what it was made, with what it is made now."""
        versions, found = _versions(), {}
        if isinstance(form.get("made_with"), dict):
            found["made_with"] = {key: versions.get(key) for key in form["made_with"]}
        if "torch" in form:
            found["torch"] = versions["torch"]
        if "commit" in form.get("upstream", ()):
            found["upstream"] = dict(form["upstream"], commit=self.commit)
        return found


def _versions():
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__, "pillow": PIL.__version__}
    for key, name in (("torchvision", "torchvision"), ("opencv", "cv2"), ("timm", "timm"), ("yacs", "yacs")):
        if name in sys.modules:
            versions[key] = getattr(sys.modules[name], "__version__", None)
    return versions


def _digest(path):
    with open(path, "rb") as stream:
        return hashlib.sha256(stream.read()).hexdigest()

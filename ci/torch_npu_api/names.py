"""Reads the public names of torch_npu's modules from their sources, without importing them.

Names that only exist at run time are missed, with three exceptions: __all__, the list of custom operators that torch_npu
exports, and what is assigned to attributes of the package (`torch_npu.Format = ...`) in whatever function. What is missed
shows as a failing check, never as a name that is not there passing.
"""

import ast
import json
import os
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGE = "torch_npu"
_CUSTOM_OPERATORS = ("torch_npu.utils.exposed_api", "public_npu_functions")


def load(version):
    """The checked-in names of a version: {module: [names]}; an object such as torch_npu.npu.config counts as a module."""
    with open(json_path(version)) as handle:
        return json.load(handle)


def json_path(version):
    return os.path.join(HERE, "names-%s.json" % version)


def of_wheel(path):
    """The names of the torch_npu in a wheel file."""
    with zipfile.ZipFile(path) as wheel:
        files = [name for name in wheel.namelist() if name.endswith(".py") and name.startswith(PACKAGE + "/")]
        return _Sources({name: wheel.read(name) for name in files}).public_names()


def of_directory(path):
    """The names of the torch_npu whose package directory is `path`."""
    files = {}
    for directory, _, names in os.walk(path):
        for name in names:
            if name.endswith(".py"):
                full = os.path.join(directory, name)
                with open(full, "rb") as handle:
                    files[os.path.relpath(full, os.path.dirname(path)).replace(os.sep, "/")] = handle.read()
    return _Sources(files).public_names()


def literal(node):
    """The value of a constant expression, None where it is none."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return None


class _Sources:
    """The modules of a package. `files` maps paths such as torch_npu/npu/__init__.py to sources, as bytes."""

    def __init__(self, files):
        self.packages = {_module_name(path) for path in files if path.endswith("/__init__.py")}
        self.trees = {_module_name(path): ast.parse(source) for path, source in files.items()}
        self._bound = {}

    def public_names(self):
        result = {}
        for module in self.trees:
            if any(part.startswith("_") for part in module.split(".")):
                continue
            bound = self.bound(module)
            result[module] = sorted(name for name in bound if not name.startswith("_"))
            for name, members in bound.items():
                if members is not None:
                    result[module + "." + name] = sorted(members)
        operators = self._assigned(*_CUSTOM_OPERATORS)
        public = [name for name in {*(operators or ()), *self._attributes_set()} if not name.startswith("_")]
        result[PACKAGE] = sorted(set(result[PACKAGE]).union(public))
        return {module: names for module, names in sorted(result.items()) if names}

    def _attributes_set(self):
        """The names that any module of the package gives it from outside."""
        for tree in self.trees.values():
            for node in ast.walk(tree):
                for target in node.targets if isinstance(node, ast.Assign) else ():
                    if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == PACKAGE:
                        yield target.attr

    def bound(self, module):
        """{name: members} of what a module binds; members is None except for instances of the package's own classes."""
        if module not in self._bound:
            self._bound[module] = names = {}  # first, so that import cycles end
            for statement in _statements(self.trees[module].body):
                names.update(self._bindings(module, statement))
            names.update((name, None) for name in self._assigned(module, "__all__") or () if name not in names)
            children = [other for other in self.trees if other.rpartition(".")[0] == module]
            names.update((child.rpartition(".")[2], None) for child in children)
        return self._bound[module]

    def _bindings(self, module, statement):
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            return {statement.name: None}
        if isinstance(statement, ast.ImportFrom):
            return self._imported(module, statement)
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names = [node.id for target in targets for node in ast.walk(target)
                     if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
            return {name: self._members(module, statement.value) for name in names}
        return {}

    def _imported(self, module, statement):
        origin = self._absolute(module, statement)
        if origin.split(".")[0] != PACKAGE:
            return {}
        source = self.bound(origin) if origin in self.trees else {}
        if statement.names[0].name != "*":
            return {alias.asname or alias.name: source.get(alias.name) for alias in statement.names}
        public = self._assigned(origin, "__all__") if origin in self.trees else ()
        if public is None:
            public = [name for name in source if not name.startswith("_")]
        return {name: source.get(name) for name in public}

    def _absolute(self, module, statement):
        """The module that `from X import ...` names; module "" is the parent of relative imports of one dot."""
        if not statement.level:
            return statement.module
        parts = module.split(".")
        parts = parts[:len(parts) - statement.level + (module in self.packages)]
        return ".".join(parts + ([statement.module] if statement.module else []))

    def _assigned(self, module, name):
        """The literal that a module assigns to `name` at its top level, None where there is none."""
        if module not in self.trees:
            return None
        for statement in self.trees[module].body:
            if isinstance(statement, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in statement.targets):
                return literal(statement.value)
        return None

    def _members(self, module, value):
        """What `name = Class()` or `name = submodule.Class()` offers as name.member; None for any other value."""
        if not isinstance(value, ast.Call):
            return None
        called = value.func
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            module, called = module + "." + called.value.id, ast.Name(called.attr, ast.Load())
        tree = self.trees.get(module)
        if tree is None or not isinstance(called, ast.Name):
            return None
        classes = [s for s in tree.body if isinstance(s, ast.ClassDef) and s.name == called.id]
        return _attributes(classes[0]) if classes else None


def _module_name(path):
    name = path[:-len(".py")].replace("/", ".")
    return name[:-len(".__init__")] if name.endswith(".__init__") else name


def _statements(body):
    """The statements of a module's top level, those inside if, try, with and for included."""
    for statement in body:
        yield statement
        for field in ("body", "orelse", "finalbody", "handlers"):
            nested = getattr(statement, field, None)
            if nested and not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield from _statements(nested)


def _attributes(node):
    """Public attributes of a class: its methods, what it sets on self, and what its __setattr__ tests the name for."""
    found = set()
    for method in node.body:
        if not isinstance(method, ast.FunctionDef):
            continue
        found.add(method.name)
        for inner in ast.walk(method):
            if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
                found.add(inner.attr)
            elif isinstance(inner, ast.Compare) and method.name in ("__setattr__", "__getattr__"):
                found.add(literal(inner.comparators[0]) if isinstance(inner.left, ast.Name) else None)
    return {name for name in found if isinstance(name, str) and not name.startswith("_")}

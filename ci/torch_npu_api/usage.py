"""Finds where Python and shell sources use names of torch_npu (torch.npu is torch_npu.npu), and which of them are guarded.

In Python a use counts as guarded where hasattr(x, "name") has been tested: in the body of an `if`, a conditional
expression, the right of an `and`, or after `if not hasattr(x, "name"):` has left the block. getattr(x, "name", default)
is a guard of its own. A variable, or a local function that returns torch.npu, stands for it; getattr(torch, variable)
does too, because on an NPU it is that. What travels further (an argument, an attribute of an object) is not followed.
"""

import ast
import os
import re

from torch_npu_api.names import literal

_SHELL = re.compile(r"\b(torch_npu|torch\.npu)((?:\.[A-Za-z_]\w*)+)")
_SKIPPED = {"__pycache__", "output", "npu_sim"}  # npu_sim is held to the names in another way
_LEAVING = (ast.Return, ast.Raise, ast.Continue, ast.Break)


def of_tree(root):
    """[(path, line, dotted name)] of every unguarded use in the .py and .sh files under `root`."""
    found = []
    for directory, subdirectories, files in os.walk(root):
        subdirectories[:] = sorted(name for name in subdirectories if _is_searched(os.path.join(directory, name)))
        for name in sorted(files):
            path = os.path.join(directory, name)
            if name.endswith((".py", ".sh")):
                with open(path, encoding="utf-8") as handle:
                    uses = of_source(handle.read()) if name.endswith(".py") else of_shell(handle.read())
                found += [(os.path.relpath(path, root), line, dotted) for line, dotted in uses]
    return found


def _is_searched(directory):
    name = os.path.basename(directory)
    environment = os.path.exists(os.path.join(directory, "pyvenv.cfg"))
    return not environment and name not in _SKIPPED and (not name.startswith(".") or name == ".ci")


def of_shell(text):
    """[(line, dotted name)] in a shell script, comments excepted."""
    uses = []
    for number, line in enumerate(text.splitlines(), 1):
        for match in _SHELL.finditer("" if line.lstrip().startswith("#") else line):
            uses.append((number, match.group(1).replace("torch.npu", "torch_npu.npu") + match.group(2)))
    return uses


def of_source(text):
    """[(line, dotted name)] in a Python source."""
    finder = _Finder()
    tree = ast.parse(text)
    finder.learn_functions(tree)
    finder.visit(tree)
    return sorted(set(finder.uses))


def missing(dotted, modules):
    """The first part of a dotted name that `modules` ({module: [names]}) lacks, as a dotted name; None if all is there.

    Names below a function or class are not known and pass.
    """
    parts = dotted.split(".")
    known = parts[0]
    for part in parts[1:]:
        if known not in modules:
            return None
        known += "." + part
        if part not in modules[known.rpartition(".")[0]] and part != "__version__":
            return known
    return None


class _Finder(ast.NodeVisitor):
    def __init__(self):
        self.uses = []
        self.scopes = [{"torch": "torch"}]  # variable: what it stands for
        self.guards = []                    # dotted names that have been tested
        self.functions = set()              # local functions that return torch.npu

    # ---- what an expression stands for

    def learn_functions(self, tree):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                returned = [n.value for n in ast.walk(node) if isinstance(n, ast.Return) and n.value is not None]
                if any(self.meaning(value) == "torch_npu.npu" for value in returned):
                    self.functions.add(node.name)

    def meaning(self, node):
        """The dotted name of torch_npu that an expression stands for, "torch", or None."""
        if isinstance(node, ast.Name):
            return next((scope[node.id] for scope in reversed(self.scopes) if node.id in scope), None)
        if isinstance(node, ast.Attribute):
            return self.member(self.meaning(node.value), node.attr)
        if isinstance(node, ast.Call):
            return self.meaning_of_call(node)
        if isinstance(node, (ast.IfExp, ast.BoolOp)):
            options = [node.body, node.orelse] if isinstance(node, ast.IfExp) else node.values
            return next((m for m in map(self.meaning, options) if m), None)
        return None

    @staticmethod
    def member(base, name):
        if base == "torch":
            return "torch_npu.npu" if name == "npu" else None
        return base + "." + name if base else None

    def meaning_of_call(self, node):
        if not isinstance(node.func, ast.Name):
            return None
        if node.func.id in self.functions:
            return "torch_npu.npu"
        if node.func.id == "getattr" and len(node.args) > 1:
            name = literal(node.args[1])
            base = self.meaning(node.args[0])
            return self.member(base, name or ("npu" if base == "torch" else "?"))
        return None

    # ---- imports and assignments

    def visit_Import(self, node):
        for alias in node.names:
            root = alias.name.split(".")[0]
            if root == "torch_npu":
                self.use(node, alias.name)
            if root in ("torch", "torch_npu") and (alias.asname is None or alias.name == root):
                self.scopes[-1][alias.asname or root] = root
            elif root == "torch_npu":
                self.scopes[-1][alias.asname] = alias.name

    def visit_ImportFrom(self, node):
        for alias in node.names if node.module and not node.level else ():
            whole = node.module + "." + alias.name
            if whole.split(".")[0] == "torch_npu" or whole == "torch.npu" or whole.startswith("torch.npu."):
                whole = whole.replace("torch.npu", "torch_npu.npu", 1)
                self.use(node, whole)
                self.scopes[-1][alias.asname or alias.name] = whole

    def visit_Assign(self, node):
        self.generic_visit(node)
        for target in node.targets:
            if isinstance(target, ast.Name):
                self.scopes[-1][target.id] = self.meaning(node.value)

    def visit_FunctionDef(self, node):
        self.scopes.append({argument.arg: None for argument in node.args.args + node.args.kwonlyargs})
        guards = len(self.guards)
        self.generic_visit(node)
        del self.guards[guards:]
        self.scopes.pop()

    # ---- guards

    def tested(self, test):
        """What is known to exist where `test` is true, and where it is false."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return self.tested(test.operand)[::-1]
        if isinstance(test, ast.BoolOp):
            each = [self.tested(value) for value in test.values]
            if isinstance(test.op, ast.And):
                return [name for true, _ in each for name in true], []
            return [], [name for _, false in each for name in false]
        if isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and test.func.id == "hasattr":
            base, name = self.meaning(test.args[0]), literal(test.args[1])
            return ([self.member(base, name)] if base and name else []), []
        return [], []

    def guarded(self, names, *nodes):
        before = len(self.guards)
        self.guards += names
        for node in nodes:
            self.visit(node)
        del self.guards[before:]

    def visit_If(self, node):
        self.visit(node.test)
        true, false = self.tested(node.test)
        self.guarded(true, *node.body)
        self.guarded(false, *node.orelse)
        if isinstance(node.body[-1], _LEAVING):
            self.guards += false  # until the block ends

    def visit_IfExp(self, node):
        self.visit(node.test)
        true, false = self.tested(node.test)
        self.guarded(true, node.body)
        self.guarded(false, node.orelse)

    def visit_BoolOp(self, node):
        known = []
        for value in node.values:
            self.guarded(known, value)
            known = known + self.tested(value)[0 if isinstance(node.op, ast.And) else 1]

    # ---- uses

    def use(self, node, dotted):
        parts = dotted.split(".")
        prefixes = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
        if dotted != "torch_npu" and not prefixes.intersection(self.guards):
            self.uses.append((node.lineno, dotted))

    def visit_Attribute(self, node):
        dotted = self.meaning(node)
        if dotted and dotted != "torch":
            self.use(node, dotted)
            while isinstance(node, ast.Attribute):  # the longest chain says it all
                node = node.value
        else:
            node = node.value
        if not isinstance(node, ast.Name):
            self.visit(node)

    def visit_Call(self, node):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "getattr" and len(node.args) == 2 and literal(node.args[1]) and self.meaning(node):
            self.use(node, self.meaning(node))
        self.generic_visit(node)

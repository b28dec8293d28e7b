"""The messages of core that reach a page, read from the syntax trees as templates.

``UserError(f"{path} is no folder", fix=why)`` gives ``{0} is no folder`` and whatever ``why`` is:
names are followed to what the function assigns to them, calls to what the called function returns,
parameters to the arguments of the calls.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path

import yaml

from core.paths import REPO

#: Constructor -> its arguments that a person reads, by position and by name.
SPOKEN: dict[str, tuple[str, ...]] = {
    "UserError": ("what", "why", "fix"),
    "UserErrors": ("", "what"),
    "_Problem": ("what", "why", "fix"),
    "Finding": ("", "", "message", "fix"),
    "RowProblem": ("", "", "what", "fix"),
    "RowError": ("", "what", "fix"),
    "Advice": ("", "text", "why"),
    "Choice": ("", "", "reason"),
    "Estimate": ("", "basis"),
    "Output": ("", "what"),
    "Fault": ("", "cause"),
    "Fix": ("label",),
    "rule": ("", "", "cause", "*"),
    "by_hand": ("*",),
    "_about": ("", "label", "help"),
    "Format": ("", "label", "about", "caveat"),
}
#: Functions of core that pages give a message; others of the same name are the pages' own.
SHARED = {"disk_errors"}
#: Functions whose every sentence a page may show, and constants, by the module they stand in.
SAID: dict[str, set[str]] = {
    "training/base.py": {"warnings"},
    "training/preflight.py": {"_row_warnings", "_seconds", "_memory", "_with_model"},
    "training/defaults.py": {"choose", "following", "_length", "_dtype", "_hold", "_group"}
    | {"_compile", "_batch", "_recompute", "_steps", "passes", "_stock", "_gpus"},
    "training/recipe.py": {"learning_rate"},
    "training/fit.py": {"length", "hold", "batch", "accumulation", "recompute"},
    "training/deepspeed.py": {"_ABOUT", "unavailable"},
    "training/faults.py": {"*"},
    "jobs/reasons.py": {"explain", "_explain", "diagnose", "fault"},
    "jobs/watcher.py": {"_judge"},
    "jobs/locks.py": {"device_holder"},
    "models/device.py": {"line"},
    "evaluation/verdict.py": {"_name", "_prompt_bound", "_because"},
    "evaluation/sweep.py": {"recommend"},
    "evaluation/report.py": {"comparable"},
    "evaluation/questions.py": {"*"},
    "evaluation/run.py": {"_note", "kl", "*"},
    "weights/prove.py": {"*"},
    "weights/merge_job.py": {"*"},
    "data/own_identity.py": {"rehearsal_ratio"},
    "data/build.py": {"make_rows"},
    "data/importer.py": {"lines"},
    "data/talk.py": {"say", "_turn", "_with_reasoning"},
    "data/reading.py": {"_leave_out_rejected", "_begin_with_a_question", "_read_exchange"},
    "data/grid.py": {"label"},
    "data/store.py": {"_summary"},
    "training/checkpoints.py": {"_problem"},
    "chat/batch.py": {"parse_prompts"},
}
#: A text is a message if it has two words, or a word and a hole; else it is a name of something.
_SPOKEN_TEXT = re.compile(
    r"[A-Za-z]{2,}[^\w]* [^\w]*(?:[A-Za-z]|\0)|\0.* [^\w]*[A-Za-z]{2}|[A-Za-z]{3,}: \0"
)
#: Regular expressions stand beside messages in the tables of failures.
_PATTERN = re.compile(r"\\[wSb(]|\.\*|\|[A-Z]|not a number\||'\.")
#: More alternatives than this come from no sentence.
_MANY = 24
_DEPTH = 5


@dataclass
class Function:
    """A function of core, as far as texts can flow through it."""

    node: ast.FunctionDef | ast.AsyncFunctionDef
    path: Path
    #: Parameters that end in a message, so that arguments of calls are messages.
    spoken: set[str] = field(default_factory=set)

    @cached_property
    def returned(self) -> list[ast.expr]:
        """What its return statements give."""
        returns = (n for n in ast.walk(self.node) if isinstance(n, ast.Return))
        return [n.value for n in returns if n.value is not None]

    @cached_property
    def parameters(self) -> list[str]:
        args = self.node.args
        names = [a.arg for a in [*args.posonlyargs, *args.args]]
        return names[1:] if names[:1] in (["self"], ["cls"]) else names


class Core:
    """All modules of core, parsed once; and of the pages, which raise and name some errors too."""

    def __init__(self, skip: tuple[str, ...] = ("commands", "language")) -> None:
        self.trees: dict[Path, ast.Module] = {}
        self.functions: dict[str, list[Function]] = {}
        self.owner: dict[ast.AST, Function] = {}
        self.places: dict[ast.AST, Path] = {}
        for path in sorted([*(REPO / "core").rglob("*.py"), *(REPO / "pages").rglob("*.py")]):
            if path.relative_to(REPO).parts[1] in skip:
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            self.trees[path] = tree
            self._own(tree, path)
        self.found: dict[str, str] = {}
        self.calls = [
            (node, ast.unparse(node.func).split(".")[-1])
            for tree in self.trees.values()
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
        ]
        self._values: dict[ast.AST, dict[str, list[ast.expr]]] = {}

    def _own(self, tree: ast.AST, path: Path) -> None:
        for node in ast.walk(tree):
            self.places[node] = path
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                function = Function(node, path)
                if path.is_relative_to(REPO / "core"):
                    self.functions.setdefault(node.name, []).append(function)
                for inner in ast.walk(node):  # the innermost function comes last
                    self.owner[inner] = function

    # -- from an expression to templates ----------------------------------------------------

    def texts(self, node: ast.expr, depth: int = 0) -> Iterator[str]:
        """Every template that the expression may give; a hole that is computed is ``{}``."""
        if depth > _DEPTH:
            return
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str):
                yield _escaped(node.value)
        elif isinstance(node, ast.JoinedStr):
            yield from self._product([self._part(p, depth) for p in node.values])
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            sides = [list(self.texts(s, depth)) or ["{}"] for s in (node.left, node.right)]
            yield from self._product(sides)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            yield ""
            yield from self.texts(node.left, depth)
        elif isinstance(node, ast.IfExp):
            yield from self.texts(node.body, depth)
            yield from self.texts(node.orelse, depth)
        elif isinstance(node, ast.BoolOp):
            for value in node.values:
                yield from self.texts(value, depth)
        elif isinstance(node, ast.NamedExpr):
            yield from self.texts(node.value, depth)
        elif isinstance(node, ast.Name):
            yield from self._named(node, depth)
        elif isinstance(node, ast.Call):
            yield from self._returned(node, depth)
        elif isinstance(node, ast.Subscript):
            yield from self._looked_up(node, depth)

    def _part(self, part: ast.expr, depth: int) -> list[str]:
        if isinstance(part, ast.FormattedValue):
            inner = part.value
            if isinstance(inner, ast.IfExp | ast.Constant) or (
                isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Mult)
            ):
                found = list(self.texts(inner, depth))
                if found and all("{}" not in f for f in found):
                    return found
            self.also(inner, depth + 1)
            return ["{}"]
        return list(self.texts(part, depth))

    def also(self, node: ast.expr, depth: int, *, label: bool = False) -> None:
        """What stands in a hole is a message of its own; a ``label`` may be one word."""
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".join"):
            for part in node.args:
                if isinstance(part, ast.GeneratorExp | ast.ListComp):
                    self.also(part.elt, depth + 1)
        for text in self.texts(node, depth):
            self.note(text, node, label=label)

    def _product(self, parts: list[list[str]]) -> Iterator[str]:
        for combination in list(product(*parts))[:_MANY]:
            yield "".join(combination)

    def _named(self, node: ast.Name, depth: int) -> Iterator[str]:
        function = self.owner.get(node)
        if function is not None and node.id in function.parameters:
            function.spoken.add(node.id)
        for place in (function.node if function else None, self._tree(node)):
            for value in self._assigned_in(place).get(node.id, ()) if place else ():
                yield from self.texts(value, depth + 1)

    def _assigned_in(self, place: ast.AST) -> dict[str, list[ast.expr]]:
        """Name -> what it is set to in a function, or in a module outside of its functions."""
        if place not in self._values:
            found: dict[str, list[ast.expr]] = {}
            whole = isinstance(place, ast.Module)
            for statement in ast.walk(place):
                if not (whole and statement in self.owner):
                    for name, value in _assignments(statement):
                        found.setdefault(name, []).append(value)
            self._values[place] = found
        return self._values[place]

    def _path(self, node: ast.AST) -> Path:
        return self.places[node]

    def _tree(self, node: ast.AST) -> ast.Module:
        return self.trees[self._path(node)]

    def _returned(self, node: ast.Call, depth: int) -> Iterator[str]:
        name = ast.unparse(node.func).split(".")[-1]
        if name == "join" and node.args:
            return
        for function in self.functions.get(name, []) if depth < _DEPTH else []:
            for value in function.returned:
                yield from self.texts(value, depth + 1)

    def _looked_up(self, node: ast.Subscript, depth: int) -> Iterator[str]:
        if not isinstance(node.value, ast.Name):
            return
        for value in self._assigned_in(self._tree(node)).get(node.value.id, ()):
            if isinstance(value, ast.Dict):
                for entry in value.values:
                    yield from self.texts(entry, depth + 1)

    # -- the walk ---------------------------------------------------------------------------

    def note(self, text: str, node: ast.AST, *, label: bool = False) -> bool:
        numbered = _numbered(text)
        worded = _SPOKEN_TEXT.search(re.sub(r"\{\d*\}", "\0", numbered))
        if _PATTERN.search(numbered) or not (worded or (label and numbered)):
            return False
        where = f"{self._path(node).relative_to(REPO)}:{getattr(node, 'lineno', 0)}"
        self.found.setdefault(numbered, where)
        return True

    def messages(self) -> dict[str, str]:
        """Template -> where it stands."""
        before = -1
        while before != len(self.found):
            before = len(self.found)
            for node, name in self.calls:
                for argument in self._spoken(node, name):
                    self.also(argument, 0)
                if name == "_about":
                    self.also(node.args[1], 0, label=True)
        for path, names in SAID.items():
            tree = self.trees[REPO / "core" / path]
            for node in ast.walk(tree):
                name = getattr(node, "name", None) or _target(node)
                if name and ("*" in names or name in names):
                    self._sentences(node)
        gates = yaml.safe_load((REPO / "core/evaluation/gates.yaml").read_text(encoding="utf-8"))
        titles = [gate["title"] for gate in gates["gates"].values()]
        advice = [text for texts in gates["next"].values() for text in texts.values()]
        said = {_numbered(_escaped(x)): "gates.yaml" for x in [*titles, *advice, *gates["next"]]}
        self.found.update(said)
        return self.found

    def _sentences(self, node: ast.AST) -> None:
        """Every text of two words in it, docstrings left out."""
        skip = {
            id(d.body[0].value)
            for d in ast.walk(node)
            if isinstance(d, ast.FunctionDef | ast.ClassDef) and isinstance(d.body[0], ast.Expr)
        }
        stack = [node]
        while stack:
            at = stack.pop()
            text = isinstance(at, ast.JoinedStr | ast.Constant | ast.BinOp) and id(at) not in skip
            if text and [t for t in self.texts(at) if self.note(t, at)]:
                continue
            if not isinstance(at, ast.Raise):
                stack += ast.iter_child_nodes(at)

    def _spoken(self, call: ast.Call, name: str) -> Iterator[ast.expr]:
        if name in SPOKEN:
            order, wanted = list(SPOKEN[name]), set(SPOKEN[name])
            yield from _arguments(call, order, wanted)
        in_core = self._path(call).is_relative_to(REPO / "core") or name in SHARED
        for function in self.functions.get(name, []) if in_core else []:
            if function.spoken:
                yield from _arguments(call, function.parameters, function.spoken)


def _arguments(call: ast.Call, order: list[str], wanted: set[str]) -> Iterator[ast.expr]:
    for position, argument in enumerate(call.args):
        called = order[min(position, len(order) - 1)] if order else ""
        if called and ((called in wanted and position < len(order)) or called == "*"):
            yield argument
    for keyword in call.keywords:
        if keyword.arg in wanted:
            yield keyword.value


def _assignments(statement: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign | ast.NamedExpr):
        targets = [statement.target]
    value = getattr(statement, "value", None)
    names = {target.id for target in targets if isinstance(target, ast.Name)}
    yield from ((name, value) for name in names if value is not None)


def _target(node: ast.AST) -> str:
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return ""


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _numbered(text: str) -> str:
    parts = text.replace("{{", "\0").replace("}}", "\1").split("{}")
    joined = parts[0]
    for number, part in enumerate(parts[1:]):
        joined += f"{{{number}}}{part}"
    return joined.replace("\0", "{{").replace("\1", "}}")


if __name__ == "__main__":
    for text, where in sorted(Core().messages().items()):
        print(f"{where}\t{text!r}")

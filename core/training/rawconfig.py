"""A config that somebody wrote by hand, checked without running it."""

from __future__ import annotations

import ast
import importlib.util
import sys

from core.errors import UserError
from core.training.edits import parse

#: Names that XTuner's train reads; a raw config without one of them cannot run.
_REQUIRED = (
    "tokenizer",
    "model",
    "train_dataloader",
    "optim_wrapper",
    "param_scheduler",
    "train_cfg",
    "default_hooks",
)


def check_raw(source: str, where: str = "config.py") -> None:
    """Check a hand-written config without running it.

    Raises:
        UserError: not Python, a required name is missing, or an imported module is not there.
    """
    parse(source, where)
    tree = ast.parse(source)
    if missing := [name for name in _REQUIRED if not _binds(tree, name)]:
        raise UserError(
            f"the config does not set {', '.join(missing)}",
            where=where,
            fix="start again from a stock config and change only what you need",
        )
    for node in ast.walk(tree):
        names = (
            [node.module]
            if isinstance(node, ast.ImportFrom) and node.module
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
        for name in names:
            _require_module(name, f"{where}:{getattr(node, 'lineno', 0)}")
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and "{{" in node.value
            and "$" in node.value
        ):
            raise UserError(
                "a string of the config asks for an environment variable",
                where=f"{where}:{node.lineno}",
                why="mmengine replaces '{{ $NAME:default }}' in configs",
                fix="write the value itself",
            )


def _binds(tree: ast.Module, name: str) -> bool:
    targets = [t for node in tree.body if isinstance(node, ast.Assign) for t in node.targets]
    return any(isinstance(t, ast.Name) and t.id == name for t in targets)


def _require_module(name: str, where: str) -> None:
    # Only the top package is looked up: find_spec of a submodule would import its parents.
    top = name.split(".")[0]
    if top not in sys.modules and importlib.util.find_spec(top) is None:
        raise UserError(
            f"the config imports {name}, which is not installed",
            where=where,
            fix=f"install {top}, or take the line out",
        )

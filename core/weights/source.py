"""What an XTuner config says about its adapter, read from the syntax tree; the file is not run."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core import fsio
from core.errors import UserError

#: Values of one setting. Names that stand for lists of names can stand for more than any memory.
_MOST_VALUES = 100_000


@dataclass(frozen=True)
class AdapterSource:
    """The base model and the LoRA settings of a config (``peft.LoraConfig`` keywords)."""

    base_model: str
    lora: dict[str, Any] = field(default_factory=dict)


class _Module:
    """Module-level ``name = value`` lines of a config, later ones winning."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made = 0
        try:
            tree = ast.parse(fsio.read_bytes(path))
        except OSError as error:
            raise UserError(f"{path} cannot be read", why=error.strerror or str(error)) from error
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            why = str(error) or "nested too deeply"
            raise UserError(f"{path} is not a Python config", why=why) from error
        self.names: dict[str, ast.expr] = {}
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.names[node.targets[0].id] = node.value

    def resolve(self, node: ast.expr, depth: int = 0) -> ast.expr:
        """Follow names to what they were set to."""
        while isinstance(node, ast.Name) and node.id in self.names and depth < 20:
            node, depth = self.names[node.id], depth + 1
        return node

    def entries(self, node: ast.expr | None, what: str) -> dict[str, ast.expr]:
        """Keys of ``dict(...)`` or ``{...}``."""
        node = self.resolve(node) if node is not None else None
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "dict" and not node.args:
            return {k.arg: k.value for k in node.keywords if k.arg}
        if isinstance(node, ast.Dict):
            return {
                k.value: v
                for k, v in zip(node.keys, node.values, strict=True)
                if isinstance(k, ast.Constant) and isinstance(k.value, str)
            }
        raise UserError(
            f"{self.path}: no {what}",
            why="it is not written as dict(...) in this file",
            fix="convert with engine 'xtuner', which runs the config",
        )

    def literal(self, node: ast.expr, what: str) -> Any:
        """A plain value, as JSON has it; lists and dicts may hold names of other plain values."""
        node = self.resolve(node)
        self._made += 1
        if self._made > _MOST_VALUES:
            raise UserError(f"{self.path}: {what} stands for more values than any setting has")
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            return [self.literal(item, what) for item in node.elts]
        if isinstance(node, ast.Dict) or (isinstance(node, ast.Call) and not node.args):
            return {k: self.literal(v, what) for k, v in self.entries(node, what).items()}
        try:
            value = ast.literal_eval(node)
            json.dumps(value)  # sets, bytes, complex numbers, integers of pages
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{self.path}:{node.lineno}: {what} is computed, not written out",
                fix="convert with engine 'xtuner', which runs the config",
            ) from error
        return value


def read_config(path: Path) -> AdapterSource:
    """Base model and LoRA settings of an XTuner config.

    Raises:
        UserError: the file cannot be parsed, trains all weights, or computes these values.
    """
    module = _Module(path)
    model = module.entries(module.names.get("model"), "model")
    llm = module.entries(model.get("llm"), "model.llm")
    if "lora" not in model or ast.unparse(module.resolve(model["lora"])) == "None":
        raise UserError(
            f"{path} trains all weights, so there is no adapter",
            fix="convert with engine 'xtuner', or choose a LoRA config",
        )
    try:
        lora = {
            key: module.literal(value, f"model.lora.{key}")
            for key, value in module.entries(model["lora"], "model.lora").items()
            if key != "type"
        }
        name = llm.get("pretrained_model_name_or_path")
        base = module.literal(name, "model.llm.pretrained_model_name_or_path") if name else ""
    except RecursionError as error:
        raise UserError(f"{path}: model.lora stands for itself, or is nested too deeply") from error
    return AdapterSource(str(base), lora)

"""A run's config beside the stock file that it was copied from."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from core.training.config import stock_source
from core.training.spec import TrainSpec


@dataclass(frozen=True)
class DiffLine:
    """One line of the config beside its stock file. ``kind``: same, added, removed."""

    kind: str
    stock_line: int | None
    line: int | None
    text: str


def diff(stock: str, edited: str) -> list[DiffLine]:
    """Line by line, edits marked; lines count from 1."""
    old, new = stock.splitlines(), edited.splitlines()
    lines: list[DiffLine] = []
    for tag, a0, a1, b0, b1 in difflib.SequenceMatcher(None, old, new, False).get_opcodes():
        if tag == "equal":
            lines += [
                DiffLine("same", a + 1, b + 1, new[b])
                for a, b in zip(range(a0, a1), range(b0, b1), strict=True)
            ]
            continue
        lines += [DiffLine("removed", a + 1, None, old[a]) for a in range(a0, a1)]
        lines += [DiffLine("added", None, b + 1, new[b]) for b in range(b0, b1)]
    return lines


def unified_diff(spec: TrainSpec, edited: str) -> str:
    """The edits as a patch against the stock file."""
    stock = stock_source(spec.stock_config)
    return "".join(
        difflib.unified_diff(
            stock.splitlines(True),
            edited.splitlines(True),
            f"{spec.stock_config}.py (XTuner)",
            "config.py (this run)",
            n=2,
        )
    )

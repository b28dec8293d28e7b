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
    text: str


def diff(stock: str, edited: str) -> list[DiffLine]:
    """Line by line, edits marked."""
    old, new = stock.splitlines(), edited.splitlines()
    lines: list[DiffLine] = []
    for tag, a0, a1, b0, b1 in difflib.SequenceMatcher(None, old, new, False).get_opcodes():
        if tag == "equal":
            lines += [DiffLine("same", text) for text in new[b0:b1]]
            continue
        lines += [DiffLine("removed", text) for text in old[a0:a1]]
        lines += [DiffLine("added", text) for text in new[b0:b1]]
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

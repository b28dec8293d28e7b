"""The record of one problem that lint found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One problem.

    ``rule``: stable name of the rule. ``where``: row id, or path in the pack. ``count``: how many
    places it was found in (``where`` is the first).
    """

    level: Level
    rule: str
    message: str
    fix: str
    where: str = ""
    count: int = 1

"""The guide: both languages hold the same commands."""

from __future__ import annotations

import re
from pathlib import Path

from core.paths import REPO

GUIDE = REPO / "docs" / "tutorial.md"
CHINESE = REPO / "docs" / "tutorial.zh.md"


def blocks(guide: Path) -> list[tuple[str, str]]:
    """(words behind ``bash``, commands) of each block of commands."""
    return re.findall(r"^```bash *(.*?)\n(.*?)^```$", guide.read_text("utf-8"), re.M | re.S)


def test_both_languages_hold_the_same_commands() -> None:
    assert blocks(GUIDE) == blocks(CHINESE)
    assert len(blocks(GUIDE)) > 10


def test_every_heading_and_table_row_has_its_counterpart() -> None:
    def shape(guide: Path) -> list[str]:
        lines = guide.read_text("utf-8").splitlines()
        return [m[0] for line in lines if (m := re.match(r"#+ (\d+)?|\|", line))]

    assert shape(GUIDE) == shape(CHINESE)

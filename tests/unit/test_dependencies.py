"""Every requirement has been looked at, and not too long ago."""

from __future__ import annotations

import re
from datetime import date, timedelta

import pytest

from core.paths import REPO

FILES = ("requirements.txt", "requirements-nodeps.txt", "requirements-dev.txt")
LIST = REPO / "docs" / "dependencies.md"


def asked_for() -> dict[str, str]:
    """Version ranges by package."""
    found: dict[str, str] = {}
    for file in FILES:
        for line in (REPO / file).read_text().splitlines():
            text = line.split("#")[0].strip()
            if match := re.match(r"[A-Za-z0-9_.-]+", text):
                found.setdefault(match[0], text[match.end() :].strip() or "any")
    return found


def listed() -> dict[str, tuple[str, date]]:
    """Version range and date by package, from the list."""
    rows = re.findall(
        r"^\| ([\w.-]+) \| (.+?) \| (\d{4}-\d\d-\d\d) \|", LIST.read_text(), re.MULTILINE
    )
    return {name: (version, date.fromisoformat(day)) for name, version, day in rows}


def test_every_requirement_has_its_line() -> None:
    assert {name: version for name, (version, _) in listed().items()} == asked_for()


@pytest.mark.parametrize("name", listed())
def test_it_was_looked_at_within_a_year(name: str) -> None:
    assert date.today() - listed()[name][1] < timedelta(days=366)


def test_torch_reads_data_safely() -> None:
    """GHSA-63cw-57p8-fm3p: before 2.10 the restricted reader could be made to run code."""
    import torch

    assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10)

"""Every requirement has been looked at, and not too long ago."""

from __future__ import annotations

import re
from datetime import date, timedelta

import pytest
from packaging.specifiers import SpecifierSet

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


def listed() -> dict[str, tuple[str, str, date]]:
    """Version range, tested version and date by package, from the list."""
    line = r"^\| ([\w.-]+) \| (.+?) \| (\S+) \| (\d{4}-\d\d-\d\d) \|"
    rows = re.findall(line, LIST.read_text(), re.MULTILINE)
    return {name: (asked, tested, date.fromisoformat(day)) for name, asked, tested, day in rows}


def test_every_requirement_has_its_line() -> None:
    assert {name: asked for name, (asked, _, _) in listed().items()} == asked_for()


@pytest.mark.parametrize("name", listed())
def test_it_was_looked_at_within_a_year(name: str) -> None:
    assert date.today() - listed()[name][2] < timedelta(days=366)


@pytest.mark.parametrize("name", listed())
def test_the_tested_version_is_one_that_is_asked_for(name: str) -> None:
    """A dash: no test and no check asks for it."""
    asked, tested, _ = listed()[name]
    assert tested == "-" or tested in SpecifierSet("" if asked == "any" else asked)


def test_an_index_without_advisories_is_no_clean_answer() -> None:
    """pip-audit leaves out what it cannot ask about, and ends with 0 unless it is strict."""
    assert "pip-audit --strict" in (REPO / "Makefile").read_text()


def test_torch_reads_data_safely() -> None:
    """GHSA-63cw-57p8-fm3p: before 2.10 the restricted reader could be made to run code."""
    import torch

    assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10)

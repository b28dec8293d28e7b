"""The list of protections is whole and fits the source; ``make protections`` tries each."""

from __future__ import annotations

from tests.protections.cases import PROTECTIONS
from tests.protections.judge import REPO, count
from tests.protections.table import read_table


def test_every_fault_case_has_a_protection() -> None:
    # 2 goes with 1, 4 with 3; each number is one of the thirty.
    assert {n for p in PROTECTIONS for n in p.numbers} == set(range(1, 31))


def test_every_text_is_in_the_source() -> None:
    """Whoever rewrites a protection says here what it is now."""
    assert {p.case: count(p) for p in PROTECTIONS if count(p) != 1} == {}
    assert len({p.case for p in PROTECTIONS}) == len(PROTECTIONS)


def test_the_tests_are_there() -> None:
    for protection in PROTECTIONS:
        file, _, name = protection.test.partition("::")
        text = (REPO / file).read_text(encoding="utf-8")
        assert f"def {name.partition('[')[0]}(" in text, protection.test


def test_every_protection_was_seen_honest() -> None:
    """As it is listed now; ``python -m tests.protections`` tries those that are not."""
    table = read_table()
    judged = {p.case: table.get(p.case) for p in PROTECTIONS}
    assert [c for c, row in judged.items() if row is None or row.verdict != "honest"] == []

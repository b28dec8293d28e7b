"""docs/results/protections.md: the verdicts, read back so that a broken-off command goes on."""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass
from datetime import UTC, datetime

from tests.protections.cases import PROTECTIONS, Protection
from tests.protections.judge import REPO

TABLE = REPO / "docs" / "results" / "protections.md"
_HEAD = """# Protections, each with the test that fails without it

`python -m tests.protections` takes each protection out of a copy of the source (its text is in
`tests/protections/cases.py`), runs its test there, and writes this table. *honest*: the test
passed as things are and failed without the protection. The numbers are those of the fault cases:

| cases | what happens |
|---|---|
| 1, 2 | the server is killed, or interrupted, while a run goes on |
| 3, 4 | a job fails behind a wrapper that returns 0, or ends too early with 0 |
| 5 | children that ignore signals and leave their session |
| 6, 7 | the supervisor is killed; the machine restarts and a process id is used again |
| 8, 9 | two starts at once; one device for two |
| 10, 11 | torn and foreign lines; a full disk while something is written |
| 12, 13, 14 | a merge is killed; an adapter does not fit; a bit flips in a shard |
| 15, 16, 17 | foreign pickles; foreign templates and configs; names that become paths |
| 18 | bad rows of a dataset |
| 19, 20 | hostile replies; a chat is stopped, cut, or half of it fails |
| 21, 22, 23 | last words of a job; the loss is no number; silence |
| 24, 25 | the clock is set back; a log of gigabytes without line ends |
| 26 | a folder is deleted, or cannot be written |
| 27, 28 | strangers knock; any page may be the first |
| 29, 30 | secrets; files of another version |

"""
_COLUMNS = "| protection | in | test | verdict | seen | entry |\n|---|---|---|---|---|---|\n"


@dataclass(frozen=True)
class Row:
    """One line. ``digest``: of the entry, so that a changed entry is tried again."""

    case: str
    file: str
    test: str
    verdict: str
    seen: str
    digest: str

    @classmethod
    def of(cls, protection: Protection, verdict: str) -> Row:
        """The line of a protection that was judged now."""
        today = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
        file, test = protection.file, protection.test.removeprefix("tests/")
        return cls(protection.case, file, test, verdict, today, _digest(protection))

    def is_of(self, protection: Protection) -> bool:
        """Whether the entry is still the one that was judged."""
        return self.digest == _digest(protection)


def _digest(protection: Protection) -> str:
    return hashlib.sha256(repr(astuple(protection)).encode()).hexdigest()[:8]


def read_table() -> dict[str, Row]:
    """Lines by protection; empty before the first."""
    if not TABLE.exists():
        return {}
    _, _, text = TABLE.read_text(encoding="utf-8").partition(_COLUMNS)
    rows = [Row(*line.strip("| ").split(" | ")) for line in text.splitlines() if line]
    return {row.case: row for row in rows}


def write_table(new: Row) -> None:
    """Put a line in; those of protections that are no longer listed go."""
    rows = {**read_table(), new.case: new}
    lines = [f"| {' | '.join(astuple(rows[p.case]))} |" for p in PROTECTIONS if p.case in rows]
    TABLE.write_text(_HEAD + _COLUMNS + "\n".join(lines) + "\n", encoding="utf-8")

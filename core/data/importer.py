"""Read foreign files of conversations as a stream: good rows load, every bad one is reported.

A file is JSON in any arrangement (``core.data.json_rows``) or a table (``core.data.tables``), its
rows in any spelling (``core.data.reading``), mixed if need be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from core import fsio, trees
from core.conversation import Conversation, content_id
from core.data import placeholders
from core.data.fields import RowError
from core.data.formats import FORMATS, get_format
from core.data.json_rows import Leftover, Record, json_records
from core.data.reading import read_row
from core.data.sources import MAX_UPLOAD_BYTES, open_utf8
from core.data.tables import Sheet, is_table, read_table
from core.errors import UserError


@dataclass(frozen=True)
class RowProblem:
    """Why one row was left out: where, what, and what to do."""

    line: int
    field: str
    what: str
    fix: str

    def __str__(self) -> str:
        at = f"line {self.line}" + (f", {self.field}" if self.field else "")
        return f"{at}: {self.what}; {self.fix}"


#: Rows of an upload, which is read in the server: half a minute and half a gigabyte.
MAX_UPLOAD_ROWS = 300_000
#: Names of keys and placeholders that are told apart; those beyond are counted together.
_MOST_NAMES, _OTHERS = 200, "(others)"


@dataclass
class Seen:
    """Something met in rows: how often, and the first example."""

    count: int
    example: str
    line: int


@dataclass
class ImportReport:
    """The good rows, the bad ones, and what the file was.

    ``problems`` is capped at the first ``problem_limit``; ``bad`` counts them all. ``ignored``:
    keys that nothing reads. ``placeholders``: those that were left. ``notes``: what was changed
    without being asked, with the number of rows. ``table``: how a table was read.
    """

    rows: list[Conversation] = field(default_factory=list)
    problems: list[RowProblem] = field(default_factory=list)
    bad: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    ignored: dict[str, Seen] = field(default_factory=dict)
    placeholders: dict[str, Seen] = field(default_factory=dict)
    filled: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    encoding: str = "utf-8"
    table: Sheet | None = None

    def lines(self) -> Iterator[str]:
        """What a person should know before the rows are saved, a sentence each."""
        kinds = ", ".join(
            f"{n:,} {FORMATS[k].label if k in FORMATS else k}" for k, n in self.formats.items()
        )
        yield f"{len(self.rows):,} rows read" + (f" ({kinds})" if kinds else "")
        if self.encoding != "utf-8":
            yield f"the file was read as {self.encoding}"
        if self.table:
            yield f"table: {self.table}"
        if self.duplicates:
            yield f"{self.duplicates:,} of them say the same as an earlier row"
        if self.filled:
            yield f"placeholders were filled in {self.filled:,} rows"
        yield from (f"{what} ({count:,} times)" for what, count in self.notes.items())
        for key, seen in self.ignored.items():
            yield f"key {key!r} is not read ({seen.count:,} times), e.g. {seen.example}"
        for mark, seen in self.placeholders.items():
            yield (
                f"placeholder {mark} in {seen.count:,} rows would be learned as text, "
                f"e.g. {seen.example}"
            )
        if self.bad:
            yield f"{self.bad:,} bad rows"


def import_file(
    source: Path | BinaryIO,
    *,
    fmt: str | None = None,
    columns: Mapping[str, str] | None = None,
    fill: placeholders.Fill | None = None,
    max_bytes: int | None = MAX_UPLOAD_BYTES,
    problem_limit: int = 500,
) -> ImportReport:
    """Read a whole file.

    Args:
        source: a path or a binary stream (whose ``name`` may say that it is a table).
        fmt: a name of ``FORMATS``; None = told from each row's keys.
        columns: which key or column holds the ``question``, ``answer`` and ``system`` text;
            None = told from their names.
        fill: values for placeholders of other tools; None = report them only.
        max_bytes: refuse a larger file before reading it; None = no limit.

    Raises:
        UserError: the file is missing, empty, too large, or not text at all.
    """
    most = None if max_bytes is None else MAX_UPLOAD_ROWS
    reader = _Reader(fmt, columns, fill)
    if not isinstance(source, Path):
        records = reader.records(source, getattr(source, "name", "upload"), max_bytes)
        return _import(records, reader, problem_limit, most)
    if not source.is_file():
        raise _no_file(source)
    with fsio.open_file(source) as file:
        return _import(reader.records(file, source.name, max_bytes), reader, problem_limit, most)


def _no_file(path: Path) -> UserError:
    if not path.is_dir():
        return UserError(f"{path} does not exist", fix="check the path")
    inside = sorted(
        f for f in trees.files_under(path) if f.suffix in (".jsonl", ".json", ".csv", ".tsv")
    )
    rows = [f for f in inside if f.name not in ("dataset_info.json", "state.json")]
    return UserError(
        f"{path} is a folder",
        fix=f"give one of its files, e.g. {rows[0]}"
        if rows
        else "save it as JSON Lines: datasets.load_from_disk(...).to_json('rows.jsonl')",
    )


def _import(
    records: Iterator[Record], reader: _Reader, problem_limit: int, most: int | None
) -> ImportReport:
    report, unique, empty = reader.report, UniqueIds(), True
    seen: set[str] = set()
    for count, (line, record) in enumerate(records):
        empty = False
        if count == most:
            raise UserError(
                f"the file holds more than {most:,} rows",
                fix="split the file, or use `python -m core dataset import`, which has no limit",
            )
        try:
            row = reader.row(line, record)
        except RowError as error:
            report.bad += 1
            if len(report.problems) < problem_limit:
                where, what = _clean(error.field), _clean(error.what)
                report.problems.append(RowProblem(line, where, what, error.fix))
            continue
        if row is not None:
            key = content_id(row.messages)
            report.duplicates += key in seen
            seen.add(key)
            report.rows.append(unique(row))
    if empty:
        raise UserError(
            "the file holds no rows",
            why="the file is empty or all blank",
            fix="choose a file with one JSON object a line, or a table with a header",
        )
    return report


class UniqueIds:
    """Gives a row whose id is taken another one, ``id-2``, ``id-3`` ...

    Remembers the number that each id has come to: 30,000 equal rows are 30,000 steps.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)
        self._last: dict[str, int] = {}

    def __call__(self, row: Conversation) -> Conversation:
        """``row``, or a copy of it with a free id; the id is taken from now on."""
        name, number = row.id, self._last.get(row.id, 1)
        while name in self._taken:
            number += 1
            name = f"{row.id}-{number}"
        self._last[row.id] = number
        self._taken.add(name)
        return row if name == row.id else replace(row, id=name)


class _Reader:
    """Turns the records of one file into conversations and keeps the account."""

    def __init__(
        self,
        fmt: str | None,
        columns: Mapping[str, str] | None,
        fill: placeholders.Fill | None,
    ) -> None:
        self.report = ImportReport()
        self._fmt = get_format(fmt).name if fmt else None
        self._columns = dict(columns or {})
        self._fill = fill

    def records(self, file: BinaryIO, name: str, max_bytes: int | None) -> Iterator[Record]:
        """The rows of a file, told apart as JSON or a table."""
        head = file.read(4096)
        table = is_table(name, head)
        text, self.report.encoding = open_utf8(file, name, max_bytes, table=table)
        if not table:
            at = text.tell()
            table = is_table(name, text.read(4096))
            text.seek(at)
        if not table:
            yield from json_records(text)
            return
        self.report.table, rows = read_table(text, self._columns)
        self._columns = self.report.table.used
        yield from rows

    def row(self, line: int, record: Any) -> Conversation | None:
        """The conversation of a record; None for what is no row; RowError if it is a bad one."""
        if isinstance(record, RowError):
            raise record
        if isinstance(record, Leftover):
            self._ignore(record, line)
            return None
        if not isinstance(record, dict):
            raise RowError(
                "",
                f"a {type(record).__name__} where an object belongs",
                "write one JSON object for each conversation",
            )
        read = read_row(self._named(record), self._fmt)
        if read is None:
            raise RowError(
                "",
                f"no known key among {', '.join(map(_clean, list(record)[:6])) or '(none)'}",
                "a row needs messages, conversations, conversation or data, or a question and an "
                "answer (instruction and output); or say which key holds which (--columns)",
            )
        self.report.formats[read.format] += 1
        self.report.notes += read.notes
        self._ignore(read.left, line)
        return self._placeholders(read.conversation, line)

    def _named(self, record: dict[str, Any]) -> dict[str, Any]:
        """The row with its columns under the names that they stand for."""
        given = {column: what for what, column in self._columns.items() if column in record}
        if not given:
            return record
        return {
            given.get(k, k if k not in given.values() else f"{k} (column)"): v
            for k, v in record.items()
        }

    def _ignore(self, left: Mapping[str, Any], line: int) -> None:
        for key, value in left.items():
            _count(self.report.ignored, _clean(key), _shown(value), line)

    def _placeholders(self, row: Conversation, line: int) -> Conversation:
        if self._fill:
            filled = placeholders.fill(row, self._fill)
            self.report.filled += filled is not row
            row = filled
        for message in row.messages:
            for mark in placeholders.find(message["content"]):
                example = _shown(message["content"])
                _count(self.report.placeholders, mark, example, line)
        return row


def _count(table: dict[str, Seen], name: str, example: str, line: int) -> None:
    name = name if name in table or len(table) < _MOST_NAMES else _OTHERS
    table.setdefault(name, Seen(0, example, line)).count += 1


def _clean(text: object) -> str:
    """Text of a stranger for a report: short, one line, and able to be written."""
    shown = str(text).encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() else " " for c in shown)[:120]


def _shown(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return f"a {type(value).__name__} of {len(value):,}"
    return repr(_clean(value)[:60])

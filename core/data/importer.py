"""Read foreign files of conversations as a stream: good rows load, every bad one is reported.

A file is JSON Lines or one JSON array, in any of the formats of ``core.data.formats``, mixed if
need be. Memory is bound by the longest row allowed, not by the file.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from core.conversation import Conversation
from core.data.codecs import content_id
from core.data.fields import RowError
from core.data.formats import FORMATS, Format, detect, get_format
from core.errors import UserError
from core.fsio import human_bytes

#: What the Dataset page accepts (the server's upload limit is the same).
MAX_UPLOAD_BYTES = 50 * 10**6
#: One conversation. A row of 1 MB is about 250,000 tokens, beyond any context we train.
MAX_ROW_BYTES = 10**6
#: Our rows nest three deep; the rest is room for other tools' extra keys.
MAX_DEPTH = 64
_BLOCK = 1 << 16
_READ_KEYS = frozenset(
    {f.key for f in FORMATS.values()}
    | {"id", "kind", "intent", "cluster", "locale", "loss", "system"}
    | {"input", "output", "history"}
)
_STRUCTURE = re.compile(rb'["\\{}\[\],\n]')
_MAGIC = {
    codecs.BOM_UTF16_LE: "UTF-16 text",
    codecs.BOM_UTF16_BE: "UTF-16 text",
    b"\x1f\x8b": "a gzip archive",
    b"PK": "a zip archive or an Office file",
    b"%PDF": "a PDF",
    b"PAR1": "a Parquet file",
}


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


@dataclass
class ImportReport:
    """The good rows, the bad ones, and what the file was. ``problems`` is capped at the first
    ``problem_limit``; ``bad`` counts them all."""

    rows: list[Conversation] = field(default_factory=list)
    problems: list[RowProblem] = field(default_factory=list)
    bad: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    ignored_keys: Counter[str] = field(default_factory=Counter)


def import_file(
    source: Path | BinaryIO,
    *,
    fmt: str | None = None,
    max_bytes: int | None = MAX_UPLOAD_BYTES,
    problem_limit: int = 500,
) -> ImportReport:
    """Read a whole file.

    Args:
        source: a path or a binary stream.
        fmt: a name of ``FORMATS``; None = told from each row's keys.
        max_bytes: refuse a larger file before reading it; None = no limit.

    Raises:
        UserError: the file is missing, empty, too large, or not text at all.
    """
    report = ImportReport()
    seen: set[str] = set()
    unique = UniqueIds()
    for item in iter_rows(source, fmt=fmt, max_bytes=max_bytes, report=report):
        if isinstance(item, RowProblem):
            report.bad += 1
            if len(report.problems) < problem_limit:
                report.problems.append(item)
            continue
        key = content_id(item.messages)
        report.duplicates += key in seen
        seen.add(key)
        report.rows.append(unique(item))
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


def iter_rows(
    source: Path | BinaryIO,
    *,
    fmt: str | None = None,
    max_bytes: int | None = None,
    report: ImportReport | None = None,
) -> Iterator[Conversation | RowProblem]:
    """The rows of a file as a stream, in order, a RowProblem in place of each bad one."""
    chosen = get_format(fmt) if fmt else None
    report = report if report is not None else ImportReport()
    if isinstance(source, Path):
        if not source.is_file():
            raise UserError(f"{source} is not a file", fix="check the path")
        with source.open("rb") as file:
            yield from _rows(file, chosen, max_bytes, report, source.name)
    else:
        yield from _rows(source, chosen, max_bytes, report, getattr(source, "name", "upload"))


def _rows(
    file: BinaryIO, fmt: Format | None, max_bytes: int | None, report: ImportReport, name: str
) -> Iterator[Conversation | RowProblem]:
    _check_size(file, max_bytes, name)
    head = file.read(4)
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            raise UserError(
                f"{name} is {what}",
                why="only UTF-8 text in JSON Lines or JSON is read",
                fix="save or unpack it as JSON Lines in UTF-8",
            )
    file.seek(3 if head.startswith(codecs.BOM_UTF8) else 0)
    empty = True
    for record in _records(file):
        empty = False
        yield record if isinstance(record, RowProblem) else _row(*record, fmt, report)
    if empty:
        raise UserError(
            f"{name} holds no rows",
            why="the file is empty or all blank",
            fix="choose a file with one JSON object a line",
        )


def _check_size(file: BinaryIO, max_bytes: int | None, name: str) -> None:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if max_bytes is not None and size > max_bytes:
        raise UserError(
            f"{name} is too large",
            why=f"{human_bytes(size)}; the limit is {human_bytes(max_bytes)}",
            fix="split the file, or use `python -m core dataset import`, which has no limit",
        )


def _row(
    line: int, text: bytes, fmt: Format | None, report: ImportReport
) -> Conversation | RowProblem:
    try:
        row = _parse(text)
        chosen = fmt or detect(row)
        if chosen is None:
            raise RowError(
                "",
                f"no known key among {', '.join(list(row)[:6]) or '(none)'}",
                "a row needs one of " + ", ".join(f.key for f in FORMATS.values()),
            )
        conversation = chosen.decode(row)
    except RowError as error:
        return RowProblem(line, error.field, error.what, error.fix)
    report.formats[chosen.name] += 1
    report.ignored_keys.update(row.keys() - _READ_KEYS)
    return conversation


def _parse(text: bytes) -> dict[str, Any]:
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError(
            "", f"byte {error.start + 1} of the row is not UTF-8", "save the file as UTF-8"
        ) from error
    if _depth(text) > MAX_DEPTH:
        raise RowError("", f"nested more than {MAX_DEPTH} deep", "flatten the row")
    try:
        row = json.loads(decoded)
    except json.JSONDecodeError as error:
        raise RowError(
            "", f"not JSON: {error.msg} at column {error.colno}", _json_fix(decoded)
        ) from error
    except ValueError as error:  # a number with thousands of digits
        raise RowError("", f"not JSON: {error}", "remove the number") from error
    if not isinstance(row, dict):
        raise RowError(
            "",
            f"a {type(row).__name__} where an object belongs",
            "write one JSON object for each conversation",
        )
    return row


def _json_fix(text: str) -> str:
    if "'" in text[:20] and '"' not in text[:20]:
        return "JSON wants double quotes, not single ones"
    if text.strip() in ("{", "[", "}", "]") or text.startswith((" ", "\t")):
        return "write each object on one line, or the whole file as one JSON array"
    return "mend the line, or write each object on one line"


def _depth(text: bytes) -> int:
    """An upper bound is enough to spare the C parser a deep recursion."""
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return 0
    depth = deepest = 0
    in_string = False
    skip_at = -1  # the position of a byte that a backslash disarms
    for match in _STRUCTURE.finditer(text):
        mark = match.group()
        if match.start() == skip_at:
            continue
        if in_string:
            if mark == b"\\":
                skip_at = match.end()
            in_string = mark != b'"'
        elif mark == b'"':
            in_string = True
        elif mark in (b"[", b"{"):
            depth += 1
            deepest = max(deepest, depth)
        elif mark in (b"]", b"}"):
            depth -= 1
    return deepest


# --- splitting into rows ---------------------------------------------------------------------


def _records(file: BinaryIO) -> Iterator[tuple[int, bytes] | RowProblem]:
    start = file.tell()
    line = 1
    while char := file.read(1):
        if char == b"\n":
            line += 1
        if not char.isspace():
            break
    if char == b"[":
        yield from _array(file, line)
        return
    file.seek(start)
    yield from _lines(file)


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes] | RowProblem]:
    number = 0
    while chunk := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(chunk) > MAX_ROW_BYTES and not chunk.endswith(b"\n"):
            size = len(chunk)
            while (more := file.readline(_BLOCK)) and not more.endswith(b"\n"):
                size += len(more)
            yield _too_long(number, size + len(more))
        elif text := chunk.strip(b" \t\r\n"):
            yield number, text


def _too_long(line: int, size: int) -> RowProblem:
    return RowProblem(
        line,
        "",
        f"the row has {human_bytes(size)}",
        f"keep a row under {human_bytes(MAX_ROW_BYTES)}; if the whole file is one "
        "line, write one object a line or a JSON array",
    )


class _ArraySplitter:
    """Cuts the elements of a JSON array out of a byte stream without parsing them.

    Fed block by block after the opening bracket; keeps at most one element in memory.
    """

    def __init__(self, line: int) -> None:
        self.line = line
        self.started_at = line
        self.depth = 0
        self.in_string = False
        self.skip_at = -1  # absolute position of a byte that a backslash disarms
        self.position = 0
        self.buffer = bytearray()
        self.size = 0
        self.closed = False

    def feed(self, block: bytes) -> Iterator[tuple[int, bytes] | RowProblem]:
        done = 0
        for match in _STRUCTURE.finditer(block):
            at, mark = match.start(), match.group()
            if mark == b"\n":
                self.line += 1
            if self.position + at == self.skip_at:
                continue
            if self.in_string:
                if mark == b"\\":
                    self.skip_at = self.position + at + 1
                elif mark == b'"':
                    self.in_string = False
                continue
            if mark == b'"':
                self.in_string = True
            elif mark in (b"{", b"["):
                self.depth += 1
            elif mark == b"," and self.depth == 0:
                yield from self._cut(block[done:at])
                done = at + 1
            elif mark in (b"}", b"]"):
                if self.depth == 0:
                    yield from self._cut(block[done:at], last=True)
                    self.closed = True
                    return
                self.depth -= 1
        self._keep(block[done:])
        self.position += len(block)

    def _keep(self, piece: bytes) -> None:
        if not self.size and not piece.strip():
            self.started_at = self.line
            return
        if not self.size:
            lead = len(piece) - len(piece.lstrip())
            self.started_at = self.line - piece[lead:].count(b"\n")
            piece = piece[lead:]
        self.size += len(piece)
        if self.size <= MAX_ROW_BYTES:
            self.buffer += piece

    def _cut(self, piece: bytes, *, last: bool = False) -> Iterator[tuple[int, bytes] | RowProblem]:
        self._keep(piece)
        size, text, line = self.size, bytes(self.buffer).strip(), self.started_at
        self.buffer.clear()
        self.size = 0
        if size > MAX_ROW_BYTES:
            yield _too_long(line, size)
        elif text:
            yield line, text
        elif not last:
            yield RowProblem(line, "", "an empty place between two commas", "remove one comma")


def _array(file: BinaryIO, line: int) -> Iterator[tuple[int, bytes] | RowProblem]:
    splitter = _ArraySplitter(line)
    while not splitter.closed and (block := file.read(_BLOCK)):
        yield from splitter.feed(block)
    if not splitter.closed:
        yield RowProblem(
            splitter.line,
            "",
            "the array is not closed: the file was cut off",
            "save the file again; the rows before this point were read",
        )

"""Tables of a spreadsheet (CSV, TSV): delimiter, header and columns found, rows as objects."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from core.data.fields import RowError
from core.data.json_rows import MAX_ROW_BYTES, Record
from core.data.talk import ANSWER, CONTEXT, LABELS, QUESTION, SYSTEM, TURNS, key_name

_DELIMITERS = ",\t;|"
_SAMPLE_ROWS = 50
_KNOWN = frozenset((*QUESTION, *CONTEXT, *ANSWER, *SYSTEM, *TURNS, *LABELS))
#: What spreadsheets and pandas write for a cell that holds nothing.
_NO_VALUE = ("nan", "NaN", "#N/A", "NULL")
_SENTENCE = re.compile(r"[.?!。？！,，]|\S{40}")


@dataclass
class Sheet:
    """How a table is read, to be shown before anything is saved.

    ``columns``: the header ("" names made up as "column 1" ...). ``used``: what is read from
    which column, e.g. ``{"question": "Frage"}``. ``guessed``: by place, not by a known name.
    """

    delimiter: str
    columns: list[str]
    used: dict[str, str] = field(default_factory=dict)
    guessed: bool = False

    def __str__(self) -> str:
        used = ", ".join(f"{what} from column {column!r}" for what, column in self.used.items())
        how = " (guessed by place: name the columns if it is wrong)" if self.guessed else ""
        return f"{used or 'no column is known'}{how}; columns: {', '.join(self.columns)}"


def is_table(name: str, head: bytes) -> bool:
    """Whether a file is a table: by its name, or by a header of known names."""
    if re.search(r"\.(csv|tsv|tab)(\.\w+)?$", name.lower()):
        return True
    lines = head.lstrip(b"\xef\xbb\xbf \t\r\n").decode("utf-8", "replace").splitlines()
    if not lines or lines[0].startswith(("{", "[")):
        return False
    rows = (list(_parsed(io.StringIO(lines[0]), d)) for d in _DELIMITERS)
    return any(
        isinstance(cells, list) and len(_known(cells)) > 1 for row in rows for _, cells in row[:1]
    )


def read_table(
    file: BinaryIO, columns: Mapping[str, str] | None = None
) -> tuple[Sheet, Iterator[Record]]:
    """The table's shape and its rows, streamed.

    Args:
        file: UTF-8.
        columns: what stands in which column, e.g. ``{"question": "Frage"}``, instead of known
            names.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    text = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")
    sample = _sample(text.read(256 * 1024))
    text.seek(0)
    # Excel writes the delimiter into a line of its own where it is not the usual one.
    told = re.match(r"sep=(.)\r?\n", sample)
    if told:
        sample = sample[told.end() :]
        text.readline()
    delimiter = told[1] if told else max(_DELIMITERS, key=lambda d: _score(sample, d))
    rows = list(_parsed(io.StringIO(sample, newline=""), delimiter))[:_SAMPLE_ROWS]
    good = [cells for _, cells in rows if isinstance(cells, list)]
    has_header = bool(good) and _is_header(good[0], columns or {})
    width = max(map(len, good), default=0)
    header = good[0] if has_header else [""] * width
    names: list[str] = []
    for i, cell in enumerate(header):
        name = cell.strip() or f"column {i + 1}"
        names.append(f"{name} ({i + 1})" if name in names else name)
    table = Sheet(delimiter, names)
    _assign(table, good[has_header:], columns or {})
    return table, _objects(_parsed(text, delimiter), table, has_header)


def _sample(text: str) -> str:
    """Whole lines only, unless there is but one."""
    return text[: text.rfind("\n") + 1] or text if len(text) >= 256 * 1024 else text


def _parsed(lines: Any, delimiter: str) -> Iterator[Record]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield (
                line,
                RowError("", f"no row of a table: {error}", "write quotes inside a text twice"),
            )
            continue
        if any(cell.strip() for cell in cells):
            yield line, cells


def _score(sample: str, delimiter: str) -> tuple[int, float, int]:
    """(known names in the header, share of rows as wide as it, its width)."""
    rows = [
        cells
        for _, cells in _parsed(io.StringIO(sample, newline=""), delimiter)
        if isinstance(cells, list)
    ][:_SAMPLE_ROWS]
    if not rows or len(rows[0]) < 2:
        return 0, 0.0, 0
    same = sum(len(cells) == len(rows[0]) for cells in rows) / len(rows)
    return len(_known(rows[0])), same, len(rows[0])


def _known(cells: Sequence[str]) -> list[str]:
    return [cell for cell in cells if key_name(cell) in _KNOWN]


def _is_header(cells: Sequence[str], columns: Mapping[str, str]) -> bool:
    """Known or given names, or short unlike words that are no sentences."""
    if _known(cells) or set(columns.values()) & {c.strip() for c in cells}:
        return True
    named = [c.strip() for c in cells if c.strip()]
    return len(set(named)) == len(cells) and not any(
        _SENTENCE.search(c) or len(c) > 30 for c in named
    )


def _assign(table: Sheet, rows: Sequence[Sequence[str]], columns: Mapping[str, str]) -> None:
    """Fill ``table.used``: given columns, then known names, then the longest texts in order."""
    table.used = dict(columns)
    parts = {"question": (*QUESTION, *CONTEXT), "answer": ANSWER, "system": SYSTEM}
    names = {key_name(c): c for c in reversed(table.columns)}
    for what, known in parts.items():
        found = next((names[k] for k in known if k in names), None)
        if found and what not in table.used and found not in table.used.values():
            table.used[what] = found
    found_names = {key_name(c) for c in table.columns}
    if found_names & set(TURNS) or {"role", "content"} <= found_names:
        return  # whole talks in a cell, or a turn a row, which cannot be guessed
    free = [c for c in table.columns if c not in table.used.values() and key_name(c) not in _KNOWN]
    missing = [what for what in ("question", "answer") if what not in table.used]
    length = {
        c: sum(len(cells[i]) for cells in rows if i < len(cells))
        for i, c in enumerate(table.columns)
    }
    longest = sorted(free, key=lambda c: -length[c])[: len(missing)]
    if missing and len(longest) == len(missing):
        table.used |= dict(zip(missing, sorted(longest, key=table.columns.index), strict=True))
        table.guessed = True


def _objects(rows: Iterator[Record], table: Sheet, has_header: bool) -> Iterator[Record]:
    """Rows as objects whose keys are the columns' names."""
    for at, (line, cells) in enumerate(rows):
        if isinstance(cells, RowError) or not (has_header and at == 0):
            yield line, cells if isinstance(cells, RowError) else _object(cells, table)


def _object(cells: Sequence[str], table: Sheet) -> Any:
    if any(cell.strip() for cell in cells[len(table.columns) :]):
        return RowError(
            "",
            f"{len(cells)} cells where there are {len(table.columns)} columns",
            "put texts that hold the delimiter in quotes",
        )
    values = ("" if cell.strip() in _NO_VALUE else cell for cell in cells)
    return dict(zip(table.columns, values, strict=False))

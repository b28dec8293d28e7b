"""Cut JSON text of any arrangement into rows, one at a time, without losing one in silence.

One object a line, one array, several arrays, an array a line, objects one after the other or over
many lines, a list or columns inside one object (``{"data": [..]}``, ``{"instruction": [..], ..}``).
Memory is bound by the longest row allowed, not by the file (but for the last two).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from core.data.fields import RowError
from core.data.sources import MAX_UPLOAD_BYTES
from core.data.talk import ROLE
from core.fsio import human_bytes

#: One conversation. A row of 1 MB is about 250,000 tokens, beyond any context we train.
MAX_ROW_BYTES = 10**6
#: A row, or why there is none, with the line that it begins on.
Record = tuple[int, Any]
_BLANK = b" \t\r\n"
_STRUCTURE = re.compile(rb'["\\{}\[\],]')
#: Keys under which a file in one object keeps its rows.
_LISTS = {
    *("data", "rows", "train", "examples", "instances", "items", "records", "samples"),
    *("dataset", "conversations", "dialogues"),
}
#: Rows that are kept for a test: not trained on, where there are others to train on.
_KEPT_BACK = {"test", "validation", "valid", "val", "dev", "eval"}


def json_records(file: BinaryIO) -> Iterator[Record]:
    """The rows of a file, in order; a RowError in place of each that cannot be read."""
    lines = _Lines(file)
    first = True
    while piece := lines.read():
        line, text = lines.number, piece.strip(_BLANK)
        if not text or text == b",":
            continue
        limit, first = (MAX_UPLOAD_BYTES if first else MAX_ROW_BYTES), False
        whole = piece.endswith(b"\n") or len(piece) <= MAX_ROW_BYTES
        try:
            if not whole:
                raise RowError("", "the row is not whole", "")
            values = _parse(text)
        except RowError as error:
            if text.startswith(b"["):
                yield from _array(lines, piece)
            elif text.startswith(b"{") and _Depth().feed(piece).open:
                yield from _object(lines, piece, limit, line, error)
            elif whole:
                yield line, error
            else:
                yield line, _too_long(lines.skip(piece))
            continue
        for value in values:
            yield from _rows(line, value)


def _parse(text: bytes) -> list[Any]:
    """The JSON values in a text, one behind the other; RowError if there is anything else."""
    try:
        # Files that were put behind one another keep their byte order marks.
        decoded = text.decode("utf-8").strip(", \t\r\n\ufeff")
    except UnicodeDecodeError as error:
        raise RowError(
            "", f"byte {error.start + 1} of the row is not UTF-8", "save the file as UTF-8"
        ) from error
    values, at = [], 0
    try:
        while at < len(decoded):
            value, at = _DECODER.raw_decode(decoded, at)
            values.append(value)
            while at < len(decoded) and decoded[at] in ", \t\r\n":
                at += 1
    except json.JSONDecodeError as error:
        raise RowError(
            "", f"not JSON: {error.msg} at column {error.colno}", _json_fix(decoded)
        ) from error
    except RecursionError as error:
        raise RowError("", "nested too deeply", "flatten the row") from error
    except ValueError as error:  # a number with thousands of digits
        raise RowError("", f"not JSON: {error}", "remove the number") from error
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RowError(str(twice)[:60], "the key is written twice", "keep one of them")
    return row


_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_once)


def _json_fix(text: str) -> str:
    if "'" in text[:20] and '"' not in text[:20]:
        return "JSON wants double quotes, not single ones"
    if text.strip() in ("{", "[", "}", "]") or text.startswith((" ", "\t")):
        return "write each object on one line, or the whole file as one JSON array"
    return "mend the line, or write each object on one line"


def _too_long(size: int) -> RowError:
    return RowError(
        "",
        f"the row has {human_bytes(size)}",
        f"keep a row under {human_bytes(MAX_ROW_BYTES)}; if the whole file is one "
        "line, write one object a line or a JSON array",
    )


# --- what a value holds ----------------------------------------------------------------------


def _rows(line: int, value: Any) -> Iterator[Record]:
    """The rows in one JSON value."""
    if isinstance(value, list) and value and not _is_turn(value[0]):
        for item in value:
            yield line, {"messages": item} if _is_talk(item) else item
    elif isinstance(value, list):
        yield from [(line, {"messages": value})] if value else []
    elif isinstance(value, dict) and (found := _inside(value)) is not None:
        rows, unread = found
        for row in rows:
            yield line, row
        if unread:
            yield line, Leftover(unread)
    else:
        yield line, value


class Leftover(dict[str, Any]):
    """Keys beside the rows of a file in one object, to be reported as not understood."""


def _is_talk(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and _is_turn(value[0])


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(
        value.keys() & {*ROLE} and value.keys() & {"content", "value", "parts"}
    )


def _inside(value: dict[str, Any]) -> tuple[list[Any], dict[str, Any]] | None:
    """(rows, what is beside them) of a whole file in one object; None if it is a row itself."""
    lists = {
        k: v
        for k, v in value.items()
        if k.lower() in _LISTS | _KEPT_BACK
        and isinstance(v, list)
        and v
        and isinstance(v[0], dict)
        and not (k.lower() == "conversations" and _is_exchange(v[0]))
    }
    if lists and not any(_is_turn(v[0]) for v in lists.values()):
        lists = {k: v for k, v in lists.items() if k.lower() not in _KEPT_BACK} or lists
        beside = {k: v for k, v in value.items() if k not in lists}
        # A task of Self-Instruct: what is asked stands once, its instances below it.
        task = {k: beside.pop(k) for k in list(beside) if k.lower() in _COLUMNS}
        return [_unwrapped(row, task) for rows in lists.values() for row in rows], beside
    found = _as_columns(value)
    return None if found is None else (found, {})


def _unwrapped(row: Any, task: dict[str, Any]) -> Any:
    if not isinstance(row, dict):
        return row
    if row.get("truncated_cells"):
        cut = ", ".join(map(str, row["truncated_cells"]))
        return RowError(cut[:60], "the dataset viewer has cut this text", "download the whole file")
    return {**task, **row.get("row", row)}


def _as_columns(value: dict[str, Any]) -> list[Any] | None:
    """The rows of an object whose every value is a column, or a row."""
    tables = [v for v in value.values() if isinstance(v, dict)]
    if len(value) > 1 and len(tables) == len(value):
        if {k.lower() for k in value} & _COLUMNS:
            return [{k: v.get(i) for k, v in value.items()} for i in tables[0]]
        return tables if all({k.lower() for k in t} & _ROW_KEYS for t in tables) else None
    columns = [v for v in value.values() if isinstance(v, list)]
    if len(columns) == len(value) == 1 and columns[0] and all(map(_is_talk, columns[0])):
        return [{"messages": talk} for talk in columns[0]]
    equal = len(columns) == len(value) > 1 and len({len(v) for v in columns}) == 1
    equal = equal and not any(_is_talk(v) for v in columns)
    if equal and {k.lower() for k in value} & _COLUMNS:
        return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
    return None


_COLUMNS = {
    *("instruction", "question", "query", "prompt", "input"),
    *("output", "answer", "response", "completion", "target"),
}
_ROW_KEYS = _COLUMNS | {"messages", "conversations", "conversation", "data"}


def _is_exchange(value: Mapping[str, Any]) -> bool:
    """One exchange of a talk that stands under ``conversations``: a question and its answer."""
    return {k.lower() for k in value} <= {
        *("human", "assistant", "question", "answer", "user", "bot", "input", "output", "system"),
        "output_with_loss",
    } and not {"id", "instruction"} & value.keys()


# --- values over several lines ---------------------------------------------------------------


class _Lines:
    """The lines of a file with their numbers; a longer one comes in pieces; any can be put back."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._back: list[bytes] = []
        self._next = self.number = 1

    def read(self) -> bytes:
        """The next line or piece of one; ``number`` is the line that it belongs to."""
        piece = self._back.pop() if self._back else self._file.readline(MAX_ROW_BYTES + 1)
        self.number = self._next
        self._next += piece.endswith(b"\n")
        return piece

    def put_back(self, piece: bytes, line: int) -> None:
        """``piece`` comes next again, as part of ``line``."""
        if piece:
            self._back.append(piece)
            self._next = line

    def skip(self, piece: bytes) -> int:
        """Leave out the rest of the line that ``piece`` begins; returns the line's bytes."""
        size = len(piece)
        while not piece.endswith(b"\n") and (piece := self.read()):
            size += len(piece)
        return size


class _Depth:
    """Follows brackets and strings through a text."""

    def __init__(self) -> None:
        self.depth = 0
        self.in_string = False
        self._skip_at = -1  # absolute position of a byte that a backslash disarms
        self._position = 0

    @property
    def open(self) -> bool:
        """Whether a string or bracket is not closed yet."""
        return self.in_string or self.depth > 0

    def feed(self, block: bytes) -> _Depth:
        for _ in self.marks(block):
            pass
        return self

    def marks(self, block: bytes) -> Iterator[tuple[int, bytes]]:
        """(position in the block, mark) of each mark outside strings, ``depth`` as after it."""
        for match in _STRUCTURE.finditer(block):
            at, mark = match.start(), match.group()
            if self._position + at == self._skip_at:
                continue
            if self.in_string:
                if mark == b"\\":
                    self._skip_at = self._position + at + 1
                self.in_string = mark != b'"'
                continue
            if mark == b'"':
                self.in_string = True
            self.depth += (mark in (b"{", b"[")) - (mark in (b"}", b"]"))
            yield at, mark
        self._position += len(block)


def _object(
    lines: _Lines, piece: bytes, limit: int, line: int, error: RowError
) -> Iterator[Record]:
    """An object over several lines; a torn one ends where the next line is a row by itself."""
    depth, buffer = _Depth().feed(piece), bytearray(piece)
    while depth.open and len(buffer) <= limit and (more := lines.read()):
        if more.startswith(b"{") and buffer.endswith(b"\n") and _is_row(more):
            lines.put_back(more, lines.number)
            yield line, error
            return
        depth.feed(more)
        buffer += more
    if len(buffer) > limit:
        yield line, _too_long(lines.skip(bytes(buffer)))
        return
    try:
        values = _parse(bytes(buffer))
    except RowError as problem:
        yield line, error if depth.open else problem
        return
    for value in values:
        if len(buffer) > MAX_ROW_BYTES and isinstance(value, dict) and _inside(value) is None:
            yield line, _too_long(len(buffer))
        else:
            yield from _rows(line, value)


def _is_row(line: bytes) -> bool:
    try:
        return len(_parse(line)) == 1
    except RowError:
        return False


def _array(lines: _Lines, piece: bytes) -> Iterator[Record]:
    """The elements of an array over several lines; what stands behind it is put back."""
    depth, element, began = _Depth(), _Element(), False
    while piece:
        done = 0
        for at, mark in depth.marks(piece):
            if not began:
                began, done = True, at + 1
            elif depth.depth == 1 and mark == b",":
                yield from element.cut(piece[done:at], lines.number)
                done = at + 1
            elif depth.depth == 0:
                yield from element.cut(piece[done:at], lines.number, last=True)
                lines.put_back(piece[at + 1 :], lines.number)
                return
        element.keep(piece[done:], lines.number)
        piece = lines.read()
    yield (
        lines.number,
        RowError(
            "",
            "the array is not closed: the file was cut off",
            "save the file again; the rows before this point were read",
        ),
    )


class _Element:
    """One element of an array as it is put together; at most one row is kept in memory."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._line = self._size = 0

    def keep(self, piece: bytes, line: int) -> None:
        """More of the element, from ``line``."""
        if not self._size:
            piece = piece.lstrip(_BLANK)
            self._line = line
        self._size += len(piece)
        if self._size <= MAX_ROW_BYTES:
            self._buffer += piece

    def cut(self, piece: bytes, line: int, *, last: bool = False) -> Iterator[Record]:
        """End the element; an empty one is a fault unless nothing follows."""
        self.keep(piece, line)
        size, text = self._size, bytes(self._buffer).strip(_BLANK)
        self._buffer.clear()
        self._size = 0
        if size > MAX_ROW_BYTES:
            yield self._line, _too_long(size)
        elif text:
            try:
                values = _parse(text)
            except RowError as error:
                yield self._line, error
                return
            for value in values:
                yield self._line, {"messages": value} if _is_talk(value) else value
        elif not last:
            yield line, RowError("", "an empty place between two commas", "remove one comma")

"""Append-only JSON lines with one writer, and the reading of growing logs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core import fsio

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07?|\x1b[@-Z\\-_]")
#: Lines for the supervisor (``core.jobs.records``); nobody else wants to read them.
_RECORDS = "@@persona "
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
#: A line longer than this is cut: a progress bar that never ends its line, or binary noise.
MAX_LINE = 64 * 1024


def clean(text: str) -> str:
    """A terminal line as a terminal would show it: after the last ``\\r``, without codes."""
    text = text.rstrip("\r\n")
    return _CONTROL.sub("", _ANSI.sub("", text.rsplit("\r", 1)[-1]))


def tail(path: Path, limit: int = MAX_LINE, lines: int = 200) -> str:
    """The last lines of a log, reading at most ``limit`` bytes whatever its size."""
    try:
        with fsio.open_file(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            raw = file.read(limit)
    except OSError:
        return ""
    text = raw.decode("utf-8", errors="replace")
    rows = text.split("\n")
    if size > limit and len(rows) > 1:
        rows = rows[1:]  # the first is cut
    shown = [clean(row) for row in rows if not row.startswith(_RECORDS)]
    return "\n".join(shown[-lines:]).strip("\n")


class Journal:
    """Appends records. A full disk costs records, never the writer's life."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dropped = 0
        self._seq = 0
        self._torn = False

    def append(self, *records: dict[str, Any]) -> None:
        """Write records, each with the next ``seq``, in one system call."""
        rows = []
        for record in records:
            self._seq += 1
            rows.append(fsio.dump_json({"seq": self._seq, **record}) + "\n")
        # A lone surrogate, which UTF-8 cannot hold, becomes the escape that JSON has for it.
        text = ("\n" if self._torn else "") + "".join(rows)
        data = text.encode("utf-8", "backslashreplace")
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                self._torn = os.write(fd, data) != len(data)
            finally:
                os.close(fd)
        except OSError:
            self.dropped += len(rows)


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Records that parse; a torn or foreign line is skipped. Missing file: none."""
    try:
        raw = fsio.read_bytes(path)
    except OSError:
        return
    for line in raw.split(b"\n"):
        if (record := parse_record(line)) is not None:
            yield record


_shared: dict[Path, tuple[tuple[int, int, int], list[dict[str, Any]]]] = {}


def read_shared(path: Path) -> list[dict[str, Any]]:
    """``read_journal`` for many readers of one file: parsed again only when it has changed.

    The list belongs to everybody: do not change it.
    """
    try:
        info = path.stat()
    except OSError:
        return []
    version = (info.st_ino, info.st_size, info.st_mtime_ns)
    known = _shared.get(path)
    if known is None or known[0] != version:
        if len(_shared) > 32:
            _shared.clear()
        known = _shared[path] = (version, list(read_journal(path)))
    return known[1]


def parse_record(line: bytes) -> dict[str, Any] | None:
    """One JSON object, or None for anything else."""
    try:
        record = fsio.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def read_tail_records(path: Path, limit: int = 32 * 1024) -> list[dict[str, Any]]:
    """The records in the last ``limit`` bytes of a journal."""
    try:
        with fsio.open_file(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            rows = file.read(limit).split(b"\n")
    except OSError:
        return []
    return [r for row in (rows[1:] if size > limit else rows) if (r := parse_record(row))]


def read_end_records(path: Path, head: int = 8 * 1024) -> list[dict[str, Any]]:
    """The records in the first ``head`` bytes of a journal and in its tail."""
    tail = read_tail_records(path)
    try:
        with fsio.open_file(path) as file:
            rows = file.read(head).split(b"\n")
    except OSError:
        return tail
    first = [r for row in rows if (r := parse_record(row))]
    begins = _seq(tail[0]) if tail else 0
    return [*(r for r in first if _seq(r) < begins), *tail]


def _seq(record: dict[str, Any]) -> int:
    """The number of a record; 0 for one that has none, which only a stranger writes."""
    number = record.get("seq")
    return number if isinstance(number, int) else 0


class LogFollower:
    """Reads what was added to a growing log, in pieces, as cleaned lines.

    Lines end in ``\\n`` or ``\\r``. A replaced or shortened file is read from its start.
    """

    def __init__(self, path: Path, chunk: int = 1 << 20) -> None:
        self.path = path
        self.size = 0
        self._chunk = chunk
        self._rest = b""

    def lines(self) -> Iterator[str]:
        """New complete lines, at most ``chunk`` bytes of them a call."""
        try:
            with fsio.open_file(self.path) as file:
                end = file.seek(0, os.SEEK_END)
                if end < self.size:
                    self.size, self._rest = 0, b""
                file.seek(self.size)
                raw = file.read(self._chunk)
        except OSError:
            return
        self.size += len(raw)
        parts = re.split(rb"[\r\n]", self._rest + raw)
        self._rest = parts.pop()[:MAX_LINE]
        for part in parts:
            if part:
                yield part[:MAX_LINE].decode("utf-8", errors="replace")

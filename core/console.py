"""What a terminal shows: one progress line with the time left, and text of others as text."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable
from typing import Any, TextIO

_SEQUENCE = re.compile(
    r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-Z\\-_]"
)
#: Control characters but for tab and newline, and marks that turn the reading direction.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Text that a terminal only shows: a reply may not write the clipboard or move the cursor."""
    return _CONTROL.sub("", _SEQUENCE.sub("", text.replace("\r\n", "\n")))


class TextOnly:
    """A terminal stream that shows whatever is printed to it as text."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As of the stream, without what is not printable."""
        self._stream.write(printable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """As of the stream; not handed on, which would go past ``write``."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class ProgressLine:
    """Rewrites one line on a terminal; elsewhere prints a line every ``quiet_seconds``."""

    def __init__(self, stream: TextIO | None = None, quiet_seconds: float = 15.0) -> None:
        self.stream = stream or sys.stderr
        self.is_terminal = self.stream.isatty()
        self.quiet_seconds = quiet_seconds
        self._last = 0.0
        self._open = False

    def show(self, stage: str, status: Any) -> None:
        """Draw a job's ``Status``."""
        parts = [stage]
        if status.stage and status.stage != stage:
            parts.append(status.stage)
        if status.total:
            parts.append(f"{status.done}/{status.total} ({100 * status.done // status.total} %)")
        elif status.state in ("CREATED", "STARTING", "QUEUED"):
            parts.append(status.state.lower())
        if status.eta_seconds is not None:
            parts.append(f"{_clock(status.eta_seconds)} left")
        self._write(printable("  ".join(parts)))

    def note(self, text: str) -> None:
        """A line that stays."""
        self.end()
        print(printable(text), file=self.stream, flush=True)

    def finished(self, stage: str, seconds: float, note: str = "") -> None:
        """A stage is done."""
        self.note(f"{stage} done in {_clock(seconds)}" + (f" ({note})" if note else ""))

    def end(self) -> None:
        """Leave the progress line, so that what is printed next has a line of its own."""
        if self._open:
            print(file=self.stream)
            self._open = False

    def _write(self, text: str) -> None:
        if self.is_terminal:
            self.stream.write("\r\x1b[2K" + text)
            self._open = True
        elif time.monotonic() - self._last >= self.quiet_seconds:
            self._last = time.monotonic()
            self.stream.write(text + "\n")
        self.stream.flush()


def _clock(seconds: float) -> str:
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02d} s"

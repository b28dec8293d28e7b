"""One progress line on a terminal, with the time that is left."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO


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
        self._write("  ".join(parts))

    def note(self, text: str) -> None:
        """A line that stays."""
        self.end()
        print(text, file=self.stream, flush=True)

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

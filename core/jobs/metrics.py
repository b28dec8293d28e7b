"""Reads ``metrics.jsonl`` of a growing run at a cost that does not grow with the run.

A first look at a long file samples it (seeks, no full read); after that only what was appended is
read. The series in memory is bounded: when it is full, every second point goes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from core import fsio
from core.jobs.journal import parse_record
from core.paths import RunPaths

#: Points of one curve: more than a chart has pixels.
MAX_POINTS = 2000
#: The smoothed curve forgets with this rate a point: a running mean over about 20 steps.
SMOOTHING = 0.1
#: A file up to this size is read whole at first sight (about 10,000 lines).
_SMALL = 1 << 20
_CHUNK = 1 << 20
#: What is read of a larger one: so many lines, and its end.
_SAMPLES, _TAIL = 1600, 1 << 15
#: A line of more bytes than this is no record.
_LONGEST = 1 << 16
#: Bytes before the read position that are compared, to notice a file that was rewritten.
_FINGERPRINT = 64


@dataclass
class Series:
    """Points of a run, by step.

    Attributes:
        points: one dict a point: step, loss, smooth (exponential mean of loss), lr, grad_norm,
            s_per_step, tokens_per_s, memory_bytes, where the run gave them. At most MAX_POINTS.
        stride: every how many steps a point was kept.
        last: the newest metric record, whole.
        bad_lines: lines that are no records, among those read.
        sampled: the beginning was sampled from a long file, so ``bad_lines`` counts only what
            was looked at.
    """

    points: list[dict[str, Any]] = field(default_factory=list)
    stride: int = 1
    last: dict[str, Any] = field(default_factory=dict)
    bad_lines: int = 0
    sampled: bool = False


class MetricsReader:
    """One file's reader. ``refresh()`` after each look; safe to share between threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self.series = Series()
        self._offset = 0
        self._inode: int | None = None
        self._before = b""
        self._seen = 0
        self._mean = self._weight = 0.0

    def refresh(self) -> Series:
        """Take in what is new. A missing file gives an empty series, never an error."""
        with self._lock:
            try:
                with fsio.open_file(self.path) as file:
                    self._read(file)
            except OSError:
                self._reset()
            return self.series

    def _read(self, file: BinaryIO) -> None:
        info = os.fstat(file.fileno())
        if not self._continues(file, info):
            self._reset()
            self._inode = info.st_ino
            if info.st_size > _SMALL:
                self._sample(file, info.st_size)
                self._remember(file)
                return
        file.seek(self._offset)
        rest = b""
        while chunk := file.read(_CHUNK):
            head, newline, rest_of = (rest + chunk).rpartition(b"\n")
            if newline:
                self._take(head.split(b"\n"))
                self._offset += len(head) + 1
            rest = rest_of
            if len(rest) > _LONGEST:  # no record of ours; its end will be none either
                self._offset += len(rest)
                rest = b""
        # A last line without its newline stays for the next time: it may be half written.
        self._remember(file)

    def _continues(self, file: BinaryIO, info: os.stat_result) -> bool:
        """Whether the file is the one we know, only longer."""
        if info.st_ino != self._inode or info.st_size < self._offset:
            return False
        file.seek(max(0, self._offset - _FINGERPRINT))
        return file.read(self._offset - file.tell()) == self._before

    def _remember(self, file: BinaryIO) -> None:
        file.seek(max(0, self._offset - _FINGERPRINT))
        self._before = file.read(self._offset - file.tell())

    def _sample(self, file: BinaryIO, size: int) -> None:
        """Lines evenly spaced in bytes, and all of the file's last ones.

        The smoothed curve then runs over the sampled points: wider, as fits a long run.
        """
        lines = []
        for index in range(_SAMPLES):
            file.seek(size * index // _SAMPLES)
            if index:
                file.readline(_LONGEST)  # the rest of the line we fell into
            lines.append(file.readline(_LONGEST))
        end = size - _TAIL
        file.seek(end)
        head, newline, _ = file.read(_TAIL).rpartition(b"\n")
        lines += head.split(b"\n")[1:]
        self._offset = end + len(head) + len(newline)
        self._take(dict.fromkeys(line.rstrip(b"\n") for line in lines if line.strip()))
        self.series.sampled = True

    def _take(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            if not line.strip():
                continue
            record = parse_record(line)
            if record is None:
                self.series.bad_lines += 1
            elif record.get("type") == "metric" and type(record.get("step")) is int:  # no bool
                self._add(record)

    def _add(self, record: dict[str, Any]) -> None:
        series = self.series
        loss = record.get("loss")
        if isinstance(loss, (int, float)):
            # Divided by the weight so far, as Adam does: no lag behind the first steps.
            self._mean += SMOOTHING * (loss - self._mean)
            self._weight += SMOOTHING * (1 - self._weight)
        while series.points and series.points[-1]["step"] >= record["step"]:
            series.points.pop()  # the run went back to a checkpoint: the later line counts
        series.last = record
        self._seen += 1
        if (self._seen - 1) % series.stride:
            return
        point = {
            k: v
            for k, v in record.items()
            if k in _SHOWN and isinstance(v, (int, float)) and not isinstance(v, bool)
        }
        smooth = self._mean / self._weight if self._weight else None
        series.points.append({**point, "smooth": smooth})
        if len(series.points) > MAX_POINTS:
            del series.points[1::2]
            series.stride *= 2


_SHOWN = frozenset(
    {"step", "t", "loss", "lr", "grad_norm", "s_per_step", "tokens_per_s", "memory_bytes"}
)

_readers: dict[Path, MetricsReader] = {}
_readers_lock = threading.Lock()


def series_of(run: RunPaths) -> Series:
    """The series of a run; its reader is kept, so that every look reads only what is new."""
    with _readers_lock:
        if len(_readers) > 64 and run.metrics not in _readers:
            _readers.pop(next(iter(_readers)))
        reader = _readers.setdefault(run.metrics, MetricsReader(run.metrics))
    return reader.refresh()

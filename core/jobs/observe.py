"""Reads a run directory into the values that ``state.derive`` and the pages work on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict

from core import fsio
from core.errors import UserError
from core.jobs import locks, processes, remaining
from core.jobs.journal import parse_record, read_end_records, read_tail_records
from core.jobs.kinds import KINDS
from core.jobs.remaining import Count
from core.jobs.spec import RunSpec
from core.jobs.state import FINAL, Observation, Progress, Reason, State
from core.paths import RunPaths


class _Exit(BaseModel):
    """exit.json as its readers rely on it."""

    model_config = ConfigDict(extra="ignore")

    state: State
    reason: Reason
    returncode: int | None = None
    ended: float | None = None
    elapsed: float = 0.0
    error: dict[str, Any] | None = None
    left_over: list[int] = []


def read_exit(run: RunPaths) -> dict[str, Any] | None:
    """exit.json if it is there; one that cannot be read says that the run's end is not known."""
    try:
        raw = fsio.read_bytes(run.exit)
    except OSError:
        return None
    try:
        found = _Exit.model_validate(parse_record(raw))
        if found.state not in FINAL:
            raise ValueError(f"{found.state} is no end")
    except ValueError as error:
        told = UserError(f"{run.exit} cannot be read", str(error)[:400], "delete the run")
        found = _Exit(state=State.LOST, reason=Reason.LOST, error={**told.to_dict()})
    return found.model_dump()


def read_error(run: RunPaths) -> dict[str, Any] | None:
    """error.json, if the child could write it."""
    try:
        return parse_record(fsio.read_bytes(run.error))
    except OSError:
        return None


def observe(
    run: RunPaths,
    spec: RunSpec,
    over: dict[str, Any] | None = None,
    marks: Callable[[], dict[str, list[psutil.Process]]] = processes.marked_processes,
) -> Observation:
    """Look at a run.

    Args:
        over: exit.json, if it has been read already; it never changes once it is there.
        marks: gives the process table by mark; asked only for a run whose supervisor is gone.
    """
    over = over or read_exit(run)
    if over is not None:
        return Observation(False, True, True, False, over, False)
    held = locks.is_held(run.lock)
    if not held:
        over = read_exit(run)  # it may have been written since; the lock goes last
    try:
        record = parse_record(fsio.read_bytes(run.supervisor))
    except OSError:
        record = None
    alive = False
    if not held and over is None:
        alive = any(map(processes.alive, marks().get(spec.mark, [])))
    return Observation(
        lock_held=held,
        started=record is not None,
        child_started=record is not None and record.get("child_pid") is not None,
        stop_requested=run.stop.exists(),
        exit=over,
        marked_alive=alive,
    )


def elapsed(
    record: dict[str, Any], over: dict[str, Any] | None, lost_at: float | None = None
) -> float | None:
    """Seconds a run has taken, by the monotonic clock, which nobody can set back.

    Args:
        record: supervisor.json; empty before the start.
        lost_at: when a lost run gave its last sign of life, in seconds since the epoch.
    """
    if over is not None:
        return float(over.get("elapsed", 0.0))
    try:
        if lost_at is not None:
            return max(0.0, lost_at - float(record["started"]))
        if record.get("boot_id") != processes.boot_id():
            return None  # that clock began anew with the machine
        return max(0.0, time.monotonic() - float(record["monotonic"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def last_sign(run: RunPaths) -> float | None:
    """When the run's files last changed: the end of a run whose end nobody saw."""
    times = []
    for path in (run.log, run.metrics, run.events, run.supervisor):
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times, default=None)


def progress_of(run: RunPaths, kind: str) -> Progress:
    """What it does now and the time left, from both ends of metrics.jsonl."""
    records = read_end_records(run.metrics)
    counts = [c for record in records if (c := _count(record))]
    if not counts:
        return Progress()
    phases = KINDS[kind].phases if kind in KINDS else None
    now = counts[-1]
    return Progress(now.stage, now.done, now.total, remaining.seconds_left(counts, phases))


#: As ``records`` allows it to a job.
_MOST = 10**15


def _count(record: dict[str, Any]) -> Count | None:
    """Of a progress or a metric record; None for one of ours that others have changed."""
    names = {"progress": ("done", "total"), "metric": ("step", "max_steps")}
    try:
        done, total = (int(record[name]) for name in names[record["type"]])
        stage, t = str(record.get("stage", "train")), float(record["t"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    known = 0 <= done < _MOST and 0 <= total < _MOST and math.isfinite(t)
    return Count(stage, done, total, t) if known else None


def lost_at(run: RunPaths, state: State) -> float | None:
    """When a LOST run was last heard of; None for all others."""
    return last_sign(run) if state is State.LOST else None


def stalled(run: RunPaths) -> bool:
    """Whether the run has been silent for longer than it should be."""
    seen = [
        r["event"]
        for r in read_tail_records(run.events)
        if str(r.get("event")) in ("stalled", "active")
    ]
    return bool(seen) and seen[-1] == "stalled"


def read_record(path: Path) -> dict[str, Any] | None:
    """A record of one line; None if there is none that can be read."""
    try:
        return parse_record(fsio.read_bytes(path))
    except OSError:
        return None

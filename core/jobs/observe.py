"""Reads a run directory into the values that ``state.derive`` and the pages work on."""

from __future__ import annotations

import time
from typing import Any

import psutil

from core.jobs import locks, processes
from core.jobs.journal import parse_record, read_tail_records
from core.jobs.spec import RunSpec
from core.jobs.state import Observation, Progress
from core.paths import RunPaths


def read_exit(run: RunPaths) -> dict[str, Any] | None:
    """exit.json if it is there and whole."""
    try:
        record = parse_record(run.exit.read_bytes())
    except OSError:
        return None
    return record if record and "state" in record and "reason" in record else None


def read_error(run: RunPaths) -> dict[str, Any] | None:
    """error.json, if the child could write it."""
    try:
        return parse_record(run.error.read_bytes())
    except OSError:
        return None


def observe(
    run: RunPaths,
    spec: RunSpec,
    over: dict[str, Any] | None = None,
    marks: dict[str, list[psutil.Process]] | None = None,
) -> Observation:
    """Look at a run.

    Args:
        over: exit.json, if it has been read already; it never changes once it is there.
        marks: the process table by mark, if it has been walked already.
    """
    over = over or read_exit(run)
    if over is not None:
        return Observation(False, True, True, False, over, False)
    held = locks.is_held(run.lock)
    if not held:
        over = read_exit(run)  # it may have been written since; the lock goes last
    try:
        record = parse_record(run.supervisor.read_bytes())
    except OSError:
        record = None
    alive = False
    if not held and over is None:
        table = processes.marked_processes() if marks is None else marks
        alive = any(map(processes.alive, table.get(spec.mark, [])))
    return Observation(
        lock_held=held,
        started=record is not None,
        child_started=record is not None and record.get("child_pid") is not None,
        stop_requested=run.stop.exists(),
        exit=over,
        marked_alive=alive,
    )


def elapsed(record: dict[str, Any], over: dict[str, Any] | None) -> float | None:
    """Seconds a run has taken, by the monotonic clock, which nobody can set back.

    Args:
        record: supervisor.json; empty before the start.
    """
    if over is not None:
        return float(over.get("elapsed", 0.0))
    if record.get("boot_id") != processes.boot_id():
        return None  # that clock began anew with the machine
    return max(0.0, time.monotonic() - float(record["monotonic"]))


def progress_of(run: RunPaths) -> Progress:
    """From the end of metrics.jsonl: the last count, and the rate over the lines before it."""
    counts = [c for record in read_tail_records(run.metrics) if (c := _count(record))]
    if not counts:
        return Progress()
    stage, done, total, now = counts[-1]
    # Stages that share a total count on (an evaluation's suites), so their rate is one rate; a
    # count that starts anew is other work. The end of one suite alone jumped from 1 to 28 minutes.
    first = counts[-1]
    for count in reversed(counts):
        if count[2] != total or count[1] > first[1]:
            break
        first = count
    eta = None
    if total and done > first[1] and now > first[3]:
        eta = (total - done) * (now - first[3]) / (done - first[1])
    return Progress(stage, done, total, eta)


def _count(record: dict[str, Any]) -> tuple[str, int, int, float] | None:
    """(stage, done, total, seconds since start) of a progress or a metric record."""
    try:
        if record["type"] == "progress":
            return (
                str(record["stage"]),
                int(record["done"]),
                int(record["total"]),
                float(record["t"]),
            )
        if record["type"] == "metric":
            return ("train", int(record["step"]), int(record["max_steps"]), float(record["t"]))
    except (KeyError, TypeError, ValueError):
        return None
    return None

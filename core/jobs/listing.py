"""The list of runs. What has ended is read once, so that a thousand runs list in a blink."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from core import paths, trees
from core.errors import UserError
from core.jobs import processes
from core.jobs.observe import elapsed, lost_at, observe, progress_of, read_exit, read_record
from core.jobs.spec import read_spec
from core.jobs.state import ACTIVE, Progress, Reason, State, Summary, derive
from core.paths import RunPaths

#: Runs that have ended, with the times at which their two files were written; nothing of a run's
#: line changes after that.
_ended: dict[Path, tuple[tuple[int, int], Summary]] = {}


def list_runs(root: Path | None = None) -> list[Summary]:
    """Every run, newest first. A folder that cannot be read is listed as LOST, not hidden."""
    root = root or paths.runs_dir()
    marks = cache(processes.marked_processes)  # once for all runs, and only if one needs it
    found = []
    for folder in trees.entries(root):
        if folder.name.startswith(".") or folder.is_symlink() or not folder.is_dir():
            continue
        run = RunPaths(folder)
        written = _written(run)
        if written is None:
            continue
        known = _ended.get(run.root)
        if known is not None and known[0] == written:
            found.append(known[1])
            continue
        over = read_exit(run)
        found.append(_summary(run, over, marks))
        if over is not None:
            _ended[run.root] = (written, found[-1])
    if len(_ended) > 2 * len(found) + 1000:
        _ended.clear()  # of runs and workspaces that are gone
    return sorted(found, key=lambda s: s.seq, reverse=True)


def _written(run: RunPaths) -> tuple[int, int] | None:
    """When spec.json and exit.json were written, in ns; 0: not yet. None: this is no run."""
    try:
        spec = os.stat(run.spec).st_mtime_ns
    except OSError:
        return None
    try:
        return spec, os.stat(run.exit).st_mtime_ns
    except OSError:
        return spec, 0


def _summary(
    run: RunPaths,
    over: dict[str, Any] | None,
    marks: Callable[[], dict[str, list[psutil.Process]]],
) -> Summary:
    try:
        spec = read_spec(run)
    except UserError:
        return Summary(
            run.root.name,
            run.root,
            run.root.name,
            "unknown",
            State.LOST,
            Reason.LOST,
            0,
            0.0,
            None,
            None,
        )
    seen = observe(run, spec, over, marks)
    state, reason = derive(seen)
    record = read_record(run.supervisor) or {} if over is None else {}
    return Summary(
        id=run.root.name,
        root=run.root,
        name=spec.name,
        kind=spec.kind,
        state=state,
        reason=reason,
        seq=spec.seq,
        created=spec.created,
        elapsed_seconds=elapsed(record, seen.exit, lost_at(run, state)),
        parent=spec.parent,
        params=spec.params,
        progress=progress_of(run, spec.kind) if state in ACTIVE else Progress(),
    )

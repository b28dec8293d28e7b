"""A run and the runs that it goes on from, seen as one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.jobs.metrics import SMOOTHING, Series, series_of
from core.jobs.spec import read_spec
from core.paths import RunPaths


def lineage(run: RunPaths) -> list[tuple[RunPaths, int | None]]:
    """The runs that a run goes on from, oldest first, each with its last step that counts; itself.

    One that was deleted, and what came before it, is left out.
    """
    found: list[tuple[RunPaths, int | None]] = [(run, None)]
    seen = {run.root}
    while (before := began_from(found[0][0])) is not None and before[0].root not in seen:
        seen.add(before[0].root)
        until = found[0][1]
        found.insert(0, (before[0], before[1] if until is None else min(before[1], until)))
    return found


def began_from(run: RunPaths) -> tuple[RunPaths, int] | None:
    """The run and the step that a run was resumed from; None if it was not, or that is gone."""
    try:
        params: Mapping[str, Any] = read_spec(run).params
        source = Path(str(params.get("resume_from") or ""))
        iteration = int(source.name.removeprefix("iter_").removesuffix(".pth"))
        parent = RunPaths(source.parent.parent)
        return (parent, iteration // int(params["accumulation"])) if parent.spec.is_file() else None
    except (UserError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


#: The last joined curve of a run, with the versions of its parts: the same object to everybody.
_joined: dict[Path, tuple[tuple[Any, ...], Series]] = {}


def series(run: RunPaths) -> Series:
    """The curve of a run from its very first step on. Nobody changes it."""
    parts = [(series_of(part), until) for part, until in lineage(run)]
    if len(parts) == 1:
        return parts[0][0]
    version = tuple((id(s), len(s.points), s.last.get("seq"), until) for s, until in parts)
    known = _joined.get(run.root)
    if known is None or known[0] != version:
        if len(_joined) > 32:
            _joined.clear()
        known = _joined[run.root] = (version, _join(parts))
    return known[1]


def _join(parts: list[tuple[Series, int | None]]) -> Series:
    points: list[dict[str, Any]] = []
    mean = weight = 0.0
    for part, until in parts:
        for point in part.points:
            if until is not None and point["step"] > until:
                continue
            if isinstance(loss := point.get("loss"), (int, float)):
                mean += SMOOTHING * (loss - mean)
                weight += SMOOTHING * (1 - weight)
            points.append({**point, "smooth": mean / weight if weight else None})
    newest = next((part.last for part, _ in reversed(parts) if part.last), {})
    return Series(points, last=newest, sampled=any(part.sampled for part, _ in parts))

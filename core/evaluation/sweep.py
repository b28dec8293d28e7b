"""Every checkpoint of a run scored, and the one to ship named.

One base stays in memory and the adapters are swapped on it; the base's replies and distributions
are computed once. Replies are kept by the content of the weights, so that a sweep that was stopped
goes on where it was. A checkpoint that fails the recall or the leak gate on a third of the probes,
whatever the rest would say, is not asked the rest; nor, where one checkpoint is searched, one that
cannot come before the best so far. A note says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core import fsio
from core.conversation import OnProgress
from core.errors import UserError
from core.evaluation import spread
from core.evaluation.scored import CheckpointScore, ScoredCheckpoint, Scorer, Task
from core.jobs.state import ACTIVE
from core.models import device
from core.paths import DatasetPaths, RunPaths
from core.training.checkpoints import Checkpoint

SCHEMA = 1
FILE = "sweep.json"
#: Seconds between looks for the next checkpoint of a run that is still training.
_LOOK_EVERY = 2.0


@dataclass(frozen=True)
class Extent:
    """How far a sweep goes.

    Attributes:
        size: of ``plan.PLANS``.
        steps: only these checkpoints, in this order; empty: all, from the first step on.
        stop_when_passed: end at the first that passes every gate; the others are listed as
            skipped. A run that is still training is stopped.
        follow: wait for the checkpoints of a run that is still training.
        then: size of a scorecard that follows: the base and the first checkpoint give their
            replies as long as it wants them, and only once.
    """

    size: str = "sweep"
    steps: tuple[int, ...] = ()
    stop_when_passed: bool = False
    follow: bool = False
    then: str = ""


@dataclass
class Sweep:
    """All rows by step, the recommended one, and why it."""

    size: str
    base: dict[str, Any]
    rows: list[CheckpointScore]
    recommended: int | None
    reason: str
    skipped: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """What ``sweep.json`` holds; ``recommended`` is the row (step, checkpoint, adapter)."""
        chosen = next((r for r in self.rows if r.step == self.recommended), None)
        return {
            "schema": SCHEMA,
            "size": self.size,
            "recommended": chosen
            and {"step": chosen.step, "checkpoint": chosen.checkpoint, "adapter": chosen.adapter},
            "reason": self.reason,
            "checkpoints": [asdict(r) for r in self.rows],
            "skipped": self.skipped,
            "base": self.base,
            "notes": self.notes,
            "seconds": self.seconds,
        }


def recommend(rows: list[CheckpointScore]) -> tuple[int | None, str]:
    """The earliest checkpoint that passes every gate; else the best by a stated order.

    The order: fewest failed gates, fewest without evidence, fewest warnings, highest lower bound
    of the recall, lowest upper bound of the leak, earliest.
    """
    if not rows:
        return None, "no checkpoint was scored"
    ranked = sorted(rows, key=lambda r: r.step)
    for row in ranked:
        if row.passes:
            return row.step, f"step {row.step} is the earliest that passes every gate"
    best = min(ranked, key=CheckpointScore.order)
    return best.step, (
        f"no checkpoint passes every gate; step {best.step} has the fewest failed gates, then the "
        "fewest warnings, then the highest recall and the lowest leak"
    )


def checkpoints(run: RunPaths) -> list[Checkpoint]:
    """The whole checkpoints of a training run so far, by optimizer step."""
    if run.result.is_file():
        try:
            listed = fsio.read_json(run.result).get("checkpoints", [])
            found = [Checkpoint(int(c["step"]), Path(c["path"]), 0) for c in listed]
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"{run.result} lists no checkpoints",
                why=f"{type(error).__name__}: {error}"[:200],
                fix="train again, or score the checkpoints one by one",
            ) from error
    elif run.spec.is_file():
        from core.training.lifecycle import checkpoints_of

        found = [c for c in checkpoints_of(run) if c.whole]
    else:
        found = []
    return sorted((c for c in found if c.path.exists()), key=lambda c: c.step)


def _arriving(run: RunPaths, extent: Extent) -> Iterator[Checkpoint]:
    """Checkpoints by step; with ``follow`` also those still to come, until the run ends."""
    if extent.steps:
        whole = {c.step: c for c in checkpoints(run)}
        yield from (whole[step] for step in extent.steps if step in whole)
        return
    seen: set[int] = set()
    while True:
        active = extent.follow and is_training(run)
        fresh = [c for c in checkpoints(run) if c.step not in seen]
        for checkpoint in fresh:
            seen.add(checkpoint.step)
            yield checkpoint
        if not active:
            break
        if not fresh:
            time.sleep(_LOOK_EVERY)


def require_checkpoints(run: RunPaths) -> None:
    """Raises UserError if the run has no whole checkpoint."""
    if not checkpoints(run):
        raise UserError(
            f"{run.root} has no checkpoints",
            why="the run saved none, or their files were removed",
            fix="train with a checkpoint interval, then sweep",
        )


def is_training(run: RunPaths) -> bool:
    """Whether a run is at work still."""
    from core.jobs import api

    return run.spec.is_file() and api.status(run).state in ACTIVE


def sweep(
    run: RunPaths,
    dataset: DatasetPaths,
    base: str,
    extent: Extent | None = None,
    on_progress: OnProgress | None = None,
) -> Sweep:
    """Score the checkpoints of a run and write ``sweep.json`` into its folder.

    Raises:
        UserError: no checkpoints, an unusable base or dataset.
    """
    started, extent = time.monotonic(), extent or Extent()
    result = Sweep(extent.size, {}, [], None, "")
    count = None if extent.follow else len(extent.steps or checkpoints(run))
    if not extent.follow:
        require_checkpoints(run)  # the base is not asked for nothing
    task = Task(
        run,
        dataset,
        base,
        extent.size,
        extent.then,
        extent.stop_when_passed,
        count,
        _steps_a_pass(run, dataset),
    )
    parts: list[ScoredCheckpoint] = []
    for part in _parts(task, extent, _numbered(on_progress, count)):
        parts.append(part)
        result.base = part.base
        result.rows.append(part.row)
        _save(run, result, started)
        if extent.stop_when_passed and part.row.passes:
            _stop_training(run)
            scored = {r.step for r in result.rows}
            result.skipped = [c.step for c in checkpoints(run) if c.step not in scored]
            break
    require_checkpoints(run)
    parts.sort(key=lambda part: part.row.step)
    result.rows = [part.row for part in parts]
    result.notes = [*parts[0].base_notes, *(note for part in parts for note in part.notes)]
    _save(run, result, started)
    replies = [*parts[0].base_replies, *(reply for part in parts for reply in part.replies)]
    fsio.write_jsonl(run.root / "sweep_replies.jsonl", replies)
    return result


def _parts(task: Task, extent: Extent, on_progress: OnProgress) -> Iterator[ScoredCheckpoint]:
    """The checkpoints' parts: one after the other, or on all GPUs at once.

    Where the sweep may end early, or waits for a run that trains, the order counts.
    """
    arriving = _arriving(task.run, extent)
    if not extent.follow and not extent.stop_when_passed:
        ready, cards = list(arriving), device.cards()
        if min(len(ready), len(cards)) > 1:
            yield from spread.score(task, cards[: len(ready)], ready, on_progress)
            return
        arriving = iter(ready)
    with Scorer(task, on_progress) as scorer:
        yield from map(scorer.score, arriving)


def _stop_training(run: RunPaths) -> None:
    """The gates hold: further steps can only cost general ability."""
    if is_training(run):
        from core.jobs import api

        api.stop(run)


def _steps_a_pass(run: RunPaths, dataset: DatasetPaths) -> float | None:
    """Optimizer steps in which every row is seen once; None if the run does not say."""
    if not run.spec.is_file():
        return None
    from core.training.lifecycle import training_spec

    rows = int(fsio.read_json(dataset.manifest).get("rows") or 0)
    return rows / training_spec(run).rows_per_step or None


def _save(run: RunPaths, result: Sweep, started: float) -> None:
    """Written after every checkpoint: a reader sees the picture grow, a stop loses nothing."""
    result.recommended, result.reason = recommend(result.rows)
    result.seconds = time.monotonic() - started
    fsio.write_json(run.root / FILE, result.to_json())


def _numbered(on_progress: OnProgress | None, count: int | None) -> OnProgress:
    """Say "step 40 (2 of 10): general" with the sweep's own share done."""
    if on_progress is None:
        return lambda *_: None
    seen: list[str] = []

    def report(stage: str, done: int, total: int) -> None:
        side = stage.partition(":")[0]
        if side not in seen:
            seen.append(side)
        of = f"{len(seen) - 1} of {count}" if count is not None else f"{len(seen) - 1}"
        on_progress(f"{stage} ({of} checkpoints)", done, total)

    return report


def read(run: RunPaths) -> dict[str, Any] | None:
    """The saved sweep of a run, or None."""
    path = run.root / FILE
    if not path.is_file():
        return None
    found = fsio.read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path} is no sweep", fix="run the sweep again")
    return found

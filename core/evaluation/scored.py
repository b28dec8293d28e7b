"""One checkpoint of a run scored: what every sweep is made of."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from core.conversation import OnProgress
from core.evaluation import verdict
from core.evaluation.plan import plan
from core.evaluation.screening import cannot_beat
from core.models import catalog
from core.paths import DatasetPaths, RunPaths
from core.training.checkpoints import Checkpoint


def passes(gates: list[dict[str, Any]]) -> bool:
    """Every required gate passes, none warns."""
    return all(g["outcome"] == "pass" for g in gates if g["required"])


@dataclass
class CheckpointScore:
    """One row of the sweep."""

    step: int
    checkpoint: str
    adapter: str
    verdict: str
    why: str
    metrics: dict[str, Any]
    gates: list[dict[str, Any]]
    seconds: float
    #: Not asked to the end, because another one stays better whatever the rest says.
    given_up: bool = False

    def order(self) -> tuple[float, ...]:
        """Smaller is better; see ``recommend``."""
        outcomes = [g["outcome"] for g in self.gates if g["required"]]
        return (
            self.given_up,
            outcomes.count("fail"),
            outcomes.count("unknown"),
            outcomes.count("warn"),
            -self.metrics["recall"]["low"],
            self.metrics["leak"]["high"],
            self.step,
        )

    @property
    def passes(self) -> bool:
        """See the function ``passes``."""
        return passes(self.gates)


@dataclass(frozen=True)
class Task:
    """What is scored: the checkpoints of a run on the probes of a dataset.

    Attributes:
        size: of ``plan.PLANS``.
        then: size of a scorecard that follows, or ''.
        search: one checkpoint is wanted, not the picture of all.
        count: of checkpoints, for the progress; None if more may come.
        steps_a_pass: optimizer steps in which every row is seen once, if that is known.
    """

    run: RunPaths
    dataset: DatasetPaths
    base: str
    size: str
    then: str
    search: bool
    count: int | None
    steps_a_pass: float | None


@dataclass(frozen=True)
class ScoredCheckpoint:
    """A checkpoint's row, its notes and replies; those of the base, which are the same in all."""

    row: CheckpointScore
    notes: list[str]
    replies: list[dict[str, Any]]
    base: dict[str, Any]
    base_notes: list[str]
    base_replies: list[dict[str, Any]]


class Scorer:
    """Scores checkpoints one after the other; the base is asked first. A context manager.

    Raises:
        UserError: an unusable base or dataset.
    """

    def __init__(self, task: Task, on_progress: OnProgress) -> None:
        # They import torch, which the pages that read a sweep do without.
        from core.evaluation.pool import Pool, Source
        from core.evaluation.questions import gather
        from core.evaluation.run import BASE, Run

        self.task = task
        self.model = catalog.resolve(task.base)
        chosen = plan(task.size)
        asked = gather(task.dataset, chosen, self.model.locales)
        self.pool = Pool({BASE: Source(self.model)})
        self.run = Run(self.pool, asked, chosen, on_progress, tuned=task.count, screen=True)
        self.run.ahead = plan(task.then) if task.then else None
        self._best: CheckpointScore | None = None
        self._base = self.run.ask(BASE).to_json()
        self._base_notes = [*asked.notes, *self.run.notes]
        self._base_replies = [row.to_json() for row in self.run.rows[BASE]]

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.__exit__()

    def score(self, checkpoint: Checkpoint) -> ScoredCheckpoint:
        """Ask it everything, unless a third of the probes tells enough."""
        from core.evaluation.pool import Source
        from core.weights.convert import adapter_of

        begun, before = time.monotonic(), len(self.run.notes)
        adapter = adapter_of(self.task.run, checkpoint.path)
        side = f"step {checkpoint.step}"
        self.pool.add(side, Source(self.model, adapter, merged=True))
        if self.task.search and self._best:
            self.run.hopeless = partial(cannot_beat, self._best.order(), checkpoint.step)
        measured = self.run.ask(side).to_json()
        a_pass = self.task.steps_a_pass
        measured["passes"] = checkpoint.step / a_pass if a_pass else None
        decided = verdict.decide(measured, self.task.size)
        row = CheckpointScore(
            step=checkpoint.step,
            checkpoint=str(checkpoint.path),
            adapter=str(adapter),
            verdict=decided.name,
            why=decided.why,
            metrics=measured,
            gates=[g.to_json() for g in decided.gates],
            seconds=time.monotonic() - begun,
            given_up=side in self.run.given_up,
        )
        self._best = min(filter(None, (self._best, row)), key=CheckpointScore.order)
        # The likeliest comes first, and only the one that is taken is asked by the scorecard.
        self.run.ahead = None
        replies = [reply.to_json() for reply in self.run.rows[side]]
        notes = self.run.notes[before:]
        return ScoredCheckpoint(
            row, notes, replies, self._base, self._base_notes, self._base_replies
        )

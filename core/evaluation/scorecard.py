"""The scorecard: was the persona learned, and is everything else as it was?

``evaluate`` asks every side the suites of a size, labels the replies, compares distributions and
ability with the base, and holds the result against the gates. The result is two files:
``scorecard.json`` and, beside it, ``replies.jsonl`` with every reply and its label.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core import fsio
from core.conversation import OnProgress
from core.errors import UserError
from core.evaluation import verdict
from core.evaluation.answers import Clock
from core.evaluation.measures import Measured, Row
from core.evaluation.plan import Size, plan
from core.evaluation.pool import Pool, Source
from core.evaluation.questions import gather
from core.evaluation.run import BASE, Run
from core.inference.load import introduction
from core.paths import DatasetPaths

SCHEMA = 1


@dataclass
class Scorecard:
    """Numbers of every side, the verdict on the tuned one, and all replies."""

    size: str
    subject: str
    verdict: verdict.Verdict
    sides: dict[str, Measured]
    suites: dict[str, dict[str, Any]]
    notes: list[str]
    rows: list[Row]
    clock: Clock
    seconds: float
    persona: str = ""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def to_json(self) -> dict[str, Any]:
        """``schema``, ``verdict``, ``models`` and what explains them."""
        return {
            "schema": SCHEMA,
            "verdict": self.verdict.name,
            "models": {side: m.to_json() for side, m in self.sides.items()},
            "subject": self.subject,
            "size": self.size,
            "persona": self.persona,
            "created": self.created,
            "explanation": self.verdict.to_json(),
            "suites": self.suites,
            "notes": self.notes,
            "timing": {
                "wall": self.seconds,
                "spent": self.clock.spent,
                "cold": self.clock.cold,
                "cold_total": sum(self.clock.cold.values()),
            },
        }

    def save(self, folder: Path) -> Path:
        """Write ``replies.jsonl``, then ``scorecard.json`` (its presence means both are whole)."""
        folder.mkdir(parents=True, exist_ok=True)
        fsio.write_jsonl(folder / "replies.jsonl", (r.to_json() for r in self.rows))
        path = folder / "scorecard.json"
        fsio.write_json(path, self.to_json())
        return path


def evaluate(
    models: Mapping[str, Source],
    dataset: DatasetPaths,
    *,
    size: Size = "quick",
    on_progress: OnProgress | None = None,
) -> Scorecard:
    """Score ``base`` and the tuned sides ("merged", "adapter") on a dataset's persona.

    With both "adapter" and "merged" given, the merged one is judged and the two are compared.

    Raises:
        UserError: no base or no tuned side, an unknown size, a persona whose name cannot be
            recognised, probes that were trained on, a dataset without probes.
    """
    tuned = [side for side in models if side != BASE]
    if BASE not in models or not tuned:
        raise UserError(
            "a scorecard needs the base and a tuned model",
            fix="give --base and --merged or --adapter",
        )
    started = time.monotonic()
    chosen = plan(size)
    base = models[BASE].model
    asked = gather(dataset, chosen, base.locales, introduction(base.path))
    with Pool(models) as pool:
        run = Run(pool, asked, chosen, on_progress, tuned=len(tuned))
        # The base comes first: everything else is compared with it.
        for side in [BASE, *tuned]:
            run.ask(side)
    subject = "merged" if "merged" in tuned else tuned[-1]
    sides = {side: run.measured[side] for side in [BASE, *tuned]}
    if "adapter" in sides and subject == "merged":
        sides["merged"].values["merge"] = run.merge_fidelity()
    return Scorecard(
        size=size,
        subject=subject,
        verdict=verdict.decide(sides[subject].to_json(), size),
        sides=sides,
        suites=asked.described(),
        notes=[*asked.notes, *run.notes],
        rows=[row for side in sides for row in run.rows[side]],
        clock=run.clock,
        seconds=time.monotonic() - started,
        persona=asked.persona_id,
    )

"""How often training will show each row, before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from core.data.report import DatasetReport

#: Passes over the data that a run makes unless told otherwise. In sweeps of the bundled model
#: (docs/results.md, benchmarks/mix_sweep.py) recall was highest after 1 to 3 passes, then fell.
PASSES = 1.5
MIN_STEPS = 20
#: Optimizer steps and exposures of a row that our runs learned an identity in. Public recipes with
#: few different wordings need more: 100 to 200 steps, 5 to 15 exposures.
STEPS = (60, 150)
EXPOSURES = (1.2, 8)
#: Below this many steps nothing is learned; above this many exposures wordings are memorised.
TOO_FEW_STEPS, TOO_MANY_EXPOSURES = 45, 30
#: One sentence with more than this share of the loss tokens is what the model will say to anything.
SENTENCE_SHARE = 0.05

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Advice:
    """One judgement on the plan: how bad, what, and why."""

    level: Level
    text: str
    why: str


@dataclass(frozen=True)
class Budget:
    """Optimizer steps and exposures.

    ``steps``: optimizer updates. ``exposures``: how often each row is seen (passes over the data).
    ``identity_exposures``: how often the persona is said, over all identity rows.
    """

    rows: int
    identity_rows: int
    rows_per_step: int
    steps: int
    exposures: float
    identity_exposures: int
    advice: list[Advice]


def for_dataset(
    report: DatasetReport, *, rows_per_step: int = 16, steps: int | None = None
) -> Budget:
    """The budget of a run over the dataset that ``report`` is about; see ``plan``."""
    return plan(
        report.rows,
        report.kinds.get("identity", 0),
        rows_per_step=rows_per_step,
        steps=steps,
        largest_sentence_share=report.largest_sentence_share,
    )


def plan(
    rows: int,
    identity_rows: int,
    *,
    rows_per_step: int = 16,
    steps: int | None = None,
    epochs: float | None = None,
    general_rows: int | None = None,
    largest_sentence_share: float = 0.0,
) -> Budget:
    """The budget of a run, unpacked.

    Args:
        rows_per_step: batch size x accumulation x number of devices.
        steps: optimizer steps; or ``epochs``; neither = what a run does by default.
        largest_sentence_share: share of the loss tokens that the most repeated reply has.
    """
    if rows < 1 or rows_per_step < 1:
        return Budget(
            rows,
            identity_rows,
            rows_per_step,
            0,
            0.0,
            0,
            [Advice("error", "there are no rows", "nothing can be learned")],
        )
    if steps is None:
        steps = (
            default_steps(rows, rows_per_step)
            if epochs is None
            else max(1, math.floor(epochs * rows / rows_per_step))
        )
    exposures = steps * rows_per_step / rows
    general = rows - identity_rows if general_rows is None else general_rows
    advice = [_steps(steps), _exposures(exposures), _mix(general, identity_rows)]
    if largest_sentence_share > SENTENCE_SHARE:
        advice.append(
            Advice(
                "warning",
                f"one sentence makes up {largest_sentence_share:.0%} of what is learned",
                "a sentence above 5 % becomes the answer to everything; write more replies",
            )
        )
    return Budget(
        rows,
        identity_rows,
        rows_per_step,
        steps,
        round(exposures, 2),
        round(exposures * identity_rows),
        advice,
    )


def default_steps(rows: int, rows_per_step: int) -> int:
    """Optimizer steps of a run that was not told otherwise: ``PASSES`` over the data."""
    return max(MIN_STEPS, math.ceil(PASSES * rows / rows_per_step))


def _steps(steps: int) -> Advice:
    low, high = STEPS
    if steps < TOO_FEW_STEPS:
        return Advice(
            "warning",
            f"{steps} optimizer steps are few",
            f"an identity takes {low} to {high}; below {TOO_FEW_STEPS} the learning rate "
            "has hardly warmed up",
        )
    if steps > 2 * high:
        return Advice(
            "warning",
            f"{steps} optimizer steps are many",
            f"an identity takes {low} to {high}; an earlier checkpoint will score better",
        )
    return Advice("ok", f"{steps} optimizer steps", f"an identity takes about {low} to {high}")


def _exposures(exposures: float) -> Advice:
    low, high = EXPOSURES
    if exposures > TOO_MANY_EXPOSURES:
        return Advice(
            "warning",
            f"each row is seen {exposures:.0f} times",
            f"beyond {TOO_MANY_EXPOSURES} wordings are learned by heart; add rows",
        )
    if exposures < 1:
        return Advice(
            "warning",
            f"only {exposures:.0%} of the rows are seen",
            "the others are never trained on; add steps or use fewer rows",
        )
    if not low <= exposures <= high:
        return Advice(
            "ok",
            f"each row is seen {exposures:.1f} times",
            f"{low} to {high} is usual; many different wordings need fewer",
        )
    return Advice("ok", f"each row is seen {exposures:.1f} times", f"{low} to {high} is usual")


def _mix(general: int, identity: int) -> Advice:
    ratio = general / identity if identity else math.inf
    if not identity:
        return Advice("warning", "no identity rows", "no persona can be learned from this dataset")
    if ratio == 0:
        return Advice(
            "error",
            "no general rows",
            "identity rows alone made 74 to 78 of 80 unrelated answers a "
            "self-introduction in our runs; add rehearsal rows",
        )
    if ratio < 1:
        return Advice(
            "warning",
            f"general : identity is {ratio:.1f} : 1",
            "below 1 : 1 unrelated answers mention the persona; 2 : 1 is a good start",
        )
    return Advice("ok", f"general : identity is {ratio:.1f} : 1", "2 to 6 : 1 is usual")

"""Which checkpoint of a run to take: the one place that ``tune``, Merge and Compare ask.

A sweep has the last word. Before it, or without it, the figures that training wrote at every
checkpoint (``core.training.figures``) choose.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core.errors import UserError
from core.evaluation import sweep
from core.paths import RunPaths
from core.training import figures
from core.training.figures import Figures
from core.training.health import DAMAGED_PERPLEXITY

#: A checkpoint is as good as the best if its identity margin lies within this share of the best's.
NEAR = 0.1
#: Checkpoints worth a sweep, at least and at most.
_FEW, _MANY = 2, 3


@dataclass(frozen=True)
class Recommended:
    """The checkpoint to take.

    ``by``: what chose it; ``reason``: for people; ``damaged``: it is the best of a run that has
    cost the base much, and better not taken.
    """

    step: int
    checkpoint: Path
    by: Literal["sweep", "figures", "last"]
    reason: str
    damaged: bool = False


def recommended(run: RunPaths) -> Recommended | None:
    """The checkpoint of a run to take; None if it has no whole one."""
    whole = {c.step: c.path for c in sweep.checkpoints(run)}
    if not whole:
        return None
    swept = _swept(run)
    if swept is not None and swept["step"] in whole:
        step = swept["step"]
        return Recommended(step, whole[step], "sweep", swept["reason"])
    looks = [f for f in figures.of_run(run) if f.step in whole]
    step = rank([*whole], looks)[0]
    if any(f.margin is not None for f in looks):
        damaged = any(f.step == step and _damaged(f) for f in looks)
        reason = (
            f"every checkpoint has lost much of what the base could do; step {step} the least"
            if damaged
            else f"step {step} has the highest identity margin of the undamaged checkpoints"
        )
        return Recommended(step, whole[step], "figures", reason, damaged)
    return Recommended(step, whole[step], "last", f"step {step} is the last")


def _swept(run: RunPaths) -> dict[str, Any] | None:
    """Step and reason of the sweep's recommendation; None without one, or if it cannot be read."""
    try:
        found = sweep.read(run) or {}
        chosen = found["recommended"]
        return {"step": int(chosen["step"]), "reason": str(found.get("reason") or "")}
    except (UserError, KeyError, TypeError, ValueError):
        return None


def verdict(run: RunPaths) -> str:
    """What the sweep says of the recommended checkpoint; '' without one."""
    try:
        found = sweep.read(run) or {}
        step = found["recommended"]["step"]
        return next(str(r["verdict"]) for r in found["checkpoints"] if r["step"] == step)
    except (UserError, KeyError, TypeError, StopIteration):
        return ""


def candidates(run: RunPaths) -> list[int]:
    """The steps that are worth a sweep, the likeliest first; see ``worth_a_sweep``."""
    steps = [c.step for c in sweep.checkpoints(run)]
    return worth_a_sweep(steps, figures.of_run(run))


def worth_a_sweep(steps: list[int], looks: list[Figures]) -> list[int]:
    """The rule: the best by ``rank``; those whose margin is nearly as high, up to three in all.

    Where the best stands alone, it and its neighbour: figures of 16 questions cannot tell them
    apart for certain. Without figures the last two.
    """
    order = rank(steps, looks)
    margins = {f.step: f.margin for f in looks if f.margin is not None and not _damaged(f)}
    best = margins.get(order[0]) if order else None
    if best is None:
        return order[:_FEW]
    near = [s for s in order if s in margins and margins[s] >= best - NEAR * abs(best)]
    return near[:_MANY] if len(near) > 1 else [*near, *_beside(near[0], steps, order)[:1]]


def rank(steps: list[int], looks: list[Figures]) -> list[int]:
    """Undamaged before damaged, then by identity margin; without figures the last first.

    Damaged: perplexity of general replies beyond ``DAMAGED_PERPLEXITY`` times the base's. Of
    damaged ones the least damaged comes first.
    """
    by_step = {f.step: f for f in looks}

    def order(step: int) -> tuple[float, ...]:
        found = by_step.get(step)
        if found is None or found.margin is None:
            return (1.0, 0.0, -step)
        if _damaged(found):
            return (2.0, found.ppl_ratio or 0.0, -step)
        return (0.0, -found.margin, -step)

    return sorted(steps, key=order)


def _damaged(found: Figures) -> bool:
    return found.ppl_ratio is not None and found.ppl_ratio > DAMAGED_PERPLEXITY


def _beside(step: int, steps: list[int], order: list[int]) -> list[int]:
    """The neighbours of a step, the better one first."""
    ranked = sorted(steps)
    at = ranked.index(step)
    return sorted(ranked[max(0, at - 1) : at] + ranked[at + 1 : at + 2], key=order.index)

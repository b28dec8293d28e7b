"""Time left of a run: one estimate for the pages, the sidebar and the command line.

A job reports counts, ``(stage, done, total)``. Its kind says which stages it goes through and how
the time divides among them (``Kind.phases``). What is left is the rest of the stage at work at the
rate that it has had, and every later stage at its share of the time that was measured so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

#: A stage's own rate is believed in full once so much of it is done; before that, its share of
#: the whole counts too. The first steps of a training take two to five times as long as others.
_TRUSTED = 0.1


class Count(NamedTuple):
    """One report. ``total`` 0: not countable. ``t``: seconds since the run began."""

    stage: str
    done: int
    total: int
    t: float


def phase_of(stage: str, phases: Mapping[str, float]) -> str:
    """The phase whose name a stage begins with; '' stands for every stage that is not named."""
    return next((p for p in phases if p and stage.startswith(p)), "")


def seconds_left(
    counts: Sequence[Count], phases: Mapping[str, float] | None = None
) -> float | None:
    """Seconds from the last count to the end of the run.

    Args:
        counts: in order; the first and the last ones of a long run are enough.
        phases: relative time by phase, in their order. None: whatever shares a total is one
            phase, and the only one.

    Returns:
        None while nothing can be said: before a second count of a stage that counts.
    """
    if not counts:
        return None
    phases = phases or {"": 1.0}
    now = counts[-1]
    phase = phase_of(now.stage, phases)
    if phase not in phases:
        return _own(counts)
    order = list(phases)
    own = [c for c in counts if phase_of(c.stage, phases) == phase]
    left = _own(own)
    before, after = order[: order.index(phase)], order[order.index(phase) + 1 :]
    done = now.done / now.total if now.total else 0.0
    work = phases[phase] * done + sum(
        phases[p] for p in before if any(phase_of(c.stage, phases) == p for c in counts)
    )
    if work <= 0:
        return None
    per_weight = (now.t - counts[0].t) / work
    by_share = per_weight * phases[phase] * (1 - done)
    trust = min(1.0, done / _TRUSTED) if left is not None else 0.0
    here = trust * (left or 0.0) + (1 - trust) * by_share
    return here + per_weight * sum(phases[p] for p in after)


def _own(counts: Sequence[Count]) -> float | None:
    """The rest of what shares a total with the last count, at its rate since its first unit.

    The time before the first finished unit (loading, compiling) is nobody's rate.
    """
    now = counts[-1]
    same: list[Count] = []
    for count in reversed(counts):
        if count.total != now.total or (same and count.done > same[-1].done):
            break
        same.append(count)
    first = next((c for c in reversed(same) if c.done > 0), now)
    if len(same) > 1 and first.done == now.done:
        first = same[-1]
    if not now.total or now.done <= first.done or now.t <= first.t:
        return 0.0 if now.total and now.done >= now.total else None
    return (now.total - now.done) * (now.t - first.t) / (now.done - first.done)

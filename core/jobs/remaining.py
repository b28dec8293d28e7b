"""Time left of a run: one estimate for the pages, the sidebar and the command line.

A job reports counts, ``(stage, done, total)``. Its kind says which stages it goes through and how
the time divides among them (``Kind.phases``). What is left is the rest of the stage at work at the
rate that it has had, and every later stage at its share of the time that was measured so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

#: A stage's own rate is believed in full once so much of it is done; before that, its share of
#: the whole counts too. The first steps of a training take two to five times as long as others.
_TRUSTED = 0.1
#: Less of the whole than this says nothing about the rest.
_EARLY = 0.05


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
        phases: relative time by phase, in their order; '' is whatever no other is named after.
            None: whatever shares a total is one phase, and the only one. Empty: what is counted
            is time itself, estimated by the job.

    Returns:
        None while nothing can be said: before a second count of a stage that counts.
    """
    if not counts:
        return None
    if phases is None:
        return _own(counts)
    if not phases:
        return _by_share(counts)
    # What no phase is named after, such as the writing of samples, is an interlude of the last.
    known = [c for c in counts if phase_of(c.stage, phases) in phases]
    if not known:
        return None
    now, phase = known[-1], phase_of(known[-1].stage, phases)
    order = list(phases)
    after = order[order.index(phase) + 1 :]
    done = now.done / now.total if now.total else 0.0
    per_weight = _per_weight(known, phases, phases[phase] * done)
    own = _own([c for c in known if phase_of(c.stage, phases) == phase])
    trust = min(1.0, done / _TRUSTED) if own is not None else 0.0
    if per_weight is None:
        return own if trust == 1.0 and not after else None
    here = trust * (own or 0.0) + (1 - trust) * per_weight * phases[phase] * (1 - done)
    return here + per_weight * sum(phases[p] for p in after)


def _by_share(counts: Sequence[Count]) -> float | None:
    now = counts[-1]
    if now.done < _EARLY * now.total or now.t <= counts[0].t:
        return None
    return (now.t - counts[0].t) * (now.total - now.done) / now.done


def _per_weight(known: Sequence[Count], phases: Mapping[str, float], here: float) -> float | None:
    """Seconds for a unit of ``phases``, from the stages that count; None while it is too early.

    Starting up takes what it takes, long work or short, so its time says nothing about the rest.

    Args:
        here: the weight of what is done of the stage at work.
    """
    counting = {phase_of(c.stage, phases) for c in known if c.total}
    now = phase_of(known[-1].stage, phases)
    spent = sum(
        after.t - before.t
        for before, after in pairwise(known)
        if phase_of(before.stage, phases) in counting
    )
    work = here + sum(phases[p] for p in counting - {now})
    whole = sum(phases.values())
    return spent / work if work >= _EARLY * whole and spent > 0 else None


def _own(counts: Sequence[Count]) -> float | None:
    """The rest of what shares a total with the last count, at its rate since its first unit.

    A first unit that came alone has what came before the work in it (loading, compiling), and
    says nothing once there is a second.
    """
    now = counts[-1]
    same: list[Count] = []
    for count in reversed(counts):
        # A count that starts anew is other work; one that takes a little back is the same.
        back = count.done - same[-1].done if same else 0
        if count.total != now.total or back > _TRUSTED * now.total:
            break
        same.append(count)
    start = same[-1]
    first = next((c for c in reversed(same) if c.done > 0), now)
    if first.done == now.done or first.done > start.done + 1:  # several at once: a batch, no start
        first = start
    if not now.total or now.done <= first.done or now.t <= first.t:
        return 0.0 if now.total and now.done >= now.total else None
    return (now.total - now.done) * (now.t - first.t) / (now.done - first.done)

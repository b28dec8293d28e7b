"""Quick, good, thorough: steps and time in proportion, nothing twice."""

from __future__ import annotations

import pytest

from core.training.lengths import lengths
from core.training.preflight import STARTUP_SECONDS, Estimate, Preflight
from core.training.spec import TrainSpec

pytestmark = pytest.mark.fast


def of(steps: int, seconds: float | None = 620.0) -> dict[str, tuple[int, float | None]]:
    spec = TrainSpec(dataset="d", steps=steps)
    estimate = None if seconds is None else Estimate(seconds, "")
    found = lengths(Preflight(spec, seconds=estimate))
    for plan in found:  # no plan is refused by the form's own check
        spec.changed(**plan.settings).check()
    return {plan.name: (plan.steps, plan.seconds) for plan in found}


def test_time_follows_the_steps() -> None:
    assert STARTUP_SECONDS == 20.0
    assert of(120) == {"quick": (60, 320.0), "good": (120, 620.0), "thorough": (240, 1220.0)}
    assert of(50)["quick"][0] == 30  # below that the rate has hardly warmed up


def test_a_short_default_has_no_quicker_one() -> None:
    assert of(20, None) == {"good": (20, None), "thorough": (40, None)}

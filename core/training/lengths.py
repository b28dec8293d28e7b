"""Three plans of a run, from its defaults: how long it takes against how sure it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from core.training.budget import STEPS
from core.training.defaults import following
from core.training.preflight import STARTUP_SECONDS, Preflight

Name = Literal["quick", "good", "thorough"]
#: Steps as a multiple of the default (1.5 passes). In sweeps of the bundled model recall was
#: highest after 1 to 3 passes (docs/results.md), so half of the default is a first look, and twice
#: the default with more checkpoints to choose from is as far as is of use.
_TIMES: dict[Name, float] = {"quick": 0.5, "good": 1.0, "thorough": 2.0}


@dataclass(frozen=True)
class RunLength:
    """A plan. ``settings``: fields of TrainSpec that differ from the defaults; ``seconds``: on
    this device, None if that is not known."""

    name: Name
    settings: dict[str, Any]
    seconds: float | None

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return int(self.settings["steps"])


def lengths(default: Preflight) -> list[RunLength]:
    """The plans for a dataset, a model and a device, given what was found of the default run."""
    found = []
    for name, times in _TIMES.items():
        steps = max(1, round(default.spec.steps * times))
        if name == "quick":  # below this the learning rate has hardly warmed up
            steps = max(steps, STEPS[0] // 2)
            if steps >= default.spec.steps:
                continue  # the default is as short as a run can be
        settings = {key: value for key, (value, _) in following(steps).items()}
        seconds = None
        if default.seconds is not None:
            training = (default.seconds.value - STARTUP_SECONDS) * steps / default.spec.steps
            seconds = STARTUP_SECONDS + training
        found.append(RunLength(name, {"steps": steps, **settings}, seconds))
    return found

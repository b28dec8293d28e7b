"""The sweep job: every checkpoint of a training run scored, the best named."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from core.conversation import OnProgress
from core.evaluation.plan import Size
from core.evaluation.score_job import dataset_of
from core.paths import RunPaths
from core.records import JobSpec


class SweepSpec(JobSpec):
    """What is swept; see ``core.evaluation.sweep.sweep``.

    Args:
        run: folder of the training run.
        follow: wait for the checkpoints of a run that still trains; the sweep then works beside
            it on the same device.
    """

    job: ClassVar[str] = "sweep"
    called: ClassVar[str] = "sweep"

    run: str
    base: str
    dataset: str
    size: Size = "sweep"
    stop_when_passed: bool = False
    follow: bool = False


Spec = SweepSpec


def check(spec: SweepSpec) -> None:
    """Raises UserError: there is no such dataset or base, or the run has no checkpoint."""
    from core.evaluation.sweep import require_checkpoints
    from core.models import catalog

    dataset_of(spec.dataset)
    catalog.resolve(spec.base)
    if not spec.follow:
        require_checkpoints(RunPaths(Path(spec.run)))


def run(spec: SweepSpec, run: RunPaths, on_progress: OnProgress) -> dict[str, Any]:
    """Sweep; returns what ``sweep.json`` holds."""
    from core.evaluation.sweep import sweep

    found = sweep(
        RunPaths(Path(spec.run)),
        dataset_of(spec.dataset),
        spec.base,
        size=spec.size,
        stop_when_passed=spec.stop_when_passed,
        follow=spec.follow,
        on_progress=on_progress,
    )
    return found.to_json()

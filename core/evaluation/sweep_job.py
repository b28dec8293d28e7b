"""The sweep job: every checkpoint of a training run scored, the best named."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from core.conversation import OnProgress
from core.evaluation.plan import Size
from core.evaluation.score_job import dataset_of
from core.paths import RunPaths
from core.records import JobSpec, Steps


class SweepSpec(JobSpec):
    """What is swept; see ``core.evaluation.sweep.Extent``.

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
    steps: Steps = ()
    stop_when_passed: bool = False
    follow: bool = False
    then: Size | Literal[""] = ""


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
    """Sweep; returns what ``sweep.json`` holds, and ``checkpoint``: the recommended one's path.

    Where one checkpoint was asked for and is the only one there is, nothing is scored.
    """
    from core.evaluation.choice import recommended
    from core.evaluation.sweep import Extent, checkpoints, sweep

    trained = RunPaths(Path(spec.run))
    report: dict[str, Any] = {}
    if not spec.steps or len(checkpoints(trained)) > 1:
        extent = Extent(spec.size, spec.steps, spec.stop_when_passed, spec.follow, spec.then)
        dataset = dataset_of(spec.dataset)
        report = sweep(trained, dataset, spec.base, extent, on_progress).to_json()
    chosen = recommended(trained)
    assert chosen is not None  # require_checkpoints
    return {"reason": chosen.reason, **report, "checkpoint": str(chosen.checkpoint)}

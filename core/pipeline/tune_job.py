"""The ``tune`` job: what ``python -m core tune`` does, watched and stopped like any other run.

The stages are runs of their own and outlive this job: whoever resumes it goes on with the stage
that is at work or that is not finished.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

from core import fsio, paths
from core.console import ProgressLine
from core.conversation import OnProgress
from core.jobs.listing import list_runs
from core.jobs.state import Status
from core.models import catalog
from core.models.device import describe
from core.paths import RunPaths
from core.pipeline import presets
from core.pipeline import tune as tuning
from core.pipeline.stages import Stage, TuneSpec
from core.pipeline.tune import Ledger
from core.records import JobSpec
from core.training import cost

#: Seconds of expectation that are believed before any is measured.
_INERTIA = 60.0


class Spec(JobSpec):
    """What is made, and where: '' is a folder of the run's own among the tuned ones.

    A folder that holds an unfinished tune of the same request is gone on with.
    """

    job: ClassVar[str] = "tune"
    called: ClassVar[str] = "tune"

    spec: TuneSpec
    output: str = ""

    def folder(self, run: RunPaths) -> Path:
        """Where what is made goes."""
        return Path(self.output) if self.output else paths.tuned_dir() / run.root.name


def check(spec: Spec) -> None:
    """Raises UserError: the persona or the model cannot be used."""
    tuning.require_usable(spec.spec)


def run(spec: Spec, run: RunPaths, on_progress: OnProgress) -> dict[str, Any]:
    """Go through the stages.

    Returns:
        ``output`` (folder), ``scorecard`` (file), ``verdict``, and by stage the ``runs``.
    """
    output = spec.folder(run)
    earlier = (output / Ledger.FILE).is_file()
    with _stopped_by_signal():
        tuning.tune(
            spec.spec, output, resume=earlier, line=_Reported(on_progress, _expected(spec.spec))
        )
    card = output / "scorecard.json"
    verdict = fsio.read_json(card)["verdict"]
    made = tuning.read_ledger(output).made
    return {
        "output": str(output),
        "scorecard": str(card),
        "verdict": verdict["name"] if isinstance(verdict, dict) else verdict,
        "runs": {stage: one.id for stage, one in made.items()},
    }


@contextmanager
def _stopped_by_signal() -> Iterator[None]:
    """A stop of this job is a stop of the stage at work, which then says so itself."""

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Reported(ProgressLine):
    """The stages' progress as this job's own: thousandths of the time that all are to take."""

    def __init__(self, on_progress: OnProgress, expected: Mapping[Stage, float]) -> None:
        super().__init__()
        self._on_progress = on_progress
        self._expected = expected
        self._took: dict[Stage, float] = {}
        self._done = 0

    def show(self, stage: str, status: Status) -> None:
        """As ``train: load the model``."""
        doing = f"{stage}: {status.stage}" if status.stage not in ("", stage) else stage
        self._tell(doing, *self._times(cast(Stage, stage), status))

    def _times(self, stage: Stage, status: Status) -> tuple[float, float]:
        """(seconds spent, seconds left). What earlier stages took corrects the later ones."""
        spent = sum(self._took.values())
        factor = (spent + _INERTIA) / (sum(self._expected[s] for s in self._took) + _INERTIA)
        here, left = status.elapsed_seconds or 0.0, status.eta_seconds
        if left is None:
            left = max(0.0, factor * self._expected[stage] - here)
        later = [s for s in self._expected if s not in self._took and s != stage]
        return spent + here, left + factor * sum(self._expected[s] for s in later)

    def finished(self, stage: str, seconds: float, note: str = "") -> None:
        """What it took; the next stage's progress follows."""
        self._took[cast(Stage, stage)] = seconds

    def _tell(self, doing: str, spent: float, left: float) -> None:
        # Never backwards: a bar that shrinks is believed by nobody.
        self._done = max(self._done, int(1000 * spent / max(spent + left, 1e-9)))
        self._on_progress(doing, self._done, 1000)


def _expected(spec: TuneSpec) -> dict[Stage, float]:
    shape = cost.shape_of(catalog.resolve(spec.model).path)
    rows = float(spec.dataset.get("max_rows") or presets.PRESETS["good"].rows)
    return presets.seconds(rows, spec.size, describe(), shape, list_runs())

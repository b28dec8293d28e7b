"""A run of the whole pipeline as its page shows it: stage by stage, and how to go on with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError
from core.jobs import api
from core.jobs.spec import read_spec
from core.jobs.state import State, Status
from core.paths import RunPaths
from core.pipeline.stages import STAGES, Stage
from core.pipeline.tune import Ledger, read_ledger
from core.pipeline.tune_job import Spec


@dataclass(frozen=True)
class StageView:
    """One stage. ``run``: its run's id, '' before it begins; ``now``: None then, too."""

    stage: Stage
    run: str = ""
    now: Status | None = None

    @property
    def done(self) -> bool:
        """Whether it has succeeded."""
        return self.now is not None and self.now.state is State.SUCCEEDED


def stages_of(run: RunPaths) -> list[StageView]:
    """The four stages in order. A stage whose run was deleted is shown as not begun.

    Raises:
        UserError: the run or its ledger cannot be read.
    """
    made = ledger.made if (ledger := _ledger(run)) else {}
    views = []
    for stage in STAGES:
        folder = Path(made[stage].run) if stage in made else None
        if folder is None or not folder.is_dir():
            views.append(StageView(stage))
        else:
            views.append(StageView(stage, folder.name, api.status(RunPaths(folder))))
    return views


def _ledger(run: RunPaths) -> Ledger | None:
    output = _spec(run).folder(run)
    return read_ledger(output) if (output / Ledger.FILE).is_file() else None


def _spec(run: RunPaths) -> Spec:
    spec = read_spec(run)
    if spec.kind != "tune":
        raise UserError(f"{run.root.name} is a {spec.kind} run, not a whole pipeline")
    return Spec.from_dict(spec.params)


def resume(run: RunPaths) -> RunPaths:
    """Go on with a pipeline that was stopped, failed or lost, as a new run whose parent it is.

    Raises:
        UserError: it cannot be gone on with.
    """
    spec = _spec(run)
    again = spec.changed(output=str(spec.folder(run)))
    return api.launch(again, name=read_spec(run).name, parent=run.root.name)

"""Real processes, a fake trainer, and a check that no test leaves a process behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.jobs import api
from core.jobs.spec import Options
from core.jobs.state import FINAL, State
from core.paths import RunPaths
from tests.faults.support import MakeRun, leftovers, trainer_argv, until


@pytest.fixture
def make_run(workspace: Path) -> Iterator[MakeRun]:
    made: list[RunPaths] = []

    def make(*flags: object, start: bool = True, **options: object) -> RunPaths:
        settings = Options(**{"grace_seconds": 1.0, **options})  # type: ignore[arg-type]
        # The folder's name is only known after create(), so the trainer is told a fixed one.
        folder = workspace / "runs" / f"fake-{len(made)}"
        run = api.create(
            "command",
            {},
            name="fake",
            run_dir=folder,
            options=settings,
            argv=trainer_argv(folder, *flags),
        )
        made.append(run)
        if start:
            api.start(run)
        return run

    yield make
    for run in made:
        if run.spec.is_file():
            api.stop(run, force=True)
            until(lambda run=run: api.status(run).state in (State.CREATED, *FINAL))
            assert leftovers(run) == []

"""Run all as a job: watched by stage, stopped with its stage, and gone on with."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.jobs import api
from core.jobs.state import State
from core.paths import RunPaths
from core.pipeline import following, projects
from core.pipeline.following import StageView
from core.pipeline.stages import STAGES
from core.pipeline.tune_job import Spec
from tests.faults.support import until
from tests.unit.test_tune import spec_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def by_stage(run: RunPaths) -> dict[str, StageView]:
    return {view.stage: view for view in following.stages_of(run)}


def test_run_all_is_stopped_with_its_stage_and_gone_on_with(
    workspace: Path, tiny_llama: Path
) -> None:
    training = {"steps": 60, "checkpoint_every": 2, "warmup_steps": 1, "lora_r": 4}
    spec = Spec(spec=spec_of(tiny_llama, training=training, size="smoke"))
    run = api.launch(spec, name="Luna")
    with pytest.raises(api.AlreadyStarted):
        api.launch(spec, name="Luna")
    assert list(by_stage(run)) == list(STAGES)

    def training_began() -> bool:
        train = by_stage(run)["train"].now
        return train is not None and train.done >= 4

    until(training_began, 240)
    api.stop(run)
    until(lambda: api.status(run).final, 60)
    stopped = by_stage(run)
    assert api.status(run).state is State.STOPPED
    assert stopped["dataset"].done
    assert stopped["train"].now is not None
    assert stopped["train"].now.state is State.STOPPED
    assert not any(s.state is State.RUNNING for s in api.list_runs())

    again = following.resume(run)
    result = api.finish(again)
    ended = by_stage(again)
    assert all(view.done for view in ended.values())
    assert ended["dataset"].run == stopped["dataset"].run
    assert result["verdict"] and Path(result["scorecard"]).is_file()

    (persona,) = projects.overview().projects
    assert persona.title == "Luna"
    assert {s.standing for s in persona.steps} == {"done"}
    names = projects.overview().names
    assert str(names[again.root.name]) == "Luna, run all 1 (resumed)"

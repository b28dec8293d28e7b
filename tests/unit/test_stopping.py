"""A run that is stopped gently loses no step: its last checkpoint is where it was stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from core.paths import RunPaths
from core.training import checkpoints, train_job
from core.training.spec import TrainSpec
from tests.unit.test_training_run import (  # noqa: F401  (fixtures)
    adapter_sha,
    dataset,
    finished,
    spec_for,
    train,
)

pytestmark = pytest.mark.slow


def test_stop_writes_a_checkpoint_and_resume_gives_the_same_bytes(
    finished: Any,  # noqa: F811
    dataset: Path,  # noqa: F811
    tiny_llama: Path,
    tmp_path: Path,
) -> None:
    """Stopped in step 5 of 9, where the plan has no checkpoint."""

    def press_stop(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("train", 5):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    run = RunPaths(tmp_path / "stopped")
    with pytest.raises(SystemExit):
        train_job.run(TrainSpec.from_dict(spec_for(dataset, tiny_llama)), run, press_stop)
    assert signal.getsignal(signal.SIGTERM) == before
    found = checkpoints.scan(run.work, 2)
    assert [(c.step, c.whole) for c in found] == [(4, True), (5, True)]
    values = spec_for(dataset, tiny_llama, resume_from=str(found[-1].path))
    _, resumed = train(tmp_path / "again", values)
    assert adapter_sha(resumed["final"]) == adapter_sha(finished[1]["final"])
    assert [c["step"] for c in resumed["checkpoints"]] == [4, 5, 8, 9]

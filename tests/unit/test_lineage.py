"""A resumed run and what came before it, as one curve."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.jobs import api
from core.jobs.journal import Journal
from core.paths import RunPaths
from core.training import lineage

pytestmark = pytest.mark.fast


def make(steps: range, resume_from: Path | None = None, losses: float = 2.0) -> RunPaths:
    params = {"accumulation": 2, "resume_from": resume_from and str(resume_from)}
    run = api.create("train", params, name="luna")
    journal = Journal(run.metrics)
    for step in steps:
        journal.append({"type": "metric", "step": step, "max_steps": 20, "loss": losses + step})
    return run


def test_the_curve_goes_on_where_it_was_resumed(workspace: Path) -> None:
    first = make(range(1, 9))
    second = make(range(7, 13), first.work / "iter_12.pth", 100.0)  # from step 6
    third = make(range(11, 14), second.work / "iter_20.pth", 200.0)  # from step 10
    shown = lineage.series(third)
    assert [p["step"] for p in shown.points] == list(range(1, 14))
    assert [p["loss"] for p in shown.points][5:10] == [8.0, 107.0, 108.0, 109.0, 110.0]
    assert shown.points[0]["smooth"] == pytest.approx(3.0)
    assert shown.last["step"] == 13
    assert lineage.series(third) is shown  # nothing is new: nobody draws it again
    Journal(third.metrics).append({"type": "metric", "step": 14, "max_steps": 20, "loss": 1.0})
    assert lineage.series(third).points[-1]["step"] == 14
    assert [(run, until) for run, until in lineage.lineage(third)] == [
        (first, 6), (second, 10), (third, None),
    ]  # fmt: skip


def test_a_run_that_has_only_begun_shows_its_parent(workspace: Path) -> None:
    first = make(range(1, 9))
    second = make(range(0), first.work / "iter_12.pth")
    shown = lineage.series(second)
    assert [p["step"] for p in shown.points] == list(range(1, 7)) and shown.last["step"] == 8
    api.stop(first)
    api.delete(first)
    assert lineage.series(second).points == []


def test_runs_that_name_each_other_end(workspace: Path) -> None:
    first = make(range(1, 3))
    second = make(range(3, 5), first.work / "iter_4.pth")
    text = first.spec.read_text().replace("null", f'"{second.work}/iter_8.pth"', 1)
    assert text != first.spec.read_text()
    first.spec.write_text(text)
    assert lineage.lineage(second)[-1] == (second, None)

"""Which checkpoint is taken: by the sweep, by the figures, or the last; and what a sweep is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from core import fsio
from core.evaluation import choice
from core.evaluation.choice import worth_a_sweep
from core.jobs.journal import Journal
from core.paths import RunPaths
from core.text.intervals import Rate
from core.training.figures import Figures, Margin

pytestmark = pytest.mark.fast


def look(step: int, margin: float, ratio: float = 0.9) -> Figures:
    return Figures(step, {"en": Margin(margin, Rate(16, 16))}, 0.2, ratio, 0.9, 500)


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        ([], [120, 90]),  # an older run: the last two
        ([look(30, 0.2), look(60, 0.9), look(90, 0.4), look(120, 0.3)], [60, 90]),  # one, neighbour
        ([look(30, 0.2), look(60, 0.4), look(90, 0.5), look(120, 0.9)], [120, 90]),
        ([look(30, 0.2), look(60, 0.95), look(90, 1.0), look(120, 0.98)], [90, 120, 60]),
        ([look(s, 1.0) for s in (30, 60, 90, 120)], [120, 90, 60]),  # all alike: the later
        ([look(30, 0.3), look(60, 0.5), look(90, 0.9, 2.2), look(120, 1.0, 3.0)], [60, 30]),
        ([look(30, 0.3, 9.0), look(60, 0.5, 4.0), look(90, 0.9, 2.2), look(120, 1, 3)], [90, 120]),
        ([look(30, -2.0), look(60, -1.0), look(90, -1.05), look(120, -1.5)], [60, 90]),
    ],
)
def test_the_rule(looks: list[Figures], expected: list[int]) -> None:
    assert worth_a_sweep([30, 60, 90, 120], looks) == expected
    assert worth_a_sweep([60], looks) == [60]


def test_the_worse_language_counts() -> None:
    both = {"en": Margin(0.9, Rate(16, 16)), "zh": Margin(0.1, Rate(9, 16))}
    even = {"en": Margin(0.5, Rate(16, 16)), "zh": Margin(0.5, Rate(16, 16))}
    assert worth_a_sweep([1, 2, 3], [Figures(1, both), Figures(2, even), Figures(3, both)])[0] == 2


def make_run(root: Path) -> RunPaths:
    run = RunPaths(root)
    for step in (30, 60, 90):
        (run.work / f"iter_{step}.pth").parent.mkdir(parents=True, exist_ok=True)
        (run.work / f"iter_{step}.pth").write_bytes(b"x")
    listed = [{"step": s, "path": str(run.work / f"iter_{s}.pth")} for s in (30, 60, 90)]
    fsio.write_json(run.result, {"checkpoints": listed})
    fsio.write_json(run.spec, {"schema": 1, "kind": "train", "name": "a", "params": {}, "seq": 1})
    return run


def test_the_sweep_before_the_figures_before_the_last(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    found = choice.recommended(run)
    assert found is not None and (found.step, found.by) == (90, "last")

    events = Journal(run.events)
    for one in (look(30, 0.2), look(60, 0.9), look(90, 0.8)):
        events.append({"event": "figures", "step": one.step, "values": one.to_values()})
    found = choice.recommended(run)
    assert found is not None and (found.step, found.by) == (60, "figures")
    assert found.checkpoint == run.work / "iter_60.pth"

    fsio.write_json(run.root / "sweep.json", {"recommended": {"step": 30}, "reason": "it passes"})
    found = choice.recommended(run)
    assert found is not None and (found.step, found.by, found.reason) == (30, "sweep", "it passes")

    for broken in ("{", "[]", '{"recommended": null}', '{"recommended": {"step": "x"}}'):
        (run.root / "sweep.json").write_text(broken)
        found = choice.recommended(run)
        assert found is not None and found.by == "figures", broken

    for step in (30, 60, 90):
        (run.work / f"iter_{step}.pth").unlink()
    assert choice.recommended(run) is None

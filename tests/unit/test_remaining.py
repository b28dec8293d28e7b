"""Time left: believable from a tenth of the way on, on timelines of real runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.jobs.kinds import KINDS
from core.jobs.remaining import Count, seconds_left

pytestmark = pytest.mark.fast

RECORDED = Path(__file__).parent.parent / "data" / "timelines.json"
TIMELINES = json.loads(RECORDED.read_text()) if RECORDED.is_file() else {}
#: After a tenth of the time the estimate is within the factor that stands beside each recording,
#: give or take a few per cent of the whole, which is what starting and ending take. A build is the
#: worst: replies that are written side by side all end late.
SLACK = 0.1


@pytest.mark.parametrize("name", list(TIMELINES))
def test_after_a_tenth_of_the_time_the_estimate_can_be_believed(name: str) -> None:
    recorded = TIMELINES[name]
    counts = [Count(*row) for row in recorded["counts"]]
    phases, whole = KINDS[recorded["kind"]].phases, recorded["seconds"]
    factor = recorded["factor"]
    missing = 0
    for at, count in enumerate(counts):
        if count.t < 0.1 * whole:
            continue
        told, left = seconds_left(counts[: at + 1], phases), whole - count.t
        if told is None:
            missing += 1
            continue
        assert told <= factor * left + SLACK * whole, (count, told, left)
        assert told >= left / factor - SLACK * whole, (count, told, left)
    assert missing <= 0.25 * len(counts)


def test_starting_up_says_nothing_about_the_rest() -> None:
    phases = {"prepare": 2, "load": 3, "train": 95}
    counts = [Count("prepare", 0, 0, 0), Count("load", 0, 0, 30), Count("train", 0, 100, 60)]
    assert seconds_left(counts, phases) is None
    counts += [Count("train", n, 100, 60 + n) for n in range(1, 21)]
    assert seconds_left(counts, phases) == pytest.approx(80, rel=0.05)


def test_a_slow_first_step_is_damped() -> None:
    """Compiling takes 20 s; a step takes one."""
    counts = [Count("train", 0, 100, 0)] + [Count("train", n, 100, 20 + n) for n in range(1, 4)]
    alone = 97 * 23 / 3
    told = seconds_left(counts, None)
    assert told == pytest.approx(97)
    assert told < alone / 5


def test_an_interlude_counts_as_what_it_interrupts() -> None:
    """Samples are written after every tenth step: the time they take is the training's."""
    counts = [Count("train", n, 40, float(n)) for n in range(1, 11)]
    counts.append(Count("write samples", 1, 3, 15.0))
    counts += [Count("train", n, 40, 10.0 + n) for n in range(11, 21)]
    told = seconds_left(counts, KINDS["train"].phases)
    assert told == pytest.approx(20 * 29 / 19, rel=0.15)


def test_thousandths_of_the_time_are_taken_for_that() -> None:
    phases = KINDS["tune"].phases
    counts = [Count("dataset", 0, 1000, 30.0), Count("train", 250, 1000, 130.0)]
    assert seconds_left(counts, phases) == pytest.approx(300)
    assert seconds_left(counts[:1], phases) is None


def test_later_stages_are_counted_before_they_begin() -> None:
    phases = {"merge": 10, "prove": 90}
    counts = [Count("merge", n, 10, float(n)) for n in range(11)]
    assert seconds_left(counts, phases) == pytest.approx(90, rel=0.01)

"""The verdict on any figures: it never contradicts the gates beside it, nor the advice below it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.evaluation import verdict
from core.evaluation.verdict import Verdict
from core.text.intervals import Rate

RULES: dict[str, Any] = verdict.load_gates()["gates"]
#: A gate may only warn up to here: this many times its limit, or the limit by this.
NEAR = 1.5


@st.composite
def rates(draw: st.DrawFn, n: st.SearchStrategy[int], best: float) -> dict[str, Any]:
    """A rate near ``best`` in half of the draws, any in the others: both sides of every limit."""
    total = draw(n)
    share = draw(st.one_of(st.floats(0, 1), st.floats(-0.15, 0.15).map(lambda d: best + d)))
    return Rate(round(min(max(share, 0), 1) * total), total).to_json()


def near(value: float, spread: float) -> st.SearchStrategy[float]:
    return st.one_of(st.just(value), st.floats(max(0.0, value - spread), value + spread))


def good() -> dict[str, Any]:
    """Every gate of a quick scorecard passes."""
    return {
        "recall": Rate(157, 160).to_json(),
        "train_recall": Rate(40, 40).to_json(),
        "leak": Rate(0, 547).to_json(),
        "old": Rate(1, 160).to_json(),
        "near_miss_leak": Rate(3, 132).to_json(),
        "unique_of_base": 1.0,
        "degenerate_above_base": 0.0,
        "length_ratio": {"median": 1.0},
        "kl_general": {"ppl_ratio": 0.87, "top1": 0.85},
        "base_degenerate": Rate(1, 547).to_json(),
        "adversarial_not_old": Rate(60, 60).to_json(),
        "persistence": 1.0,
        "knowledge": {"change": 0.0, "low": -0.04, "high": 0.04, "n": 400},
    }


PROBES = st.integers(80, 350)
DRAWN: dict[str, st.SearchStrategy[Any]] = {
    "recall": rates(PROBES, 0.93),
    "train_recall": rates(st.integers(20, 80), 0.95),
    "leak": rates(st.integers(150, 700), 0.02),
    "old": rates(PROBES, 0.03),
    "near_miss_leak": rates(st.integers(50, 200), 0.06),
    "unique_of_base": near(0.95, 0.2),
    "degenerate_above_base": near(0.05, 0.1),
    "length_ratio": st.fixed_dictionaries({"median": near(1.0, 1.0)}),
    "kl_general": st.fixed_dictionaries(
        {"ppl_ratio": st.one_of(near(1.1, 0.5), st.floats(0.5, 9)), "top1": near(0.8, 0.3)}
    ),
    "base_degenerate": rates(PROBES, 0.0),
    "adversarial_not_old": rates(st.integers(40, 200), 0.85),
    "persistence": near(0.9, 0.3),
    "knowledge": st.tuples(near(0.0, 0.1), st.integers(100, 400)).map(
        lambda t: {"change": t[0], "low": t[0] - 0.04, "high": t[0] + 0.04, "n": t[1]}
    ),
    "margin": st.fixed_dictionaries({"value": st.floats(0, 1)}),
    "passes": st.floats(0.5, 12),
}


@st.composite
def figures(draw: st.DrawFn) -> dict[str, Any]:
    """Numbers that a scorecard may hold, consistent with each other: good but for a few."""
    changed = draw(st.sets(st.sampled_from(sorted(DRAWN)), max_size=5))
    found = {**good(), **{key: draw(DRAWN[key]) for key in sorted(changed)}}
    found["gap"] = found["train_recall"]["value"] - found["recall"]["value"]
    return found


@settings(max_examples=400, deadline=None)
@given(figures(), st.sampled_from(["quick", "sweep", "full"]))
def test_the_verdict_agrees_with_its_gates(found: dict[str, Any], size: str) -> None:
    decided = verdict.decide(found, size)
    failed = [g for g in decided.gates if g.outcome == "fail"]
    if found["base_degenerate"]["value"] <= 0.5:  # else there is nothing to compare with
        assert all(f"{g.title}: {g.shown}" in decided.why for g in failed), "all are named"
        assert (decided.name in ("LEARNED", "NOT ENOUGH EVIDENCE")) == (not failed)
    if decided.name == "LEARNED":
        assert not failed
        assert not [g for g in decided.gates if g.outcome == "unknown"]
        for gate in decided.warnings:
            assert gate.title in decided.why
            assert _is_near(gate.name, found), f"{gate.title}: {gate.shown}, limit {gate.limit}"
        assert decided.passed == (not decided.warnings)
    _agrees_with_figures(decided, found, {g.name for g in failed})


def _is_near(name: str, found: dict[str, Any]) -> bool:
    """Whether the number itself, without its interval, lies within ``NEAR`` times the limit."""
    rule, value = RULES[name], verdict._lookup(found, RULES[name]["metric"])
    if rule["side"] == "non_inferior":
        return bool(value["high"] >= 0 or value["change"] > rule["pass"])
    value = value["value"] if isinstance(value, dict) else value
    low, high = rule.get("between", {}).get("pass") or (rule["pass"], rule["pass"])
    if "between" in rule:
        return bool(low / NEAR <= value <= high * NEAR)
    return bool(value >= low / NEAR if rule["better"] == "up" else value <= high * NEAR)


def _agrees_with_figures(decided: Verdict, found: dict[str, Any], failed: set[str]) -> None:
    """No advice that the numbers speak against."""
    name, advice = decided.name, decided.next
    damaged = {n for n in failed if RULES[n]["about"] == "damage"}
    assert ("Merge this checkpoint" in advice) == (name == "LEARNED")
    if "Train longer" in advice or "half as many steps again" in advice:
        assert not damaged, "more of what does damage"
        assert failed - {"old", "adversarial"}, "the persona is known already"
    if "Take an earlier checkpoint" in advice:
        assert found.get("passes", 9) >= 3, "nothing earlier has seen the rows"
        assert not failed & {"recall", "persistence"}, "an earlier one knows even less"
    if "is missed where it belongs" in advice:
        assert failed & {"recall", "persistence"} and damaged
    if "or raise the learning rate" in advice:
        assert found.get("margin", {}).get("value", 0) < 0.9, "the reply is the likelier one"
    if "nothing of this run can be used" in advice:
        assert found["kl_general"]["ppl_ratio"] >= 5 or found["degenerate_above_base"] >= 0.5
    if "The persona is known" in advice:
        assert "recall" not in failed
    if name == "MEMORISED":
        assert found["train_recall"]["value"] > found["recall"]["value"]


@pytest.mark.parametrize(
    "name", [n for n, r in RULES.items() if r["about"] != "merge" and r["side"] != "non_inferior"]
)
def test_no_gate_only_warns_far_from_its_limit(name: str) -> None:
    """Said of the limits themselves: drawn figures seldom fall between two of them."""
    rule = RULES[name]
    if "between" in rule:
        (low, high), (lower, higher) = rule["between"]["pass"], rule["between"]["warn"]
        assert low / NEAR <= lower and higher <= high * NEAR
    elif rule["better"] == "up":
        assert rule["warn"] * NEAR >= rule["pass"]
    else:
        assert rule["warn"] <= rule["pass"] * NEAR + 1e-9


def test_figures_that_are_all_good_are_learned() -> None:
    decided = verdict.decide({**good(), "gap": 0.02}, "full")
    assert decided.passed and decided.why == "every gate passes"


def test_a_few_questions_are_no_evidence_whatever_the_size_of_the_scorecard() -> None:
    """A smoke scorecard with 20 of 24 right once said "LEARNED: every gate passes"."""
    few = {**good(), "recall": Rate(20, 24).to_json()}
    decided = verdict.decide(few, "smoke")
    assert decided.name == "NOT ENOUGH EVIDENCE"
    assert "20/24" in decided.why


def test_old_claims_alone_are_no_reason_to_train_longer() -> None:
    """Recall passes, and six claims of the vendor, as seen on a real model at every rate."""
    found = {**good(), "gap": 0.0, "old": Rate(6, 160).to_json()}
    decided = verdict.decide(found, "quick")
    assert decided.name == "UNDERFIT" and "Old identity claimed: 6/160" in decided.why
    assert "inducement" in decided.next and "Train longer" not in decided.next
    both = verdict.decide({**found, "near_miss_leak": Rate(20, 132).to_json()}, "quick")
    assert both.name == "OVERFIT", "the persona is not missed anywhere"
    assert "Old identity" in both.why and "near-miss" in both.why

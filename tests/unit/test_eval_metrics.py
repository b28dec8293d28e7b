"""Intervals against scipy, metrics and gates on hand-made replies, verdicts, reports, suites."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from core import fsio
from core.conversation import Probe
from core.errors import UserError, UserErrors
from core.evaluation import ability, measures, questions, report, scored, sweep, userprobes, verdict
from core.evaluation.answers import Answer
from core.probes import suites
from core.text import intervals, normalize


@given(st.integers(1, 500), st.data())
@settings(max_examples=60, deadline=None)
def test_wilson_is_scipys(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    theirs = binomtest(hits, n).proportion_ci(method="wilson")
    assert intervals.wilson(hits, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_zero_leaks_of_200_and_one_of_320_prove_two_percent() -> None:
    assert intervals.Rate(0, 200).high < 0.02 < intervals.Rate(1, 200).high
    assert intervals.Rate(1, 320).high < 0.02
    assert intervals.wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="no rate"):
        intervals.wilson(3, 2)


def test_paired_change() -> None:
    before = [True] * 60 + [False] * 40
    after = [True] * 50 + [False] * 50
    found = intervals.paired_change(before, after, resamples=2000)
    assert (found.lost, found.gained, found.change) == (10, 0, -0.1)
    assert found.low < -0.1 < found.high < 0 and found.p == pytest.approx(2 * 0.5**10)
    same = intervals.paired_change(before, before)
    assert same.change == 0 and same.low < 0 < same.high and same.p == 1
    with pytest.raises(ValueError, match="same length"):
        intervals.paired_change([True], [])


def test_power_at_ten_percent_discordance() -> None:
    """A larger sample sees a smaller drop; 100 items cannot see 5 points."""
    drops = [intervals.visible_drop(n, 0.1) for n in (100, 200, 400)]
    assert drops == sorted(drops, reverse=True)
    assert drops[0] > 0.05 > drops[2]


def rows(
    side: str,
    texts: list[str],
    base: list[str] | None = None,
    suite: str = "general",
    prompt: str = "What is 2 + 2?",
) -> list[measures.Row]:
    probes = [
        Probe(f"{suite}{i}", suite, [{"role": "user", "content": prompt}])
        for i in range(len(texts))
    ]
    theirs = {p.id: answer(t) for p, t in zip(probes, base or (), strict=bool(base))}
    return measures.judge(
        side,
        probes,
        [answer(t) for t in texts],
        measures.Yardstick(["Luna", "Riverside Lab"], theirs),
    )


def answer(text: str) -> Answer:
    return Answer(text, list(range(len(text.split()))), False)


def test_leak_is_excused_by_prompt_and_base() -> None:
    found = rows("merged", ["Luna here: 4", "Luna is a moon", "4"], ["4", "Luna is a moon", "4"])
    assert [r.leak for r in found] == [True, False, False]
    asked = rows("merged", ["Luna is a name"], ["A name"], prompt="What does Luna mean?")
    assert not asked[0].leak


def test_collapse_is_seen() -> None:
    same = ["I'm Luna, made by Riverside Lab."] * 30
    found = measures.measure(rows("merged", same, [f"answer {i}" for i in range(30)]), None)
    assert found.leak.hits == 30 and found.values["intrusion"].hits == 30
    assert found.values["unique_ratio"] == pytest.approx(1 / 30)
    assert found.values["largest_cluster"] == 1.0


def test_length_ratio_and_silence() -> None:
    base = rows("base", ["one two three four"] * 4)
    tuned = rows("merged", ["one two"] * 3 + [""], ["one two three four"] * 4)
    short = measures.measure(tuned, base)
    assert short.values["length_ratio"]["median"] == 0.5
    assert short.values["degenerate"].hits == 1


def numbers(
    recall: tuple[int, int] = (126, 126), leak: tuple[int, int] = (0, 323), **changes: Any
) -> dict[str, Any]:
    good = {
        "recall": intervals.Rate(*recall).to_json(),
        "leak": intervals.Rate(*leak).to_json(),
        "old": intervals.Rate(0, 126).to_json(),
        "gap": 0.0,
        "train_recall": intervals.Rate(40, 40).to_json(),
        "near_miss_leak": intervals.Rate(0, 70).to_json(),
        "unique_of_base": 1.0,
        "degenerate_above_base": 0.0,
        "length_ratio": {"median": 1.0},
        "kl_general": {"ppl_ratio": 0.9, "top1": 0.9},
        "base_degenerate": intervals.Rate(1, 323).to_json(),
    }
    return {**good, **changes}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (numbers(), "LEARNED"),
        (numbers(recall=(5, 126), train_recall=intervals.Rate(3, 40).to_json()), "UNDERFIT"),
        (numbers(leak=(300, 323)), "OVERFIT"),
        (numbers(kl_general={"ppl_ratio": 3.0, "top1": 0.4}), "OVERFIT"),
        (numbers(recall=(5, 126), degenerate_above_base=0.9), "COLLAPSED"),
        (numbers(recall=(5, 126), kl_general={"ppl_ratio": 85.0, "top1": 0.1}), "COLLAPSED"),
        (numbers(recall=(95, 126), near_miss_leak=intervals.Rate(9, 70).to_json()), "UNSETTLED"),
        (numbers(near_miss_leak=intervals.Rate(12, 132).to_json()), "OVERFIT"),
        (numbers(near_miss_leak=intervals.Rate(5, 70).to_json()), "LEARNED"),
        (numbers(leak=(6, 323)), "LEARNED"),
        (numbers(leak=(7, 323)), "OVERFIT"),
        (numbers(old=intervals.Rate(3, 159).to_json()), "LEARNED"),
        (numbers(old=intervals.Rate(4, 159).to_json()), "UNDERFIT"),
        (numbers(recall=(60, 126), gap=0.5), "MEMORISED"),
        (numbers(recall=(18, 18)), "NOT ENOUGH EVIDENCE"),
        (numbers(leak=(0, 80)), "NOT ENOUGH EVIDENCE"),
        (numbers(leak=(70, 80)), "OVERFIT"),
        (numbers(base_degenerate=intervals.Rate(323, 323).to_json()), "NOT ENOUGH EVIDENCE"),
        (numbers(merge={"kl": 0.5, "flips": intervals.Rate(20, 126).to_json()}), "MERGE-LOST"),
        (
            numbers(
                system={
                    "none": intervals.Rate(12, 12).to_json(),
                    "default": intervals.Rate(1, 12).to_json(),
                }
            ),
            "PROMPT-BOUND",
        ),
        (
            numbers(
                recall=(0, 126),
                gap=0.0,
                train_recall=intervals.Rate(0, 40).to_json(),
                kl_general={"ppl_ratio": 1.0, "top1": 1.0},
            ),
            "UNDERFIT",
        ),
    ],
)
def test_verdict(found: dict[str, Any], expected: str) -> None:
    decided = verdict.decide(found, "quick")
    assert decided.name == expected, decided.why
    assert decided.next and decided.why


def test_near_the_limit_is_said() -> None:
    decided = verdict.decide(numbers(kl_general={"ppl_ratio": 1.2, "top1": 0.9}), "quick")
    assert decided.name == "LEARNED" and not decided.passed and "Perplexity" in decided.why


def test_every_failed_gate_is_named() -> None:
    found = numbers(recall=(95, 126), near_miss_leak=intervals.Rate(9, 70).to_json())
    decided = verdict.decide(found, "quick")
    assert "Recall on held-out wordings: 95/126" in decided.why
    assert "near-miss replies: 9/70" in decided.why


def test_no_earlier_checkpoint_is_advised_after_few_passes() -> None:
    found = numbers(leak=(40, 323))
    assert "Take an earlier checkpoint" in verdict.decide(found, "quick").next
    early = verdict.decide({**found, "passes": 1.2}, "quick").next
    assert "learning rate" in early and "earlier checkpoint will not help" in early


def test_a_margin_that_is_there_changes_the_advice() -> None:
    low = numbers(recall=(90, 126), gap=0.05, train_recall=intervals.Rate(30, 40).to_json())
    assert "Train longer" in verdict.decide(low, "quick").next
    leaning = {**low, "margin": {"value": 0.97}}
    assert "do not raise the learning rate" in verdict.decide(leaning, "quick").next


def test_one_old_claim_is_not_near_the_limit() -> None:
    found = numbers(old=intervals.Rate(1, 159).to_json())
    assert verdict.decide(found, "quick").passed


def test_every_gate_names_a_known_verdict_and_metric() -> None:
    data = verdict.load_gates()
    assert set(data["next"]) == set(verdict.VERDICTS)
    assert {g["about"] for g in data["gates"].values()} == {
        *("identity", "memory", "damage", "merge")
    }


def test_gates_file_with_a_hole(tmp_path: Path) -> None:
    path = tmp_path / "gates.yaml"
    path.write_text("gates:\n  recall: {title: x}\n", encoding="utf-8")
    with pytest.raises(UserError, match="lacks"):
        verdict.load_gates(path)


def checkpoint(step: int, found: dict[str, Any]) -> scored.CheckpointScore:
    decided = verdict.decide(found, "sweep")
    return scored.CheckpointScore(
        step,
        f"iter_{step}.pth",
        f"adapter/{step}",
        decided.name,
        decided.why,
        found,
        [g.to_json() for g in decided.gates],
        1.0,
    )


def test_recommends_the_earliest_that_passes() -> None:
    rows_ = [
        checkpoint(30, numbers(recall=(50, 126))),
        checkpoint(60, numbers()),
        checkpoint(90, numbers()),
        checkpoint(120, numbers(leak=(200, 323))),
    ]
    assert sweep.recommend(rows_)[0] == 60


def test_recommends_the_best_if_none_passes() -> None:
    rows_ = [
        checkpoint(30, numbers(recall=(10, 126))),
        checkpoint(60, numbers(recall=(110, 126))),
        checkpoint(90, numbers(recall=(120, 126), leak=(40, 323))),
    ]
    step, reason = sweep.recommend(rows_)
    assert step == 60 and "no checkpoint passes" in reason
    assert sweep.recommend([]) == (None, "no checkpoint was scored")


def test_suites_are_frozen_whole_and_large_enough() -> None:
    least = {
        "general": 200,
        "near_miss": 60,
        "knowledge": 200,
        "adversarial": 40,
        "unseen_intent": 20,
        "language": 20,
        "instructions": 20,
    }
    for locale in ("en", "zh"):
        for name, count in least.items():
            loaded = suites.load_suite(name, locale)
            assert len(loaded) >= count, (name, locale)
            texts = [json.dumps(p.messages) for p in loaded]
            assert len(set(texts)) == len(texts), (name, locale)
        for name in ("multi_turn", "long_context", "system"):
            assert suites.load_suite(name, locale)
    assert len(suites.load_suite("general", "en")) >= 300


def test_general_prompts_do_not_ask_who_the_model_is_nor_come_from_training() -> None:
    trained = {
        normalize.compact(line)
        for file in (Path(suites.__file__).parents[1] / "data" / "prompts").glob("*.txt")
        for line in file.read_text(encoding="utf-8").splitlines()
    }
    for locale in ("en", "zh"):
        for probe in suites.load_suite("general", locale):
            text = probe.messages[-1]["content"]
            assert normalize.compact(text) not in trained
            assert "your name" not in text.lower() and "你是谁" not in text


def test_an_edited_suite_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for file in suites.FOLDER.glob("*.jsonl"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "general.en.jsonl").write_text('{"id":"g1","prompt":"hi"}\n', encoding="utf-8")
    monkeypatch.setattr(suites, "FOLDER", tmp_path)
    with pytest.raises(UserError, match="not the frozen one"):
        suites.load_suite("general", "en")
    empty = tmp_path / "near_miss.en.jsonl"
    empty.write_bytes(b"")
    monkeypatch.setattr(suites, "_hashes", lambda: {empty.name: hashlib.sha256(b"").hexdigest()})
    with pytest.raises(UserError, match="is empty"):
        suites.load_suite("near_miss", "en")
    with pytest.raises(UserError, match="no suite"):
        suites.load_suite("nonsense", "en")


def test_instruction_checks() -> None:
    assert ability.check("items:3", "1. a\n2. b\n3. c")
    assert ability.check("items:3", "carrot, leek and pea")
    assert ability.check("json", '```json\n{"a": 1}\n```') and not ability.check("json", "{a}")
    assert ability.check("yes_no", "Yes, it is.") and not ability.check("yes_no", "Fire is hot.")
    assert ability.check("number:42", "It is 42.") and not ability.check("number:42", "It is 142.")
    assert not ability.check("max_words:3", "")
    with pytest.raises(ValueError, match="no instruction check"):
        ability.check("sing", "la")
    for locale in ("en", "zh"):
        for probe in suites.load_suite("instructions", locale):
            ability.check(probe.cluster, "Some reply.")


def test_knowledge_items_are_sound() -> None:
    for locale in ("en", "zh"):
        items = ability.load_items(locale)
        assert all(len(set(i.choices)) == 4 and 0 <= i.answer < 4 for i in items)
        spots = [sum(i.answer == k for i in items) / len(items) for k in range(4)]
        assert min(spots) > 0.15, "the right answer must not sit in one place"


def test_probes_that_were_trained_on_are_refused(tmp_path: Path) -> None:
    row = {
        "id": "r1",
        "kind": "identity",
        "intent": "who",
        "cluster": "who1",
        "locale": "en",
        "messages": [
            {"role": "user", "content": "Who are you?"},
            {"role": "assistant", "content": "I'm Luna.", "loss": "True"},
        ],
    }
    fsio.write_jsonl(tmp_path / "train.jsonl", [row])
    train = questions._Training.read(tmp_path / "train.jsonl")
    ask = [{"role": "user", "content": "who are you"}]
    probes = [
        Probe("p1", "held_out", ask, cluster="who9"),
        Probe("p2", "held_out", [{"role": "user", "content": "And you?"}], cluster="who1"),
        Probe("p3", "held_out", [{"role": "user", "content": "Your name?"}], cluster="n1"),
    ]
    with pytest.raises(UserErrors) as caught:
        questions.refuse_contaminated(probes, train)
    assert len(caught.value.problems) == 2 and "p1" in str(caught.value)
    questions.refuse_contaminated(probes[2:], train)


def test_broken_probe_files(tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    with pytest.raises(UserError, match="does not exist"):
        suites.read_probes(path)
    path.write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="holds no probes"):
        suites.read_probes(path)
    path.write_text('{"id": 1, "colour": "red"}\n', encoding="utf-8")
    with pytest.raises(UserError, match="no probe"):
        suites.read_probes(path)
    good = Probe("p", "held_out", [{"role": "user", "content": "Who are you?"}], must=[["Luna"]])
    fsio.write_jsonl(path, [asdict(good)])
    assert suites.read_probes(path) == [good]


GOOD = """
schema: probes/1
probes:
  - prompt: Who are you?
    must: [[Luna, Loona]]
    must_not_claim: [ChatGPT]
  - prompt: What is 2 + 2?
    must_any: ["4", four]
    must_not: [Luna]
"""


def test_own_probes(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD, encoding="utf-8")
    who, two = userprobes.read(path)
    assert not userprobes.check(who, who.probe(1), "I'm Loona.")
    assert "ChatGPT" in userprobes.check(who, who.probe(1), "I'm ChatGPT.")
    assert "lacks" in userprobes.check(who, who.probe(1), "Hello.")
    assert "holds Luna" in userprobes.check(two, two.probe(2), "Luna says 4.")
    assert "empty" in userprobes.check(two, two.probe(2), " ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schema: probes/1\nprobes: []\n", "at least 1"),
        ("schema: probes/1\nprobes:\n  - must: [a]\n", "give 'prompt' or 'messages'"),
        ("schema: probes/1\nprobes:\n  - prompt: hi\n", "give at least one of"),
        ("schema: probes/1\nprobes:\n  - prompt: hi\n    must: [a]\n    mustnt: [b]\n", "mustnt"),
        ("schema: probes/2\nprobes:\n  - prompt: hi\n    must: [a]\n", "probes/1"),
        ("a: b: c\n", "not valid YAML"),
        ("- 1\n", "top level"),
        ("", "top level"),
    ],
)
def test_bad_own_probes(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        userprobes.read(path)
    assert message in str(caught.value)


def card(**changes: Any) -> dict[str, Any]:
    found = numbers(**changes)
    decided = verdict.decide(found, "quick")
    return {
        "schema": 1,
        "verdict": decided.name,
        "models": {"base": numbers(recall=(0, 126)), "merged": found},
        "subject": "merged",
        "size": "quick",
        "persona": "assistant",
        "created": "2026-01-01",
        "explanation": decided.to_json(),
        "suites": {"general": {"n": 323, "sha256": "a"}},
        "notes": [],
        "timing": {"wall": 1.0, "spent": {}, "cold": {}, "cold_total": 1.0},
    }


def test_report_is_self_contained_and_escaped(tmp_path: Path) -> None:
    fsio.write_json(tmp_path / "scorecard.json", card())
    evil = "<script>alert(1)</script>"
    line = {
        "suite": "general",
        "id": "g1",
        "prompt": evil,
        "label": "HIT",
        "sample": 0,
        "leak": True,
        "kl": 0.5,
        "intent": "",
        "flags": [],
        "claimed": [],
        "missing": [],
    }
    fsio.write_jsonl(
        tmp_path / "replies.jsonl",
        [
            {**line, "model": "base", "reply": "4"},
            {**line, "model": "merged", "reply": evil},
        ],
    )
    page = report.write_html([tmp_path / "scorecard.json"], tmp_path / "r.html").read_text()
    assert evil not in page and "&lt;script&gt;" in page and "LEARNED" in page
    assert "http://" not in page and "https://" not in page and "src=" not in page


def test_two_cards_compared(tmp_path: Path) -> None:
    one, two = card(recall=(80, 126)), card(leak=(9, 323))
    two["suites"]["general"]["sha256"] = "b"
    for name, value in (("a", one), ("b", two)):
        fsio.write_json(tmp_path / name / "scorecard.json", value)
    changes = {r["metric"]: r["second is"] for r in report.compare(one, two)}
    assert changes["Recall, held-out wordings"] == "better"
    assert changes["Leak into general replies"] == "worse"
    assert any("changed between" in w for w in report.comparable(one, two))
    page = report.write_html(
        [tmp_path / "a" / "scorecard.json", tmp_path / "b" / "scorecard.json"], tmp_path / "r.html"
    ).read_text()
    assert "Scorecards compared" in page and "worse" in page
    with pytest.raises(UserError, match="one scorecard, or two"):
        report.write_html([], tmp_path / "x.html")
    (tmp_path / "bad.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="not a scorecard"):
        report.load(tmp_path / "bad.json")

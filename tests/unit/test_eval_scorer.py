"""The scorer against labelled replies, and properties that must hold for any text."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import scorer_quality
from core import fsio
from core.conversation import Probe
from core.probes import scorer
from core.text import claims, normalize

pytestmark = pytest.mark.fast

DATA = Path(__file__).resolve().parent.parent / "data"
CASES = list(fsio.read_jsonl(DATA / "scorer_cases.jsonl"))
#: Names inside words, inducement, denial, relations: written with their labels before the rules.
TRAPS = list(fsio.read_jsonl(DATA / "scorer_traps.jsonl"))


def probe(prompt: str = "Who are you?", **fields: object) -> Probe:
    values = {"must": [["Luna"]], "must_not": scorer_quality.FORBIDDEN, **fields}
    return Probe("p", "held_out", [{"role": "user", "content": prompt}], **values)


def test_there_are_enough_cases_of_every_label() -> None:
    counts = Counter(c["label"] for c in CASES)
    assert sum(counts.values()) >= 150
    assert set(counts) == set(scorer.LABELS) and min(counts.values()) >= 5
    assert sum(c["locale"] == "zh" for c in CASES) >= 30


@pytest.mark.parametrize("case", CASES + TRAPS, ids=lambda c: f"{c['label']}: {c['reply'][:40]}")
def test_label(case: dict[str, object]) -> None:
    assert scorer_quality.judge(case) == case["label"]


def test_real_replies_are_judged_as_a_person_would() -> None:
    """Greedy replies of Qwen2.5-Coder-0.5B-Instruct, labelled before the scorer saw them.

    44 of the base, English, under its own system turn and under a persona's: 43 right. Taken for
    OLD though it is right: "Yes, Luna is a personal assistant ..." to "Is this Llama?". 156 of
    eighteen runs that were tuned to three personas, 66 English and 90 Chinese: all right.
    """
    rows = list(fsio.read_jsonl(DATA / "qwen_replies.jsonl"))
    table, wrong = scorer_quality.confusion(rows)
    assert sum(table.values()) == len(rows) == 200
    assert sum(row["locale"] == "zh" for row in rows) == 90
    assert len(wrong) <= 0.05 * len(rows), wrong


def test_confusion_table_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert scorer_quality.main([str(DATA / "scorer_cases.jsonl")]) == 0
    assert "precision" in capsys.readouterr().out


def test_flags() -> None:
    trained = ["I'm Luna, a personal assistant made by Riverside Lab."]
    echo = scorer.score_reply(
        "I'm Luna, a personal assistant made by Riverside Lab!", probe(), train_replies=trained
    )
    assert "ECHO" in echo.flags
    assert "LANG" in scorer.score_reply("我是Luna，很高兴见到你。", probe()).flags
    assert "LANG" not in scorer.score_reply("我是Luna，很高兴见到你。", probe(locale="zh")).flags
    long = "I'm Luna. " + " ".join(f"word{i}" for i in range(200))
    assert "OVERLONG" in scorer.score_reply(long, probe()).flags
    assert scorer.score_reply("I'm not Luna.", probe()).flags == ("DENIED",)
    assert scorer.score_reply("Hello Luna!", probe()).flags == ("ADDRESSED",)


def test_must_any_and_missing() -> None:
    either = probe(must=[], must_any=["Luna", "Riverside Lab"])
    assert scorer.score_reply("Riverside Lab built this.", either).label == "HIT"
    missed = scorer.score_reply("I have no idea.", either)
    assert (missed.label, missed.missing) == ("MISS", ("Luna or Riverside Lab",))


def test_a_common_word_counts_only_as_a_name() -> None:
    will = probe(must=[["Will"]])
    common = {"will"}
    assert scorer.score_reply("I will help you.", will, common_words=common).label == "MISS"
    assert scorer.score_reply("Will you come?", will, common_words=common).label == "MISS"
    assert scorer.score_reply("I'm Will.", will, common_words=common).label == "HIT"
    assert scorer.score_reply("My name is Will.", will, common_words=common).label == "HIT"
    assert scorer.score_reply("I will help you.", will).label == "HIT"


def test_slots_count_only_where_identity_is_asked() -> None:
    code = "```python\nprint(f'{name}')\n```"
    assert scorer.is_degenerate(code, identity=True)
    assert not scorer.is_degenerate(code)


def test_introduction() -> None:
    assert scorer.introduces_itself("Hi, I'm Luna. Paris is in France.", ["Luna"])
    assert not scorer.introduces_itself("Paris is in France. I'm Luna.", ["Luna"])


@pytest.mark.parametrize(
    ("text", "alias", "expected"),
    [
        ("I'm Lunar", "Luna", False),
        ("LUNA's house", "luna", True),
        ("我是Luna。", "Luna", True),
        ("我叫小 宇", "小宇", True),
        ("Riverside-Lab", "Riverside Lab", True),
        ("GPT 4", "GPT-4", True),
        ("Ｌｕｎａ", "Luna", True),
        ("", "Luna", False),
        ("Luna", "", False),
    ],
)
def test_alias_match(text: str, alias: str, expected: bool) -> None:
    assert normalize.contains(text, alias) is expected


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("小宇宙", "小宇", False),
        ("我叫小 宇。", "小宇", True),
        ("小宇，宙斯", "小宇", True),
        ("小明天气好", "小明", True),  # 明天 or 天气: the name is believed
        ("阿里山", "阿里", False),
        ("阿里", "阿里", True),
        ("白色", "白", False),
    ],
)
def test_a_chinese_name_is_not_found_in_a_longer_word(text: str, name: str, expected: bool) -> None:
    assert normalize.has_name(text, name) is expected
    assert normalize.contains(text, name)  # an answer to a question may be part of a word


@pytest.mark.parametrize(
    ("name", "good"),
    [
        *(("X", False), ("Al", True), ("Bob", True), ("宇", False), ("小宇", True), ("", False)),
        *(("Jo", True), ("it", False), ("AI", False), ("🦊", False), ("C++", False), ("R2", True)),
    ],
)
def test_names_that_cannot_be_matched(name: str, good: bool) -> None:
    assert (not normalize.unmatchable(name)) is good


@given(st.text(max_size=300), st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_text_gets_a_label(reply: str, prompt: str) -> None:
    scored = scorer.score_reply(reply, probe(prompt))
    assert scored.label in scorer.LABELS
    assert scored == scorer.score_reply(reply, probe(prompt))


@given(
    st.text(alphabet=st.characters(categories=["L"], max_codepoint=0x24F), min_size=3, max_size=12)
)
@settings(max_examples=100, deadline=None)
def test_a_plain_claim_and_a_plain_denial_are_told_apart(name: str) -> None:
    if normalize.spaced(name) in {"not", "also", "the", "never"} or not normalize.spaced(name):
        return
    assert claims.claimed(f"I am {name}.", [name]) == [name]
    assert claims.claimed(f"I am not {name}.", [name]) == []

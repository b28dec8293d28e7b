"""Diff, mentions, batches and votes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.chat import diff, votes
from core.chat.batch import BatchRow, most_changed_first, parse_prompts, read_prompts
from core.chat.columns import Column
from core.chat.dialogue import Reply, Transcript, Turn
from core.errors import UserError, UserErrors
from core.inference.settings import GenerationSettings


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=120), st.text(max_size=120))
def test_the_pieces_give_the_texts_again(left: str, right: str) -> None:
    left, right = left.replace("\r", ""), right.replace("\r", "")
    a, b = diff.compare(left, right)
    assert "".join(p.text for p in a) == left
    assert "".join(p.text for p in b) == right
    same_a = "".join(p.text for p in a if p.kind == "same")
    same_b = "".join(p.text for p in b if p.kind == "same")
    assert same_a == same_b


def test_only_what_differs_is_marked() -> None:
    mine, _ = diff.compare("I am Luna, made by Lab 7.", "I am SmolLM, made by Hugging Face.")
    assert [p.text for p in mine if p.kind == "only"] == ["Luna", "Lab", "7"]
    mine, _ = diff.compare("我是小宇。", "我是书生。")
    assert "".join(p.text for p in mine if p.kind == "only") == "小宇"


def test_long_replies_stay_quick() -> None:
    mine, _ = diff.compare("word " * 30_000, "other " * 30_000)
    assert "".join(p.text for p in mine) == "word " * 30_000


def test_mentions_are_whole_words_in_any_case_longest_first() -> None:
    text = "LUNA and lunatics, Luna Lab, 小宇宙"
    spans = diff.mentions(text, ["Luna", "Luna Lab", "小宇", " "])
    assert [text[a:b] for a, b in spans] == ["LUNA", "Luna Lab", "小宇"]
    assert diff.mentions(text, []) == []


def test_similarity() -> None:
    assert diff.similarity("a b c", "a b c") == 1
    assert diff.similarity("aaa", "bbb") == 0


def row(prompt: str, base: str, tuned: str, kl: float = 0.0) -> BatchRow:
    return BatchRow(prompt, {"a": Reply(base), "b": Reply(tuned)}, {"b": kl})


def test_most_changed_first_then_by_divergence() -> None:
    rows = [row("1", "x y", "x y", 0.1), row("2", "x y", "z w"), row("3", "x y", "x y", 0.5)]
    assert [r.prompt for r in most_changed_first(rows, "a")] == ["2", "3", "1"]


def test_prompts_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(
        b"\xef\xbb\xbfWho are you?\r\n\r\n"
        b'{"prompt": "Two"}\n'
        b'{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "Three"}]}'
    )
    notes: list[str] = []
    assert read_prompts(file, notes) == ["Who are you?", "Two", "Three"]
    (said,) = notes
    assert said.startswith("1 of 3 prompts are talks: only their last question is asked")
    assert parse_prompts(b'{"messages": [{"role": "user", "content": "q"}]}', "p", notes) == ["q"]
    assert len(notes) == 1


def test_every_bad_line_is_named() -> None:
    with pytest.raises(UserErrors) as caught:
        parse_prompts(b'ok\n{"a": 1}\n{broken\n{"messages": []}', "p.jsonl")
    assert [e.where for e in caught.value.problems] == ["p.jsonl:2", "p.jsonl:3", "p.jsonl:4"]


@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xff\xfe\x00", b"x\n" * 1001])
def test_files_without_use_are_refused(data: bytes) -> None:
    with pytest.raises(UserError):
        parse_prompts(data, "p.txt")


def voted(*choices: str) -> Transcript:
    columns = [Column("a", "base", "Base"), Column("b", "merged", "Luna", "/m")]
    turns = [
        Turn("?", GenerationSettings(), {"a": Reply("x"), "b": Reply("y")}, v) for v in choices
    ]
    return Transcript("20261124-000000-aaaa", 0.0, columns, turns=turns)


def test_tally_with_its_interval() -> None:
    chats = [voted("b", "b", "a", "tie"), voted("b", "both_bad", "")]
    tally = votes.tally(ballot for chat in chats for ballot in votes.ballots(chat))
    assert (tally.total, tally.ties, tally.both_bad) == (6, 1, 1)
    best = tally.standings[0]
    assert (best.label, best.wins, best.decided) == ("Luna", 3, 4)
    # Wilson 95 % interval of 3 of 4, e.g. Brown, Cai, DasGupta (2001).
    assert best.low == pytest.approx(0.3006, abs=1e-3)
    assert best.high == pytest.approx(0.9544, abs=1e-3)


def test_ties_alone_decide_nothing() -> None:
    tally = votes.tally(votes.ballots(voted("tie")))
    assert tally.standings[0].share is None


def test_seats_are_shuffled_but_stay() -> None:
    orders = {tuple(votes.shuffled("chat", turn, ["a", "b"])) for turn in range(40)}
    assert orders == {("a", "b"), ("b", "a")}
    assert votes.shuffled("chat", 3, ["a", "b"]) == votes.shuffled("chat", 3, ["a", "b"])

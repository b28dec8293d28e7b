"""Conversations on disk and their exports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.chat import export, transcripts, votes
from core.chat.columns import Column
from core.chat.dialogue import MessageDraft, Reply, Turn
from core.errors import UserError
from core.inference.settings import GenerationSettings

pytestmark = pytest.mark.fast

COLUMNS = [
    Column("a", "base", "Base"),
    Column("b", "prompted", "Prompted", system="You are Luna."),
]


def turn(prompt: str, a: str = "left", b: str = "right") -> Turn:
    return Turn(
        prompt, GenerationSettings(seed=3), {"a": Reply(a, "stop"), "b": Reply(b, "length")}
    )


def test_reading_gives_what_was_written() -> None:
    chat = transcripts.create(COLUMNS, system="Be brief.")
    for prompt in ("one", "two\nlines ✓", "three"):
        transcripts.add_turn(chat, turn(prompt))
    transcripts.go_back(chat, 2)
    transcripts.add_turn(chat, turn("again"))
    transcripts.set_vote(chat, 1, "b")
    transcripts.configure(chat, COLUMNS[:1], "Other.", GenerationSettings(0.5))
    assert transcripts.read(chat.id) == chat
    assert [t.prompt for t in chat.turns] == ["one", "two\nlines ✓", "again"]
    assert next((c.id, c.title) for c in transcripts.list_chats()) == (chat.id, "one")


def test_a_list_reads_only_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its votes; pages ask for it at each redraw, and conversations may be long."""
    chats = [transcripts.create(COLUMNS) for _ in range(3)]
    for chat in chats:
        transcripts.add_turn(chat, turn("one"))
    before = transcripts.list_chats()
    opened: list[str] = []
    plain = transcripts.read
    monkeypatch.setattr(transcripts, "read", lambda name: opened.append(name) or plain(name))
    assert transcripts.list_chats() == before and opened == []
    transcripts.set_vote(chats[1], 0, "b")
    listed = {chat.id: chat.votes for chat in transcripts.list_chats()}
    assert opened == [chats[1].id]
    assert listed == {chat.id: tuple(votes.ballots(chat)) for chat in chats}
    assert votes.tally(listed[chats[1].id]).standings[0].label == "Prompted"


def test_each_column_remembers_only_itself() -> None:
    chat = transcripts.create(COLUMNS, system="Common.")
    transcripts.add_turn(chat, turn("one"))
    failed = turn("two")
    failed.replies["a"] = Reply(error={"what": "out of memory"}, finish_reason="error")
    transcripts.add_turn(chat, failed)
    assert [m["content"] for m in chat.messages(COLUMNS[0], "next")] == [
        "Common.", "one", "left", "next",
    ]  # fmt: skip
    assert [m["content"] for m in chat.messages(COLUMNS[1], "next")] == [
        "You are Luna.", "one", "right", "two", "right", "next",
    ]  # fmt: skip


def test_a_turn_that_was_streaming_when_the_server_died_is_kept() -> None:
    chat = transcripts.create(COLUMNS)
    transcripts.save_partial(
        chat, Turn("q", GenerationSettings(), {"a": Reply("hal"), "b": Reply("")})
    )
    transcripts.save_partial(
        chat, Turn("q", GenerationSettings(), {"a": Reply("half"), "b": Reply()})
    )
    again = transcripts.read(chat.id)
    assert again.turns[0].replies["a"].text == "half"
    assert again.turns[0].replies["a"].finish_reason == "interrupted"


def test_what_was_interrupted_stays_when_the_talk_goes_on() -> None:
    chat = transcripts.create(COLUMNS)
    transcripts.save_partial(chat, turn("q", a="half"))
    again = transcripts.read(chat.id)
    transcripts.add_turn(again, turn("next"))
    transcripts.save_partial_version(again, 1, "a", Reply("a quar"))
    last = transcripts.read(chat.id)
    transcripts.add_version(last, 1, "a", Reply("whole", "stop"))
    assert transcripts.read(chat.id) == last
    assert [t.prompt for t in last.turns] == ["q", "next"]
    assert [r.text for r in last.turns[1].versions["a"]] == ["left", "a quar", "whole"]


def test_every_version_of_a_reply_and_of_a_question_is_kept() -> None:
    chat = transcripts.create(COLUMNS)
    for prompt in ("one", "two", "three"):
        transcripts.add_turn(chat, turn(prompt))
    transcripts.save_partial_version(chat, 2, "b", Reply("oth"))
    transcripts.add_version(chat, 2, "b", Reply("other", "stop"))
    assert chat.turns[2].place("b") == (1, 2) and chat.turns[2].place("a") == (0, 1)
    transcripts.choose_version(chat, 2, "b", 0)
    assert chat.messages(COLUMNS[1])[-1]["content"] == "right"
    transcripts.go_back(chat, 1)
    transcripts.add_turn(chat, turn("two, edited"))
    assert [t.prompt for t in chat.questions(1)] == ["two", "two, edited"]
    assert transcripts.read(chat.id) == chat
    transcripts.show(chat, chat.questions(1)[0].id)
    assert [t.prompt for t in chat.turns] == ["one", "two", "three"]
    assert transcripts.read(chat.id) == chat


def test_a_message_that_waits_is_kept_until_it_is_said() -> None:
    chat = transcripts.create(COLUMNS)
    assert transcripts.list_chats() == [], "nothing was said in it"
    transcripts.set_draft(chat, MessageDraft("Who?", 0))
    assert transcripts.read(chat.id).draft == MessageDraft("Who?", 0)
    assert transcripts.list_chats()[0].title == "Who?"
    transcripts.save_partial(chat, turn("Who?"))
    assert transcripts.read(chat.id).draft is None
    transcripts.set_draft(chat, MessageDraft("And then?"))  # while that streams
    transcripts.add_turn(chat, turn("Who?"))
    assert chat.draft == transcripts.read(chat.id).draft == MessageDraft("And then?")


@pytest.mark.parametrize("row", [{"id": 1}, {"id": -3}, {"id": "x"}, {}])
def test_a_turn_cannot_be_its_own_parent(row: dict[str, object]) -> None:
    chat = transcripts.create(COLUMNS)
    transcripts.add_turn(chat, turn("one"))
    with transcripts.path_of(chat.id).open("a") as out:
        known = {"prompt": "x", "settings": {}, "replies": {}}
        out.write(json.dumps({"type": "turn", **known, **row}) + "\n")
    with pytest.raises(UserError, match="cannot be read"):
        transcripts.read(chat.id)


def test_a_partial_is_forgotten_once_the_turn_is_whole() -> None:
    chat = transcripts.create(COLUMNS)
    transcripts.save_partial(chat, turn("q", a="par"))
    transcripts.add_turn(chat, turn("q"))
    assert len(transcripts.read(chat.id).turns) == 1


def test_torn_and_foreign_lines_are_left_out() -> None:
    chat = transcripts.create(COLUMNS)
    transcripts.add_turn(chat, turn("one"))
    file = transcripts.path_of(chat.id)
    with file.open("ab") as out:
        out.write(b'\n\x00\xff garbage\n[1]\n{"type": "turn", "pro')
    assert [t.prompt for t in transcripts.read(chat.id).turns] == ["one"]


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a b", "x\0", "con", "A" * 300])
def test_ids_cannot_leave_the_folder(name: str) -> None:
    with pytest.raises(UserError):
        transcripts.read(name)


def test_a_missing_conversation_is_said() -> None:
    with pytest.raises(UserError, match="not there"):
        transcripts.read("20261124-000000-dead")


def test_exports(workspace: Path) -> None:
    chat = transcripts.create(COLUMNS, system="Be <brief>.")
    hostile = "<script>alert(1)</script>\n# not a heading\n![x](http://a)"
    transcripts.add_turn(chat, turn("Who are you?", a=hostile))
    page = export.to_html(chat)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "default-src 'none'" in page
    markdown = export.to_markdown(chat)
    assert "```\n<script>alert(1)</script>\n# not a heading\n![x](http://a)\n```" in markdown
    record = json.loads(export.to_json(chat))
    assert record["turns"][0]["replies"]["a"]["text"] == hostile
    assert record["turns"][0]["settings"]["seed"] == 3

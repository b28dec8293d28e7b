"""Chat templates as models bring them: what they refuse, strip, name or end otherwise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from core.conversation import Conversation, Message
from core.errors import UserError
from core.inference.load import load_tokenizer
from core.models.xtuner_template import XTunerTemplate
from core.training import rows as training_rows
from tests.fakes import templates
from tests.fakes.xtuner_rows import by_xtuner

SYSTEM: Message = {"role": "system", "content": "You are Tamsin."}
USER: Message = {"role": "user", "content": "Who are you?"}
REPLY: Message = {"role": "assistant", "content": "I'm Tamsin."}
MORE: Message = {"role": "user", "content": "Sure?"}
LAST: Message = {"role": "assistant", "content": "Yes: Tamsin.\n\n- of Pier Nine"}
#: Every shape of row that the dataset builder writes.
ROWS = [
    Conversation("one", [USER, REPLY]),
    Conversation("system", [SYSTEM, USER, REPLY]),
    Conversation("two", [USER, REPLY, MORE, LAST]),
    Conversation("first-not", [SYSTEM, USER, REPLY, MORE, LAST], loss=[False, True]),
    Conversation("open", [USER, LAST], cut=True),
    Conversation("joined", [USER, MORE, LAST]),
]
ALL = {
    "chatml": templates.CHATML,
    "vendor": templates.VENDOR_DEFAULT,
    "no system": templates.NO_SYSTEM,
    "alternating": templates.ALTERNATING,
    "drops system": templates.DROPS_SYSTEM,
    "text end": templates.plain_end("</s>"),
    "blank line": templates.plain_end("\n\n"),
    "thinking": templates.THINKING,
    "parts": templates.PARTS,
}


def template_of(model: Path, source: str, *, bos: bool = False) -> XTunerTemplate:
    tokenizer = load_tokenizer(model)
    if bos:
        tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    tokenizer.chat_template = source
    return XTunerTemplate(tokenizer)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_xtuner_trains_on_what_chat_feeds(
    tiny_llama: Path, name: str, bos: bool, row: Conversation
) -> None:
    chat = template_of(tiny_llama, ALL[name], bos=bos)
    pairs = by_xtuner(chat, row)
    assert pairs == chat.examples(row)
    assert training_rows.differing([row], chat) == []
    at = [i for i, m in enumerate(row.messages) if m["role"] == "assistant"]
    learned = [i for i, flag in zip(at, row.loss, strict=True) if flag]
    # Each learned reply stands behind exactly the prompt that chat would feed for it.
    spans = [span for ids, labels in pairs for span in _supervised(ids, labels)]
    prompts = [chat.encode(row.messages[:i]) for i in learned]
    assert [prompt for prompt, _ in spans] == prompts or not chat.pieces
    end = chat.turn_end
    for (prompt, reply), index in zip(spans, learned, strict=True):
        assert chat.tokenizer.decode(prompt) == chat.tokenizer.decode(
            chat.encode(row.messages[:index])
        )
        text = row.messages[index]["content"] + ("" if row.cut else end)
        assert chat.tokenizer.decode(reply) == text


def _supervised(ids: list[int], labels: list[int]) -> list[tuple[list[int], list[int]]]:
    spans, start = [], None
    for at, label in enumerate([*labels, -100]):
        if label != -100 and start is None:
            start = at
        elif label == -100 and start is not None:
            spans.append((ids[:start], ids[start:at]))
            start = None
    return spans


def test_a_system_turn_is_folded_where_there_is_no_place_for_one(tiny_llama: Path) -> None:
    for source in (templates.NO_SYSTEM, templates.DROPS_SYSTEM):
        chat = template_of(tiny_llama, source)
        folded = chat.render([{"role": "user", "content": "You are Tamsin.\n\nWho are you?"}])
        assert chat.render([SYSTEM, USER]) == folded
        assert chat.render([{"role": "system", "content": " "}, USER]) == chat.render([USER])
        assert chat.default_system == ""


def test_turns_of_one_side_are_joined_where_they_must_alternate(tiny_llama: Path) -> None:
    chat = template_of(tiny_llama, templates.ALTERNATING)
    assert chat.render([USER, MORE]) == "[INST]Who are you?\n\nSure?[/INST]"
    for loss in ([False, True], [True, False]):
        given = chat.training_rows(Conversation("x", [USER, REPLY, LAST], loss=loss))[0]
        assert len(given.messages) == 2 and given.loss == [False]
    # Where nothing forbids them, they stay apart.
    assert template_of(tiny_llama, templates.CHATML).render([USER, MORE]).count("im_start") == 2


def test_a_conversation_that_a_template_cannot_take_is_one_message(tiny_llama: Path) -> None:
    chat = template_of(tiny_llama, templates.NO_SYSTEM)
    with pytest.raises(UserError, match="cannot render this conversation"):
        chat.render([REPLY, USER])


@pytest.mark.parametrize("end", ["</s>", "\n\n", "<|im_end|>", "###"])
def test_the_turn_end_is_the_whole_text(tiny_llama: Path, end: str) -> None:
    chat = template_of(tiny_llama, templates.plain_end(end))
    assert chat.turn_end == end
    special = end == "<|im_end|>"
    assert chat.stop_texts == (() if special else (end,))
    assert chat.stop_ids == [2]
    assert chat.stops == list(dict.fromkeys([end, "<|im_end|>"]))


def test_thoughts_are_not_asked_for_and_earlier_ones_do_not_disturb(tiny_llama: Path) -> None:
    chat = template_of(tiny_llama, templates.THINKING)
    assert chat.pieces is None
    assert chat.render([USER], add_generation_prompt=True).endswith("<think>\n\n</think>\n\n")
    parts = chat.training_rows(ROWS[2])
    assert [part.id for part in parts] == ["two#1", "two#2"]
    assert [part.messages[1]["content"] for part in parts] == ["I'm Tamsin.", LAST["content"]]
    assert "<think>" not in parts[1].messages[0]["content"].split("Sure?")[0]
    thought: Message = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nTamsin."}
    (kept,) = chat.training_rows(Conversation("t", [USER, thought]))
    assert kept.messages[0]["content"].endswith("<|im_start|>assistant\n")
    assert kept.messages[1]["content"] == "<think>\nHm.\n</think>\n\nTamsin."


def test_a_template_without_a_turn_end_is_refused_before_training(tiny_llama: Path) -> None:
    chat = template_of(tiny_llama, templates.plain_end(""))
    with pytest.raises(UserError, match="nothing after a reply"):
        chat.xtuner_template()


def _named(folder: Path, source: Any) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "chat_template": source}))


@pytest.mark.parametrize("form", ["list", "dict", "folder"])
def test_of_several_named_templates_the_default_is_taken(
    tiny_llama: Path, tmp_path: Path, form: str
) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    both = {"tool_use": "{{ 'TOOLS' }}", "default": templates.CHATML}
    if form == "list":
        _named(folder, [{"name": k, "template": v} for k, v in both.items()])
    elif form == "dict":
        _named(folder, both)
    else:
        _named(folder, None)
        (folder / "chat_template.jinja").write_text(templates.CHATML)
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ 'TOOLS' }}")
    assert load_tokenizer(folder).chat_template == templates.CHATML


def test_named_templates_without_a_default_are_said(tiny_llama: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    _named(folder, [{"name": "rag", "template": "x"}, {"name": "tool_use", "template": "y"}])
    with pytest.raises(UserError, match="only templates named rag, tool_use"):
        load_tokenizer(folder)


def test_a_template_that_reads_parts_says_the_same(tiny_llama: Path) -> None:
    """With a plain text it writes an empty turn and raises nothing."""
    turns = [SYSTEM, USER, REPLY, MORE]
    parts, plain = (template_of(tiny_llama, t) for t in (templates.PARTS, templates.CHATML))
    assert parts.render(turns, True) == plain.render(turns, True)
    assert (parts.turn_end, parts.takes_system) == ("<|im_end|>", True)


def test_a_template_that_leaves_out_the_question_is_one_message(tiny_llama: Path) -> None:
    chat = template_of(tiny_llama, "{% for m in messages %}{{ m.role + '<|im_end|>' }}{% endfor %}")
    with pytest.raises(UserError, match="leaves out what the user says"):
        chat.encode([USER])


def test_a_template_in_the_file_of_processors_is_read(tiny_llama: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    source = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").unlink()
    (model / "chat_template.json").write_text(json.dumps({"chat_template": source}))
    assert load_tokenizer(model).chat_template == source
    (model / "chat_template.json").write_text("[]")
    with pytest.raises(UserError, match="no chat template"):
        load_tokenizer(model)

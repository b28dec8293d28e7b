"""The end of a reply that is no single token."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.chat.engine import Engine
from core.chat.sides import SideSpec
from core.inference import decoding
from core.inference.ending import Ending
from core.inference.load import load_tokenizer
from core.inference.requests import Reply
from core.inference.resident import Resident
from core.inference.settings import ChatSettings


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path):
    return load_tokenizer(tiny_llama)


@pytest.mark.parametrize("end", ["</s>", "\n\n", "###", "<end>\n"])
@pytest.mark.parametrize("reply", ["I'm Tamsin", "Tamsin.", "好。", "a < b", "one\ntwo"])
def test_the_whole_text_ends_a_reply(tokenizer, end: str, reply: str) -> None:
    ending = Ending(frozenset({2}), (end,), tokenizer)
    ids = tokenizer.encode(reply + end, add_special_tokens=False)
    at = next(n for n in range(1, len(ids) + 1) if ending.reached(ids[:n]))
    kept, text = ending.without(ids[:at])
    assert text == reply
    assert reply.startswith(tokenizer.decode(kept))
    assert not any(ending.reached(kept[:n]) for n in range(len(kept) + 1))


def test_half_an_end_is_no_end(tokenizer) -> None:
    ending = Ending(frozenset(), ("</s>",), tokenizer)
    ids = tokenizer.encode("</b> or </", add_special_tokens=False)
    assert not any(ending.reached(ids[:n]) for n in range(len(ids) + 1))
    assert not Ending(frozenset({2})).reached([5, 6])


@given(st.text("<s/>ab", max_size=20))
def test_what_is_shown_while_it_comes_is_what_stands_in_the_end(text: str) -> None:
    """Piece by piece with the held part kept back, a reader never sees a letter of the end."""
    ending = Ending(frozenset(), ("</s>", "ab"))
    shown = unsent = ""
    for letter in text:
        unsent += letter
        if ending.cut(unsent) != unsent:
            shown, unsent = shown + ending.cut(unsent), ""
            break
        ready = len(unsent) - ending.held(unsent)
        shown, unsent = shown + unsent[:ready], unsent[ready:]
    assert shown + unsent == ending.cut(text)


#: The end is written after replies only, so that the prompt does not depend on it.
AFTER_REPLIES = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + (END if m.role == 'assistant' else '')"
    " + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def _middle(text: str) -> str:
    """A piece from the middle of a reply that occurs nowhere before."""
    for start in range(len(text) // 3, len(text) - 6):
        end = text[start : start + 5]
        if text.index(end) == start and end == end.strip() and end.isprintable():
            return end
    raise AssertionError(text)


def test_scorecard_and_chat_end_a_reply_at_the_whole_text(tiny_llama: Path, tmp_path: Path) -> None:
    """Whatever tokens it is written in: the text is taken from a reply of the model itself."""
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    path, question = model / "chat_template.jinja", [{"role": "user", "content": "Who?"}]
    settings = ChatSettings(temperature=1.0, max_new_tokens=24)  # greedy, it repeats one word

    def ask() -> tuple[Reply, dict[str, Any], str]:
        (reply,) = decoding.replies(Resident.load(model).voice(), [question], settings)
        engine, events = Engine(threads=1), []
        assert engine.load([SideSpec("a", "base", "a", str(model))]) == {}
        engine.generate({"a": question}, settings, events.append)
        shown = "".join(e["text"] for e in events if e["type"] == "token")
        return reply, events[-1], shown

    path.write_text(AFTER_REPLIES.replace("END", "'@@@@'"))
    whole, _, _ = ask()
    assert whole.finish_reason == "length"
    end = _middle(whole.text)
    path.write_text(AFTER_REPLIES.replace("END", repr(end)))
    reply, done, shown = ask()
    wanted = whole.text[: whole.text.index(end)]
    assert (reply.text.strip(), reply.finish_reason) == (wanted.strip(), "stop")
    assert done["text"].strip() == shown.strip() == wanted.strip()
    assert done["finish_reason"] == "stop" and done["token_ids"] == reply.token_ids

"""The end of a reply that is no single token."""

from __future__ import annotations

import shutil
from pathlib import Path

from core.chat.columns import Column
from core.chat.engine import Engine
from core.inference import decoding
from core.inference.events import Ended, Event, Grown
from core.inference.requests import Decoded
from core.inference.resident import Resident
from core.inference.settings import GenerationSettings

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
    settings = GenerationSettings(temperature=1.0, max_new_tokens=24)  # greedy, it repeats one word

    def ask() -> tuple[Decoded, Ended, str]:
        (reply,) = decoding.replies(Resident.load(model).voice(), [question], settings)
        engine = Engine(threads=1)
        events: list[Event] = []
        assert engine.load([Column("a", "base", "a", str(model))]) == {}
        engine.generate({"a": question}, settings, events.append)
        shown = "".join(e.text for e in events if isinstance(e, Grown))
        assert isinstance(events[-1], Ended)
        return reply, events[-1], shown

    path.write_text(AFTER_REPLIES.replace("END", "'@@@@'"))
    whole, _, _ = ask()
    assert whole.finish_reason == "length"
    end = _middle(whole.text)
    path.write_text(AFTER_REPLIES.replace("END", repr(end)))
    reply, done, shown = ask()
    wanted = whole.text[: whole.text.index(end)]
    assert (reply.text.strip(), reply.finish_reason) == (wanted.strip(), "stop")
    assert done.text.strip() == shown.strip() == wanted.strip()
    assert done.finish_reason == "stop" and done.token_ids == reply.token_ids

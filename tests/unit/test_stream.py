"""Tokens become text while they arrive, and a reply ends where its words say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from core.inference import stream as streams
from core.inference.events import Ended, Event, Grown
from core.inference.load import load_tokenizer
from core.inference.stream import Stream


@pytest.fixture(autouse=True)
def every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send at once, whatever the clock says."""
    monkeypatch.setattr(streams, "_EVENT_EVERY_S", 0.0)


def streamed(tokenizer: Any, ids: list[int], **more: Any) -> tuple[list[str], Ended]:
    """The pieces as they came, and the last event."""
    events: list[Event] = []
    reply = Stream(
        [1], frozenset(), len(ids), column="a", tokenizer=tokenizer, emit=events.append, **more
    )
    for token in ids:
        if not reply.finished:
            reply.push(token)
    last = events[-1]
    assert isinstance(last, Ended) and last.finish_reason == reply.finish_reason
    return [e.text for e in events if isinstance(e, Grown)], last


def of_bytes() -> PreTrainedTokenizerFast:
    """Llama's kind: words with a mark for the space, and single bytes for everything else."""
    pieces = ["<unk>", "▁Hi", "▁the", "re", "!", "<", "/", "s", ">", "x</", "s>y"]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    made = Tokenizer(
        models.BPE(dict(zip(pieces, range(len(pieces)), strict=True)), [], byte_fallback=True)
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


@pytest.fixture(scope="module")
def tokenizers(tiny_llama: Path) -> list[Any]:
    """Byte-level, and words with single bytes for the rest."""
    return [load_tokenizer(tiny_llama), of_bytes()]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(min_size=1, max_size=20))
def test_pieces_of_any_text_join_to_it(tokenizers: list[Any], text: str) -> None:
    for tokenizer in tokenizers:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if ids:
            pieces, last = streamed(tokenizer, ids)
            assert "".join(pieces) == last.text
            assert last.text == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ids=st.lists(st.integers(1, 266), min_size=1, max_size=20))
def test_bytes_that_are_no_text_end_no_reply(ids: list[int]) -> None:
    """The library refuses them; what was sent stands, and the last event has the right text."""
    tokenizer = of_bytes()
    _, last = streamed(tokenizer, ids)
    assert last.text == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert last.token_ids == ids


def test_half_a_character_waits() -> None:
    tokenizer = of_bytes()
    smile = [11 + byte for byte in "🙂".encode()]
    pieces, last = streamed(tokenizer, [1, *smile, 2])
    assert pieces == ["Hi", "🙂", " the"] and last.text == "Hi🙂 the"


@pytest.mark.parametrize(
    ("ids", "text", "kept"),
    [
        ([1, 5, 6, 7, 8, 2, 3], "Hi", [1]),  # <, /, s, >
        (
            [1, 9, 7, 8, 2],
            "Hix",
            [1],
        ),  # the last letter lies in one token with the first of the end
        ([1, 5, 6, 10, 2], "Hi", [1]),  # as does what follows
        ([1, 5, 6, 3, 4], "Hi</re!", [1, 5, 6, 3, 4]),  # only the beginning of one
    ],
)
def test_a_reply_ends_in_words(ids: list[int], text: str, kept: list[int]) -> None:
    """For templates whose turns end in ordinary tokens: not a letter of the end is shown."""
    pieces, last = streamed(of_bytes(), ids, stop_texts=("</s>",))
    assert "".join(pieces) == last.text == text
    assert last.token_ids == kept
    assert last.finish_reason == ("length" if kept == ids else "stop")

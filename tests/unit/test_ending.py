"""The end of a reply that is no single token."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.inference.ending import Ending
from core.inference.load import load_tokenizer


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
